"""What FC says when something fails: one table, and the sentences of FC 3 and FC 2.

Statuses and codes are FC's documented ones. A fault of the function while it runs is a 200 with
X-Fc-Error-Type for an event call and a 502 for an HTTP call; an init hook's failure is always a 200
(FC: "the server always returns HTTP 200"). `fc.py` and `fc2.py` build the bodies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agent.contracts.wording import exit_words, log_words, nanoseconds, number
from agent.model.failure import Failure, FailureKind
from agent.model.spec import FunctionSpec

HANDLED = b"HandledInvocationError"
UNHANDLED = b"UnhandledInvocationError"
INITIALIZATION = b"InitializationError"


@dataclass(frozen=True, slots=True)
class FcError:
    """One row: status of an event call and of an HTTP call, code, X-Fc-Error-Type if any."""

    event_status: int
    http_status: int
    code: str
    error_type: bytes = b""


def _both(status: int, code: str) -> FcError:
    return FcError(status, status, code)


def _function(code: str) -> FcError:
    return FcError(200, 502, code, UNHANDLED)


FC_ERRORS: dict[FailureKind, FcError] = {
    FailureKind.BAD_REQUEST: _both(400, "InvalidArgument"),
    FailureKind.WRONG_KIND: _both(400, "InvalidArgument"),
    FailureKind.HEADERS_TOO_LARGE: _both(400, "InvalidArgument"),
    FailureKind.FUNCTION_NOT_FOUND: _both(404, "FunctionNotFound"),
    FailureKind.REQUEST_TOO_LARGE: _both(413, "EntityTooLarge"),
    FailureKind.CLIENT_CANCELLED: _both(499, "InvocationCanceled"),
    FailureKind.START_TIMEOUT: _both(412, "FunctionNotStarted"),
    FailureKind.EXITED_AT_START: _both(412, "CAExited"),
    FailureKind.FILE_NOT_FOUND: _both(412, "CAFileNotFound"),
    FailureKind.FILE_PERMISSION: _both(412, "CAFilePermission"),
    FailureKind.INIT_HOOK_FAILED: FcError(200, 200, "InitializationError", INITIALIZATION),
    FailureKind.TIMEOUT: _function("FunctionTimeoutError"),
    FailureKind.EXITED: _function("FunctionUnhandledError"),
    FailureKind.OUT_OF_MEMORY: _function("FunctionOOMError"),
    FailureKind.BAD_RESPONSE: _both(502, "BadResponse"),
    FailureKind.RESPONSE_TOO_LARGE: _both(502, "BadResponse"),
    FailureKind.RESPONSE_HEADERS_TOO_LARGE: _both(502, "BadResponse"),
    FailureKind.IMAGE_UNAVAILABLE: _both(500, "InternalServerError"),
    FailureKind.QUEUE_FULL: _both(429, "ResourceExhausted"),
    FailureKind.QUEUE_TIMEOUT: _both(503, "ServiceUnavailable"),
    FailureKind.NO_CAPACITY: _both(503, "ServiceUnavailable"),
    FailureKind.DRAINING: _both(503, "ServiceUnavailable"),
    FailureKind.INTERNAL: _both(500, "InternalServerError"),
}

Sentence = Callable[[Failure, FunctionSpec], str]


def fc_message(failure: Failure, spec: FunctionSpec) -> str:
    """Return FC 3's sentence."""
    sentence = _FC3.get(failure.kind) or _SHARED.get(failure.kind)
    return sentence(failure, spec) if sentence else _plain(failure)


def fc2_message(failure: Failure, spec: FunctionSpec) -> str:
    """Return FC 2's sentence."""
    sentence = _FC2.get(failure.kind) or _SHARED.get(failure.kind)
    return sentence(failure, spec) if sentence else _plain(failure)


def _plain(failure: Failure) -> str:
    return failure.message or failure.kind.value.replace("_", " ")


def _logs(failure: Failure) -> str:
    return f"\nLogs:{log_words(failure)}"


def _command(spec: FunctionSpec) -> str:
    """Return the start command as the spec overrides it; empty when the image's own runs."""
    words = [*(spec.command or ()), *(spec.args or ())]
    return f" with start command '{' '.join(words)}'" if words else ""


def _ping(failure: Failure, spec: FunctionSpec) -> str:
    address = failure.address or "127.0.0.1"
    return f"dial tcp {address}:{failure.port or spec.port}: getsockopt: connection refused"


def _fc3_not_started(failure: Failure, spec: FunctionSpec) -> str:
    port = failure.port or spec.port
    limit = number(failure.limit or spec.startup_timeout_s)
    return (
        f"Function instance health check failed on port {port} in {limit} seconds.{_logs(failure)}"
    )


def _fc3_exited_at_start(failure: Failure, spec: FunctionSpec) -> str:
    return (
        f"Function instance exited unexpectedly({exit_words(failure)}){_command(spec)}."
        f"{_logs(failure)}"
    )


def _fc2_not_started(failure: Failure, spec: FunctionSpec) -> str:
    return (
        "The CA's http server cannot be started: "
        f"ContainerStartDuration: {nanoseconds(failure.waited_s)}. "
        f"Ping CA failed due to: {_ping(failure, spec)} Logs : {log_words(failure)}"
    )


def _fc2_exited_at_start(failure: Failure, spec: FunctionSpec) -> str:
    return (
        "The CA process either cannot be started or exited: "
        f"ContainerStartDuration: {nanoseconds(failure.waited_s)}. "
        f"Process exited ({exit_words(failure)}){_command(spec)} Logs : {log_words(failure)}"
    )


def _no_file(failure: Failure, spec: FunctionSpec) -> str:
    return f"The start command was not found{_command(spec)}: {_plain(failure)}{_logs(failure)}"


def _no_permission(failure: Failure, spec: FunctionSpec) -> str:
    return f"The start command may not be run{_command(spec)}: {_plain(failure)}{_logs(failure)}"


def _timed_out(failure: Failure, spec: FunctionSpec) -> str:
    return f"Function timed out after {number(failure.limit or spec.timeout_s)} seconds"


def _exited(failure: Failure, _: FunctionSpec) -> str:
    return (
        f"Process exited unexpectedly before completing request ({exit_words(failure)})."
        f"{_logs(failure)}"
    )


def _out_of_memory(failure: Failure, spec: FunctionSpec) -> str:
    return (
        f"Process was killed: out of memory, the limit is {spec.memory_mb} MB "
        f"({exit_words(failure)}).{_logs(failure)}"
    )


def _init_failed(failure: Failure, _: FunctionSpec) -> str:
    return f"Function initialize hook failed: {_plain(failure)}{_logs(failure)}"


_SHARED: dict[FailureKind, Sentence] = {
    FailureKind.FILE_NOT_FOUND: _no_file,
    FailureKind.FILE_PERMISSION: _no_permission,
    FailureKind.TIMEOUT: _timed_out,
    FailureKind.EXITED: _exited,
    FailureKind.OUT_OF_MEMORY: _out_of_memory,
    FailureKind.INIT_HOOK_FAILED: _init_failed,
}
_FC3: dict[FailureKind, Sentence] = {
    FailureKind.START_TIMEOUT: _fc3_not_started,
    FailureKind.EXITED_AT_START: _fc3_exited_at_start,
}
_FC2: dict[FailureKind, Sentence] = {
    FailureKind.START_TIMEOUT: _fc2_not_started,
    FailureKind.EXITED_AT_START: _fc2_exited_at_start,
}
