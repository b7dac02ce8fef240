"""What stands between a caller's head and its exchange: the kind of call, and its limits."""

from __future__ import annotations

from agent.contracts.base import Call, CallKind
from agent.contracts.doors import Route
from agent.gateway.exchanges.event import EventExchange
from agent.gateway.exchanges.exchange import Exchange
from agent.gateway.exchanges.http import HttpExchange
from agent.gateway.exchanges.job import JobExchange
from agent.gateway.exchanges.shared import Callee, SharedState
from agent.gateway.wire.head import RequestHead
from agent.gateway.wire.ports import Caller
from agent.model.failure import Failure, FailureKind


def exchange_of(
    kind: CallKind,
    shared: SharedState,
    callee: Callee,
    call: Call,
    caller: Caller,
    length: int | None,
) -> Exchange:
    """Return a new exchange for this kind of call; `length` is that of the body."""
    if kind == "http":
        return HttpExchange(shared, callee, call, caller, length)
    if kind == "event":
        return EventExchange(shared, callee, call, caller, length)
    return JobExchange(shared, callee, call, caller, length)


def too_long(head: RequestHead, route: Route, callee: Callee) -> Failure | None:
    """Return the failure when head or target are larger than the contract allows."""
    limits = callee.contract.limits
    if len(route.target) > limits.target_bytes > 0:
        message = f"path and query are longer than {limits.target_bytes} bytes"
        return Failure(FailureKind.HEADERS_TOO_LARGE, message, limit=limits.target_bytes)
    if head.size - len(head.target) > limits.header_bytes > 0:
        message = f"the request's headers are larger than {limits.header_bytes} bytes"
        return Failure(FailureKind.HEADERS_TOO_LARGE, message, limit=limits.header_bytes)
    return None
