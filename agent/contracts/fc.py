"""Alibaba Cloud Function Compute 3: custom containers as event and as HTTP functions.

The container is called with POST /invoke for events, its own paths for HTTP, POST /initialize and
GET /pre-stop for hooks; every request carries x-fc-* headers made here. Its older sister is
`fc2.py`; what fails is worded in `fc_errors.py`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Final

from agent.contracts import headers as h
from agent.contracts.base import (
    Call,
    CallReport,
    Headers,
    Hook,
    NodeFacts,
    Reply,
)
from agent.contracts.dialect import Dialect
from agent.contracts.fc_errors import FC_ERRORS, HANDLED, fc_message
from agent.contracts.own_errors import JSON
from agent.contracts.wording import megabytes, whole_ms
from agent.errors import FunctionFailed
from agent.model.failure import Failure, FailureKind
from agent.model.limits import LOG_TAIL_BYTES
from agent.model.records import FunctionVersion, Meters

HANDLER: Final = "index.handler"
"""FC wants a handler's name even of a container that has none; its console fills in this."""

OCTETS: Final = b"application/octet-stream"
_DROPPED: Final = h.HOP_BY_HOP | {b"date", b"server"}
_OWN: Final = (b"x-fc-", *h.OUR_PREFIXES)
_CODE_PATH: Final = "/code"
_HOOK_TITLES: Final = {"initialize": "Initialize", "pre_freeze": "PreFreeze", "pre_stop": "PreStop"}
_HOOK_CONTROL: Final = {
    "initialize": "/initialize",
    "pre_freeze": "/pre-freeze",
    "pre_stop": "/pre-stop",
}
"""x-fc-control-path of a hook: its kind, whatever path the function chose for it."""


class Fc(Dialect):
    """FC 3, bound to one version."""

    event_path = b"/invoke"

    def __init__(self, version: FunctionVersion, node: NodeFacts) -> None:
        super().__init__(version, node)
        doors = {"fc_api", "invoke"}
        self.doors = frozenset(doors | {"http"} if self.kind == "http" else doors)
        self._own_version = str(version.version)
        self._tails = {
            "LATEST": self._tail("LATEST"),
            self._own_version: self._tail(self._own_version),
        }
        self._event = self._fixed_head(self.event_method, self.event_path, OCTETS) + self._identity(
            "/invoke"
        )
        self._http = self._identity("/http-invoke")
        self._hook_heads = {
            name: self._fixed_head(hook.method, hook.path) + self._identity(_HOOK_CONTROL[name])
            for name, hook in self._hooks.items()
        }

    def _identity_pairs(self) -> list[tuple[str, str]]:
        """Return the headers that say what is called, in FC's order."""
        spec, node = self.version.spec, self.node
        return [
            ("x-fc-function-name", self.version.name),
            ("x-fc-function-handler", HANDLER),
            ("x-fc-function-memory", str(spec.memory_mb)),
            ("x-fc-function-timeout", str(max(1, round(spec.timeout_s)))),
            ("x-fc-region", node.region),
            ("x-fc-account-id", node.account_id),
            ("x-fc-version-id", self._own_version),
            ("x-fc-service-logproject", ""),
            ("x-fc-service-logstore", ""),
        ]

    def _identity(self, control_path: str) -> bytes:
        pairs = [*self._identity_pairs(), ("x-fc-control-path", control_path)]
        return h.lines(pairs) + b"x-fc-request-id: "

    @staticmethod
    def _tail(qualifier: str) -> bytes:
        """Return what follows the request id: its line's end and the qualifier."""
        return h.CRLF + h.lines([("x-fc-qualifier", qualifier)])

    # -- before the container runs

    def environment(self, instance: str) -> dict[str, str]:
        """Return FC's variables; credentials are not among them until a deploy can give some."""
        environment = {
            "FC_FUNC_CODE_PATH": _CODE_PATH,
            "FC_FUNCTION_NAME": self.version.name,
            "FC_FUNCTION_HANDLER": HANDLER,
            "FC_FUNCTION_MEMORY_SIZE": str(self.version.spec.memory_mb),
            "FC_FUNCTION_VERSION": self._own_version,
            "FC_REGION": self.node.region,
            "FC_ACCOUNT_ID": self.node.account_id,
            "FC_INSTANCE_ID": instance,
        }
        if self.kind != "job":
            environment["FC_CUSTOM_LISTEN_PORT"] = str(self.port)
        return environment

    def hook_head(self, hook: Hook, request_id: str, instance: str) -> bytes:
        """Return the raw head of a hook's request."""
        identity = request_id.encode()
        return b"".join(
            (
                self._hook_heads[hook.name],
                identity,
                self._tails["LATEST"],
                h.made_trace(identity),
                h.framing(hook.method, 0),
                h.CRLF,
            )
        )

    # -- a call

    def new_request_id(self, random: bytes) -> str:
        """Return `1-<8 hex>-<8 hex>-<12 hex>`."""
        digits = random.hex()
        return f"1-{digits[:8]}-{digits[8:16]}-{digits[16:28]}"

    def request_head(self, call: Call, length: int | None) -> bytes:
        """Return the raw head: POST /invoke for an event, the caller's own line for HTTP."""
        identity = call.request_id.encode()
        tail = self._tails.get(call.qualifier) or self._tail(call.qualifier)
        if call.kind == "http":
            return self._http_head(
                call, call.method, call.target, length, [self._http, identity, tail]
            )
        out = [self._event, identity, tail]
        h.copy_trace(out, call.headers, identity)
        out += (h.framing(b"POST", length), h.CRLF)
        return b"".join(out)

    def http_reply(self, call: Call, status: int, headers: Headers, report: CallReport) -> Headers:
        """Return the container's headers without FC's own, Date and Server."""
        limit = self.limits.header_bytes
        if h.size(headers) > limit:
            message = f"the response headers are larger than {limit} bytes"
            kind = FailureKind.RESPONSE_HEADERS_TOO_LARGE
            raise FunctionFailed(Failure(kind, message, limit=limit))
        passed = h.copy_response(headers, _DROPPED, _OWN, switching=status == 101)
        passed.append((b"X-Fc-Request-Id", call.request_id.encode()))
        return passed

    def event_reply(
        self, call: Call, status: int, headers: Headers, body: bytes, report: CallReport
    ) -> Reply:
        """Return the container's body as the result; `x-fc-status: 404` reports a failure."""
        failed = h.find(headers, b"x-fc-status").strip() == b"404"
        error_type = HANDLED if failed else b""
        return Reply(200, self._event_headers(call, report, error_type, OCTETS), body)

    def job_reply(
        self, call: Call, exit_code: int | None, output: bytes, report: CallReport
    ) -> Reply:
        """FC 3 has no jobs; raises Bug."""
        raise self._no_jobs()

    def error(self, failure: Failure, call: Call, report: CallReport | None = None) -> Reply:
        """Return FC's words for a failure."""
        row = FC_ERRORS[failure.kind]
        body = self._error_body(row.code, self._message(failure), call)
        if call.kind == "http":
            status = row.http_status
            headers = self._http_error_headers(call, row.error_type)
        else:
            status = row.event_status
            headers = self._event_headers(call, report, row.error_type, b"")
        return Reply(status, [JSON, *headers, *self._retry_after(failure)], body)

    def _message(self, failure: Failure) -> str:
        return fc_message(failure, self.version.spec)

    def _error_body(self, code: str, message: str, call: Call) -> bytes:
        return error_body(code, message, call.request_id)

    @staticmethod
    def _http_error_headers(call: Call, error_type: bytes) -> Headers:
        headers = [(b"X-Fc-Request-Id", call.request_id.encode())]
        if error_type:
            headers.append((b"X-Fc-Error-Type", error_type))
        return headers

    def _event_headers(
        self, call: Call, report: CallReport | None, error_type: bytes, content_type: bytes
    ) -> Headers:
        """Return the headers of an event call's reply; meters only where they are known."""
        headers: Headers = []
        if content_type:
            headers.append((b"Content-Type", content_type))
        headers.append((b"X-Fc-Request-Id", call.request_id.encode()))
        if error_type:
            headers.append((b"X-Fc-Error-Type", error_type))
        if report is None:
            return headers
        if call.want_log_tail:
            tail = base64.b64encode(report.log_tail[-LOG_TAIL_BYTES:])
            headers.append((b"X-Fc-Log-Result", tail))
        used = megabytes(report.meters.peak_memory_bytes).encode()
        headers.append((b"x-fc-invocation-duration", b"%d" % whole_ms(report.meters.wall_ms)))
        headers.append((b"x-fc-max-memory-usage", used))
        instance = report.instance or call.instance
        if instance:
            headers.append((b"x-fc-instance-id", instance.encode()))
        return headers

    # -- afterwards

    def log_before(self, request_id: str) -> Sequence[str]:
        """Return FC's line before a call."""
        return (f"FC Invoke Start RequestId: {request_id}",)

    def log_after(self, request_id: str, meters: Meters, error: str = "") -> Sequence[str]:
        """Return FC's line after a call, and its summary."""
        end = f"FC Invoke End RequestId: {request_id}" + (f", Error: {error}" if error else "")
        summary = (
            f"Duration: {meters.wall_ms:.2f} ms, "
            f"Billed Duration: {whole_ms(meters.billed_ms or meters.wall_ms)} ms, "
            f"Memory Size: {self.version.spec.memory_mb} MB, "
            f"Max Memory Used: {megabytes(meters.peak_memory_bytes)} MB"
        )
        return (end, summary)

    def log_hook(self, hook: Hook, request_id: str) -> tuple[str, str] | None:
        """Return FC's lines around a hook."""
        title = _HOOK_TITLES[hook.name]
        return (
            f"FC {title} Start RequestId: {request_id}",
            f"FC {title} End RequestId: {request_id}",
        )


def error_body(code: str, message: str, request_id: str) -> bytes:
    """Return FC 3's error body."""
    return json.dumps({"RequestId": request_id, "Code": code, "Message": message}).encode()
