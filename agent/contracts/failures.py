"""From any error of the agent to the Failure that a contract can put into words, in one table.

Doors catch AgentError, ask `from_error`, and give the result to `Contract.error`. Errors that arise
before a contract is known are told in our own shape: `own_errors.py`.
"""

from __future__ import annotations

from agent.errors import (
    AgentError,
    AlreadyExists,
    FailedPrecondition,
    FunctionFailed,
    InvalidSpec,
    NotFound,
    Overloaded,
    PermissionDenied,
)
from agent.model.failure import Failure, FailureKind

_OVERLOADED = {
    "queue": FailureKind.QUEUE_FULL,
    "queue_timeout": FailureKind.QUEUE_TIMEOUT,
    "draining": FailureKind.DRAINING,
}
_CALLER = (InvalidSpec, FailedPrecondition, AlreadyExists, PermissionDenied)


def from_error(error: AgentError) -> Failure:
    """Return the failure an error stands for; what is nobody's fault we know of is INTERNAL."""
    if isinstance(error, FunctionFailed):
        return error.failure
    if isinstance(error, Overloaded):
        kind = _OVERLOADED.get(error.reason, FailureKind.NO_CAPACITY)
        return Failure(kind, error.message, retry_after_s=error.retry_after_s)
    if isinstance(error, NotFound):
        return Failure(FailureKind.FUNCTION_NOT_FOUND, error.message)
    if isinstance(error, _CALLER):
        return Failure(FailureKind.BAD_REQUEST, error.message)
    return Failure(FailureKind.INTERNAL, error.message)
