"""Our own error shape, for calls whose contract is not known (yet).

`{"error":{"code","message","fault","retryable"},"request_id"}`, at the invoke endpoint.
Once a function is found, `Contract.error` speaks instead.
"""

from __future__ import annotations

import json
import math

from agent.contracts.base import Headers, Reply
from agent.errors import (
    AgentError,
    AlreadyExists,
    FailedPrecondition,
    Fault,
    FunctionFailed,
    InvalidSpec,
    NotFound,
    Overloaded,
    PermissionDenied,
    RuntimeUnavailable,
)

JSON: tuple[bytes, bytes] = (b"Content-Type", b"application/json")

_STATUS: tuple[tuple[type[AgentError], int], ...] = (
    (InvalidSpec, 400),
    (PermissionDenied, 403),
    (NotFound, 404),
    (AlreadyExists, 409),
    (FailedPrecondition, 412),
    (FunctionFailed, 502),
    (RuntimeUnavailable, 503),
)


def own_error(  # noqa: PLR0913 - the fields of the shape, one by one
    status: int,
    code: str,
    message: str,
    request_id: str,
    *,
    fault: Fault = "caller",
    retryable: bool = False,
    headers: Headers | None = None,
) -> Reply:
    """Return a reply in our own error shape."""
    body = {
        "error": {"code": code, "message": message, "fault": fault, "retryable": retryable},
        "request_id": request_id,
    }
    return Reply(status, [JSON, *(headers or [])], json.dumps(body).encode())


def own_error_of(error: AgentError, request_id: str) -> Reply:
    """Return an error of the agent in our own shape; Overloaded says when to come back."""
    headers: Headers = []
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    if isinstance(error, Overloaded):
        status = 429 if error.reason == "queue" else 503
        headers = [retry_after(error.retry_after_s)]
    return own_error(
        status,
        error.code,
        error.message,
        request_id,
        fault=error.fault,
        retryable=error.retryable,
        headers=headers,
    )


def retry_after(seconds: float) -> tuple[bytes, bytes]:
    """Return a Retry-After header: whole seconds, at least one (RFC 9110 section 10.2.3)."""
    return (b"Retry-After", b"%d" % max(1, math.ceil(seconds)))
