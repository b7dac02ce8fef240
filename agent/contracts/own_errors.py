"""Our own error shape, for calls whose contract is not known (yet).

`{"error":{"code","message","fault","retryable"},"request_id"}`, at the invoke endpoint.
Once a function is found, `Contract.error` speaks instead.
"""

from __future__ import annotations

import json
import math

from agent.contracts.base import Headers, Reply
from agent.errors import (
    Fault,
)

JSON: tuple[bytes, bytes] = (b"Content-Type", b"application/json")


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


def retry_after(seconds: float) -> tuple[bytes, bytes]:
    """Return a Retry-After header: whole seconds, at least one (RFC 9110 section 10.2.3)."""
    return (b"Retry-After", b"%d" % max(1, math.ceil(seconds)))
