"""What the gateway itself adds to replies, and failures put into a contract's words.

Pure but for the clock, and for the log line when a dialect fails. `exchange.py` says when.
"""

from __future__ import annotations

import logging
from time import perf_counter
from typing import Final

from agent.contracts.base import Call, CallReport, Contract, Headers, Reply
from agent.contracts.own_errors import own_error, retry_after
from agent.model.failure import Failure, FailureKind
from agent.model.records import ColdStart

log = logging.getLogger(__name__)

_COME_AGAIN: Final = frozenset(
    (
        FailureKind.QUEUE_FULL,
        FailureKind.QUEUE_TIMEOUT,
        FailureKind.NO_CAPACITY,
        FailureKind.DRAINING,
    )
)


def response_too_large(limit: int) -> Failure:
    """Return the failure of a reply of more than `limit` bytes; how many more nobody may know."""
    message = f"the response is larger than {limit} bytes"
    return Failure(FailureKind.RESPONSE_TOO_LARGE, message, limit=limit)


def mark(headers: Headers, request_id: str, cold: ColdStart | None) -> None:
    """Add the headers that say which call this was, and what start it caused."""
    headers.append((b"X-Kindling-Request-Id", request_id.encode()))
    if cold is not None:
        headers.append((b"X-Kindling-Cold-Start", b"%.3f" % cold.total_ms))


def server_timing(
    started_at: float, granted_at: float, cold: ColdStart | None
) -> tuple[bytes, bytes]:
    """Return the Server-Timing header: waiting, the function, and the phases of a start.

    Times are of `perf_counter`; `granted_at` is 0 for a call that got no instance.
    """
    now = perf_counter()
    granted_at = granted_at or now
    phases = {"wait": (granted_at - started_at) * 1000, "function": (now - granted_at) * 1000}
    if cold is not None:
        phases |= {f"start-{name}": ms for name, ms in cold.phases().items()}
    value = ", ".join(f"{name};dur={ms:.3f}" for name, ms in phases.items())
    return (b"Server-Timing", value.encode())


def failure_reply(
    contract: Contract, failure: Failure, call: Call, report: CallReport | None
) -> Reply:
    """Return the contract's words for a failure, with Retry-After where coming again helps."""
    try:
        reply = contract.error(failure, call, report)
    except Exception:  # a dialect's fault must not leave the caller without an answer
        log.exception("call %s: no words for %s", call.request_id, failure.kind)
        reply = own_error(500, "Bug", "the error could not be told", call.request_id)
    headers = list(reply.headers)
    if failure.kind in _COME_AGAIN and not any(n.lower() == b"retry-after" for n, _ in headers):
        headers.append(retry_after(failure.retry_after_s))
    return Reply(reply.status, headers, reply.body)
