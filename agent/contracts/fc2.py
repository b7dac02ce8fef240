"""Alibaba Cloud Function Compute 2: as FC 3, with services, a freeze hook and jobs.

Kind `job` is the non-web-server mode: the event comes in FC_CUSTOM_CONTAINER_EVENT, the call waits
for the process to exit, exit 0 is success and the end of stdout the result. Everything else is
`fc.py`'s.
"""

from __future__ import annotations

import json

from agent.contracts.base import Call, CallReport, JobInput, Limits, Reply
from agent.contracts.fc import OCTETS, Fc
from agent.contracts.fc_errors import UNHANDLED, fc2_message
from agent.contracts.jobs import event_room, job_input
from agent.contracts.own_errors import JSON
from agent.model.failure import Failure
from agent.model.limits import LOG_TAIL_BYTES

EVENT_VARIABLE = "FC_CUSTOM_CONTAINER_EVENT"
SERVICE = "default"
"""Specs know no services; FC 2 always names one."""


class Fc2(Fc):
    """FC 2, bound to one version."""

    def _limits(self) -> Limits:
        """Return FC's limits; a job's event has to fit into one variable."""
        limits = super()._limits()
        if self.kind != "job":
            return limits
        room = event_room(EVENT_VARIABLE)
        return Limits(
            request_bytes=room,
            response_bytes=LOG_TAIL_BYTES,
            async_bytes=min(limits.async_bytes, room),
            header_bytes=limits.header_bytes,
            target_bytes=limits.target_bytes,
            start_s=limits.start_s,
            call_s=limits.call_s,
            stop_grace_s=limits.stop_grace_s,
        )

    def _identity_pairs(self) -> list[tuple[str, str]]:
        hooks = self._hooks
        initialize = hooks.get("initialize")
        seconds = max(1, round(initialize.timeout_s)) if initialize else 0
        paths = {name: hook.path.decode() for name, hook in hooks.items()}
        return [
            *super()._identity_pairs(),
            ("x-fc-service-name", SERVICE),
            ("x-fc-function-initializer", paths.get("initialize", "")),
            ("x-fc-initialization-timeout", str(seconds)),
            ("x-fc-instance-lifecycle-pre-stop-handler", paths.get("pre_stop", "")),
            ("x-fc-instance-lifecycle-pre-freeze-handler", paths.get("pre_freeze", "")),
        ]

    def job_input(self, event: bytes, request_id: str) -> JobInput:
        """Return the event as FC_CUSTOM_CONTAINER_EVENT.

        Raises FunctionFailed(REQUEST_TOO_LARGE) or InvalidSpec, see `jobs.job_input`.
        """
        return job_input(EVENT_VARIABLE, event, self.version, self.environment("x" * 80))

    def waits_for_job(self) -> bool:
        """FC answers when the process has exited."""
        return True

    def job_reply(
        self, call: Call, exit_code: int | None, output: bytes, report: CallReport
    ) -> Reply:
        """Return the last 4 KB of stdout on exit 0, else an unhandled failure with the code."""
        tail = output[-LOG_TAIL_BYTES:]
        if exit_code == 0:
            return Reply(200, self._event_headers(call, report, b"", OCTETS), tail)
        message = (
            f"Process exited unexpectedly before completing request (code {exit_code}).\n"
            f"Logs:{tail.decode('utf-8', 'replace')}"
        )
        body = self._error_body("FunctionUnhandledError", message, call)
        return Reply(200, [JSON, *self._event_headers(call, report, UNHANDLED, b"")], body)

    def _message(self, failure: Failure) -> str:
        return fc2_message(failure, self.version.spec)

    def _error_body(self, code: str, message: str, call: Call) -> bytes:
        return json.dumps({"ErrorCode": code, "ErrorMessage": message}).encode()
