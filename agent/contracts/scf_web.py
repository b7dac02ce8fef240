"""Tencent Cloud SCF, WebServer images: events as POST /event-invoke, HTTP passed through.

The container listens on 9000, always, and has no hooks. An answer of 400 or more to an event is an
exception of user code (430): the caller of an event never sees the container's status.
"""

from __future__ import annotations

from typing import Final

from agent.contracts import headers as h
from agent.contracts.base import Call, CallReport, Headers, Hook, NodeFacts, Reply
from agent.contracts.scf import NAMESPACE, USER_EXCEPTION, Scf, scf_error, scf_id
from agent.errors import Bug, FunctionFailed
from agent.model.failure import Failure, FailureKind
from agent.model.limits import LOG_TAIL_BYTES
from agent.model.records import FunctionVersion

_JSON: Final = b"application/json"
_DROPPED: Final = h.HOP_BY_HOP | {b"x-scf-request-id"}
_HERE: Final = b"127.0.0.1"
"""The peer of a call that came over the unix socket."""


class ScfWeb(Scf):
    """SCF's WebServer type, bound to one version."""

    event_path = b"/event-invoke"
    doors = frozenset({"tencent_api", "invoke", "http"})

    def __init__(self, version: FunctionVersion, node: NodeFacts) -> None:
        super().__init__(version, node)
        spec = version.spec
        self._identity = (
            h.lines(
                [
                    ("X-Scf-Memory", str(spec.memory_mb)),
                    ("X-Scf-Timeout", str(round(spec.timeout_s * 1000))),
                    ("X-Scf-Version", str(version.version)),
                    ("X-Scf-Name", version.name),
                    ("X-Scf-Namespace", NAMESPACE),
                    ("X-Scf-Region", node.region),
                    ("X-Scf-Appid", node.app_id),
                    ("X-Scf-Uin", node.uin),
                ]
            )
            + b"X-Scf-Request-Id: "
        )
        self._event = self._fixed_head(b"POST", self.event_path, _JSON) + self._identity

    def hook_head(self, hook: Hook, request_id: str, instance: str) -> bytes:
        """SCF has no hooks; raises Bug."""
        raise Bug(f"contract {self.name} has no hook {hook.name}")

    def request_head(self, call: Call, length: int | None) -> bytes:
        """Return the raw head: POST /event-invoke for an event, the caller's own line for HTTP."""
        identity = call.request_id.encode()
        remote = call.remote.encode("latin-1") if call.remote else _HERE
        if call.kind == "http":
            lines = [self._identity, identity, b"\r\nX-Scf-Remote-Addr: ", remote, h.CRLF]
            return self._http_head(call, call.method, call.target, length, lines)
        out = [self._event, identity, b"\r\nX-Scf-Remote-Addr: ", remote, h.CRLF]
        h.copy_trace(out, call.headers, identity)
        out += (h.framing(b"POST", length), h.CRLF)
        return b"".join(out)

    def http_reply(self, call: Call, status: int, headers: Headers, report: CallReport) -> Headers:
        """Return the container's headers and the request id."""
        limit = self.limits.header_bytes
        if h.size(headers) > limit:
            message = f"the response headers are larger than {limit} bytes"
            kind = FailureKind.RESPONSE_HEADERS_TOO_LARGE
            raise FunctionFailed(Failure(kind, message, limit=limit))
        passed = h.copy_response(headers, _DROPPED, switching=status == 101)
        passed.append(scf_id(call))
        return passed

    def event_reply(
        self, call: Call, status: int, headers: Headers, body: bytes, report: CallReport
    ) -> Reply:
        """Return the container's body as the result, or 430 when it answered 400 or more."""
        if status >= 400:
            text = body[:LOG_TAIL_BYTES].decode("utf-8", "replace")
            message = f"UserCodeException: User code exception caught: HTTP {status}: {text}"
            return scf_error(USER_EXCEPTION, message, call)
        content_type = h.find(headers, b"content-type") or _JSON
        return Reply(200, [(b"Content-Type", content_type), scf_id(call)], body)

    def job_reply(
        self, call: Call, exit_code: int | None, output: bytes, report: CallReport
    ) -> Reply:
        """A WebServer image is no job; raises Bug."""
        raise self._no_jobs()
