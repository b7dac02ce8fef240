"""Tencent Cloud SCF, Job images: one process per event, no port.

The event comes in SCF_CUSTOM_CONTAINER_EVENT. A call is answered as soon as the process has
started; its exit code goes to the call record, the event stream and the log. Shared parts stand in
`scf.py`, sizes are checked in `jobs.py`.
"""

from __future__ import annotations

import json
from dataclasses import replace

from agent.contracts.base import Call, CallReport, Headers, Hook, JobInput, Limits, Reply
from agent.contracts.jobs import event_room, job_input
from agent.contracts.own_errors import JSON
from agent.contracts.scf import Scf, scf_id
from agent.errors import Bug

EVENT_VARIABLE = "SCF_CUSTOM_CONTAINER_EVENT"


class ScfJob(Scf):
    """SCF's Job type, bound to one version."""

    doors = frozenset({"tencent_api", "invoke"})

    def _limits(self) -> Limits:
        """Return SCF's limits; the event has to fit into one variable."""
        return replace(super()._limits(), request_bytes=event_room(EVENT_VARIABLE))

    def job_input(self, event: bytes, request_id: str) -> JobInput:
        """Return the event as SCF_CUSTOM_CONTAINER_EVENT.

        Raises FunctionFailed(REQUEST_TOO_LARGE) or InvalidSpec, see `jobs.job_input`.
        """
        return job_input(EVENT_VARIABLE, event, self.version, self.environment(""))

    def job_reply(
        self, call: Call, exit_code: int | None, output: bytes, report: CallReport
    ) -> Reply:
        """Return 200 with the request id: the process has started."""
        body = json.dumps({"requestId": call.request_id}).encode()
        return Reply(200, [JSON, scf_id(call)], body)

    def hook_head(self, hook: Hook, request_id: str, instance: str) -> bytes:
        """A job has no hooks; raises Bug."""
        raise self._no_http()

    def request_head(self, call: Call, length: int | None) -> bytes:
        """A job serves no HTTP; raises Bug."""
        raise self._no_http()

    def http_reply(self, call: Call, status: int, headers: Headers, report: CallReport) -> Headers:
        """A job serves no HTTP; raises Bug."""
        raise self._no_http()

    def event_reply(
        self, call: Call, status: int, headers: Headers, body: bytes, report: CallReport
    ) -> Reply:
        """A job serves no HTTP; raises Bug."""
        raise self._no_http()

    def _no_http(self) -> Bug:
        return Bug(f"{self._shown} is a job of contract {self.name}: it serves no HTTP")
