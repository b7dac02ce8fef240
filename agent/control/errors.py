"""The one table from the agent's errors to gRPC status codes and google.rpc details, both ways.

`refusal` turns an error into what goes over the wire, bounded so that it fits into HTTP/2 trailers;
`told` reads it back on the client's side. The codes are listed at the head of worker.proto.
`verbs.py` applies this to every RPC.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from agent.errors import (
    AgentError,
    AlreadyExists,
    Bug,
    FailedPrecondition,
    FunctionFailed,
    InvalidSpec,
    NotFound,
    Overloaded,
    PermissionDenied,
    Problem,
    RuntimeUnavailable,
)
from agent.model.failure import Failure, FailureKind

DOMAIN = "kindling"
DETAILS_KEY = "grpc-status-details-bin"

# grpc refuses trailers of more than 8 KB (grpc.max_metadata_size). The message stands in them
# twice, once percent-encoded at up to three bytes a byte; binary values grow by a third.
MESSAGE_BYTES = 1024
DETAILS_BYTES = 3072

_CODES: dict[type[AgentError], grpc.StatusCode] = {
    InvalidSpec: grpc.StatusCode.INVALID_ARGUMENT,
    NotFound: grpc.StatusCode.NOT_FOUND,
    AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    FunctionFailed: grpc.StatusCode.FAILED_PRECONDITION,
    RuntimeUnavailable: grpc.StatusCode.UNAVAILABLE,
    Bug: grpc.StatusCode.INTERNAL,
}

# A failure may be the caller's or the platform's: then the code says so, not FunctionFailed's.
_FAILURES: dict[FailureKind, tuple[grpc.StatusCode, str]] = {
    FailureKind.BAD_REQUEST: (grpc.StatusCode.INVALID_ARGUMENT, "caller"),
    FailureKind.REQUEST_TOO_LARGE: (grpc.StatusCode.INVALID_ARGUMENT, "caller"),
    FailureKind.HEADERS_TOO_LARGE: (grpc.StatusCode.INVALID_ARGUMENT, "caller"),
    FailureKind.FUNCTION_NOT_FOUND: (grpc.StatusCode.NOT_FOUND, "caller"),
    FailureKind.WRONG_KIND: (grpc.StatusCode.FAILED_PRECONDITION, "caller"),
    FailureKind.CLIENT_CANCELLED: (grpc.StatusCode.CANCELLED, "caller"),
    FailureKind.IMAGE_UNAVAILABLE: (grpc.StatusCode.UNAVAILABLE, "platform"),
    FailureKind.QUEUE_FULL: (grpc.StatusCode.RESOURCE_EXHAUSTED, "platform"),
    FailureKind.QUEUE_TIMEOUT: (grpc.StatusCode.RESOURCE_EXHAUSTED, "platform"),
    FailureKind.NO_CAPACITY: (grpc.StatusCode.RESOURCE_EXHAUSTED, "platform"),
    FailureKind.DRAINING: (grpc.StatusCode.UNAVAILABLE, "platform"),
    FailureKind.INTERNAL: (grpc.StatusCode.INTERNAL, "platform"),
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error as the wire carries it. `metadata` is ErrorInfo's: fault, retryable, kind, …."""

    code: grpc.StatusCode
    message: str
    reason: str = ""
    metadata: dict[str, str] | None = None
    problems: tuple[Problem, ...] = ()
    retry_after_s: float = 0.0
    log: str = ""

    @property
    def trailers(self) -> tuple[tuple[str, bytes], ...]:
        """The google.rpc.Status for the trailing metadata."""
        return ((DETAILS_KEY, _status(self).SerializeToString()),)


def refusal(error: BaseException, call: str) -> Refusal:
    """Return what to answer when the RPC `call` raised `error`."""
    if isinstance(error, FunctionFailed):
        return _function_refusal(error)
    if isinstance(error, AgentError):
        return _agent_refusal(error)
    if isinstance(error, NotImplementedError):
        text = f"{str(error) or call} is not built in this release; SPECIFICATION.md lists what is"
        return Refusal(grpc.StatusCode.UNIMPLEMENTED, text, "UNIMPLEMENTED", _blame("caller"))
    if isinstance(error, TimeoutError):
        text = f"{call} did not end in time"
        metadata = _blame("platform", retryable=True)
        return Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, text, "TIMEOUT", metadata)
    text = f"{call} failed inside the agent ({type(error).__name__}); its log says more"
    return Refusal(grpc.StatusCode.INTERNAL, text, "INTERNAL", _blame("platform"))


class Failed(Protocol):
    """A client's error, of grpc or grpc.aio."""

    def code(self) -> grpc.StatusCode:
        """Return the status code."""

    def details(self) -> str | None:
        """Return the message."""

    def trailing_metadata(self) -> Iterable[tuple[str, str | bytes]] | None:
        """Return the trailers, if any came."""


def told(error: Failed) -> Refusal:
    """Return what a server said with an error; details that are missing or broken are left out."""
    raw = next((v for k, v in error.trailing_metadata() or () if k == DETAILS_KEY), b"")
    try:
        status = status_pb2.Status.FromString(raw if isinstance(raw, bytes) else b"")
    except DecodeError:
        status = status_pb2.Status()
    return _read(error.code(), status.message or error.details() or "", status)


def _agent_refusal(error: AgentError) -> Refusal:
    code = next((c for kind, c in _CODES.items() if isinstance(error, kind)), None)
    code = code or grpc.StatusCode.INTERNAL
    metadata = _blame(error.fault, retryable=error.retryable)
    problems: tuple[Problem, ...] = ()
    retry_after_s = 0.0
    if isinstance(error, InvalidSpec):
        problems = error.problems
    if isinstance(error, Overloaded):
        retry_after_s = error.retry_after_s
        metadata["kind"] = error.reason
        if error.reason == "draining":
            code = grpc.StatusCode.UNAVAILABLE
    return Refusal(code, error.message, _reason(error), metadata, problems, retry_after_s)


def _function_refusal(error: FunctionFailed) -> Refusal:
    failure = error.failure
    code, fault = _FAILURES.get(failure.kind, (grpc.StatusCode.FAILED_PRECONDITION, "function"))
    metadata = _blame(fault, retryable=fault == "platform") | _failure_metadata(failure)
    log = "\n".join(failure.log_lines)
    return Refusal(code, error.message, _reason(error), metadata, (), failure.retry_after_s, log)


def _failure_metadata(failure: Failure) -> dict[str, str]:
    found = {"kind": failure.kind.value}
    if failure.exit_code is not None:
        found["exit_code"] = str(failure.exit_code)
    if failure.signal is not None:
        found["signal"] = str(failure.signal)
    if failure.out_of_memory:
        found["out_of_memory"] = "true"
    return found


def failure_fault(kind: FailureKind) -> str:
    """Return whose fault a failure is: caller, function or platform."""
    return _FAILURES.get(kind, (None, "function"))[1]


def _blame(fault: str, *, retryable: bool = False) -> dict[str, str]:
    return {"fault": fault, "retryable": "true" if retryable else "false"}


def _reason(error: AgentError) -> str:
    """Return the error's code in ErrorInfo's form: `InvalidSpec` becomes `INVALID_SPEC`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", error.code).upper()


def clipped(text: str, limit_bytes: int) -> str:
    """Return `text`, cut at a character so that it has at most `limit_bytes` bytes of UTF-8."""
    raw = text.encode("utf-8", "replace")
    if len(raw) <= limit_bytes:
        return raw.decode()
    return raw[: limit_bytes - 3].decode("utf-8", "ignore") + "…"


def _status(refused: Refusal) -> status_pb2.Status:
    message = clipped(refused.message, MESSAGE_BYTES)
    status = status_pb2.Status(code=refused.code.value[0], message=message)
    info = error_details_pb2.ErrorInfo(
        reason=refused.reason, domain=DOMAIN, metadata=refused.metadata or {}
    )
    status.details.add().Pack(info)
    if refused.retry_after_s > 0:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(int(refused.retry_after_s * 1e9))
        status.details.add().Pack(retry)
    left = DETAILS_BYTES - status.ByteSize()
    if refused.problems:
        status.details.add().Pack(_bad_request(refused.problems, left))
    elif refused.log:
        # The last lines are those that say why.
        tail = refused.log.encode("utf-8", "replace")[-max(left - 128, 0) :]
        text = tail.decode("utf-8", "ignore")
        status.details.add().Pack(error_details_pb2.DebugInfo(detail=text))
    return status


def _bad_request(problems: tuple[Problem, ...], left: int) -> error_details_pb2.BadRequest:
    bad = error_details_pb2.BadRequest()
    for told_so_far, problem in enumerate(problems):
        field, text = clipped(problem.field, 128), clipped(problem.message, 512)
        bad.field_violations.add(field=field, description=text)
        if bad.ByteSize() > left - 256:
            del bad.field_violations[-1]
            more = len(problems) - told_so_far
            bad.field_violations.add(field="…", description=f"and {more} more problems")
            break
    return bad


def _read(code: grpc.StatusCode, message: str, status: status_pb2.Status) -> Refusal:
    reason, log, retry_after_s = "", "", 0.0
    metadata: dict[str, str] = {}
    problems: tuple[Problem, ...] = ()
    for detail in status.details:
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        retry, debug = error_details_pb2.RetryInfo(), error_details_pb2.DebugInfo()
        if detail.Unpack(info) and info.domain == DOMAIN:
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad):
            problems = tuple(Problem(v.field, v.description) for v in bad.field_violations)
        elif detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
        elif detail.Unpack(debug):
            log = debug.detail
    return Refusal(code, message, reason, metadata, problems, retry_after_s, log)
