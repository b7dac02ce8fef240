"""Vercel: HTTP only, many calls per instance, errors as plain text.

The caller's Host is kept; everything that says where a request came from is overwritten with what
the gateway saw. An event comes in as POST / and gets the container's own answer back.
"""

from __future__ import annotations

from typing import Final

from agent.contracts import headers as h
from agent.contracts.base import Call, CallReport, Headers, Hook, NodeFacts, Reply
from agent.contracts.dialect import Dialect
from agent.contracts.wording import exit_words, log_words, number
from agent.errors import Bug, FunctionFailed
from agent.model.failure import Failure, FailureKind
from agent.model.records import FunctionVersion

_PREFIXES: Final = (*h.CONTROL_PREFIXES, b"x-vercel-", b"x-forwarded-")
_SPECIAL: Final = h.REQUEST_SPECIAL | h.ORIGIN
_DROPPED: Final = h.HOP_BY_HOP | {b"x-vercel-id"}
_DROPPED_WHOLE: Final = _DROPPED | {b"content-length"}
_HERE: Final = b"127.0.0.1"
_FAILED: Final = (500, "INTERNAL_SERVER_ERROR", "FUNCTION_INVOCATION_FAILED")
_THROTTLED: Final = (503, "SERVICE_UNAVAILABLE", "FUNCTION_THROTTLED")

# Status, its name in capitals, code.
VERCEL_ERRORS: dict[FailureKind, tuple[int, str, str]] = {
    FailureKind.BAD_REQUEST: (400, "BAD_REQUEST", "INVALID_REQUEST"),
    FailureKind.WRONG_KIND: (400, "BAD_REQUEST", "INVALID_REQUEST"),
    FailureKind.HEADERS_TOO_LARGE: (
        431,
        "REQUEST_HEADER_FIELDS_TOO_LARGE",
        "REQUEST_HEADER_TOO_LARGE",
    ),
    FailureKind.FUNCTION_NOT_FOUND: (404, "NOT_FOUND", "NOT_FOUND"),
    FailureKind.REQUEST_TOO_LARGE: (413, "PAYLOAD_TOO_LARGE", "FUNCTION_PAYLOAD_TOO_LARGE"),
    FailureKind.CLIENT_CANCELLED: (499, "CLIENT_CLOSED_REQUEST", "REQUEST_CANCELLED"),
    FailureKind.START_TIMEOUT: _FAILED,
    FailureKind.EXITED_AT_START: _FAILED,
    FailureKind.FILE_NOT_FOUND: _FAILED,
    FailureKind.FILE_PERMISSION: _FAILED,
    FailureKind.INIT_HOOK_FAILED: _FAILED,
    FailureKind.TIMEOUT: (504, "GATEWAY_TIMEOUT", "FUNCTION_INVOCATION_TIMEOUT"),
    FailureKind.EXITED: _FAILED,
    FailureKind.OUT_OF_MEMORY: _FAILED,
    FailureKind.BAD_RESPONSE: _FAILED,
    FailureKind.RESPONSE_TOO_LARGE: _FAILED,
    FailureKind.RESPONSE_HEADERS_TOO_LARGE: _FAILED,
    FailureKind.IMAGE_UNAVAILABLE: (500, "INTERNAL_SERVER_ERROR", "INTERNAL_FUNCTION_NOT_READY"),
    FailureKind.QUEUE_FULL: _THROTTLED,
    FailureKind.QUEUE_TIMEOUT: _THROTTLED,
    FailureKind.NO_CAPACITY: _THROTTLED,
    FailureKind.DRAINING: _THROTTLED,
    FailureKind.INTERNAL: (500, "INTERNAL_SERVER_ERROR", "INTERNAL_FUNCTION_INVOCATION_FAILED"),
}


class Vercel(Dialect):
    """Vercel, bound to one version."""

    special = _SPECIAL
    prefixes: tuple[bytes, ...] = _PREFIXES
    doors = frozenset({"invoke", "http"})

    def __init__(self, version: FunctionVersion, node: NodeFacts) -> None:
        super().__init__(version, node)
        deployment = f"{version.name}-{version.version}.{node.region}.kindling.local"
        self._identity = h.lines([("x-vercel-deployment-url", deployment)]) + b"x-vercel-id: "

    def environment(self, instance: str) -> dict[str, str]:
        """Return Vercel's variables, the same for every instance."""
        return {"PORT": str(self.port), "VERCEL": "1", "VERCEL_REGION": self.node.region}

    def hook_head(self, hook: Hook, request_id: str, instance: str) -> bytes:
        """Vercel has no hooks; raises Bug."""
        raise Bug(f"contract {self.name} has no hook {hook.name}")

    # -- a call

    def new_request_id(self, random: bytes) -> str:
        """Return `<region>::<5 hex>-<13 hex>-<12 hex>`."""
        digits = random.hex()
        return f"{self.node.region}::{digits[:5]}-{digits[5:18]}-{digits[18:30]}"

    def request_head(self, call: Call, length: int | None) -> bytes:
        """Return the raw head; an event is the caller's request, sent as POST /."""
        host = call.host.encode("latin-1") if call.host else self._own_host
        peer = call.remote.encode("latin-1") if call.remote else _HERE
        identity = [
            self._identity,
            h.field_value(call.request_id),
            b"\r\nx-forwarded-host: ",
            host,
            b"\r\nx-forwarded-proto: ",
            call.scheme.encode("ascii"),
            b"\r\nx-forwarded-for: ",
            peer,
            b"\r\nx-real-ip: ",
            peer,
            b"\r\nx-vercel-forwarded-for: ",
            peer,
            h.CRLF,
        ]
        if call.kind == "http":
            return self._http_head(call, call.method, call.target, length, identity)
        return self._http_head(call, self.event_method, self.event_path, length, identity)

    def http_reply(self, call: Call, status: int, headers: Headers, report: CallReport) -> Headers:
        """Return the container's headers and the request id."""
        self._check_size(headers)
        passed = h.copy_response(headers, _DROPPED, switching=status == 101)
        passed.append((b"x-vercel-id", h.field_value(call.request_id)))
        return passed

    def event_reply(
        self, call: Call, status: int, headers: Headers, body: bytes, report: CallReport
    ) -> Reply:
        """Return the container's own answer."""
        self._check_size(headers)
        passed = h.copy_response(headers, _DROPPED_WHOLE)
        passed.append((b"x-vercel-id", h.field_value(call.request_id)))
        return Reply(status, passed, body)

    def job_reply(
        self, call: Call, exit_code: int | None, output: bytes, report: CallReport
    ) -> Reply:
        """Vercel has no jobs; raises Bug."""
        raise self._no_jobs()

    def error(self, failure: Failure, call: Call, report: CallReport | None = None) -> Reply:
        """Return Vercel's text; after it, why a container that died or never listened did so."""
        status, title, code = VERCEL_ERRORS[failure.kind]
        text = f"{status}: {title}\nCode: {code}\nID: {call.request_id}\n"
        reason = self._reason(failure)
        if reason:
            text += f"\n{reason}\n"
        headers = [
            (b"Content-Type", b"text/plain; charset=utf-8"),
            (b"x-vercel-error", code.encode()),
            (b"x-vercel-id", h.field_value(call.request_id)),
            *self._retry_after(failure),
        ]
        return Reply(status, headers, text.encode())

    def _reason(self, failure: Failure) -> str:
        """Return our own words below Vercel's three lines; empty where its code says it all."""
        kind = failure.kind
        spec = self.version.spec
        if kind is FailureKind.START_TIMEOUT:
            limit = number(failure.limit or spec.startup_timeout_s)
            reason = f"nothing listened on 0.0.0.0:{failure.port or self.port} in {limit} seconds"
        elif kind in (FailureKind.EXITED_AT_START, FailureKind.EXITED):
            reason = f"the process exited ({exit_words(failure)})"
        elif kind is FailureKind.OUT_OF_MEMORY:
            reason = f"out of memory, the limit is {spec.memory_mb} MB ({exit_words(failure)})"
        elif kind is FailureKind.TIMEOUT:
            return ""
        else:
            reason = failure.message
        logs = log_words(failure)
        return f"{reason}\nLogs:\n{logs}" if logs else reason

    def _check_size(self, headers: Headers) -> None:
        limit = self.limits.header_bytes
        if h.size(headers) > limit:
            message = f"the response headers are larger than {limit} bytes"
            kind = FailureKind.RESPONSE_HEADERS_TOO_LARGE
            raise FunctionFailed(Failure(kind, message, limit=limit))
