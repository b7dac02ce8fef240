"""A caller's head and where it goes: the conclusions that a head which comes again need not repeat.

What follows from what is deployed holds for one generation of the catalog.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from agent.contracts.base import CallKind
from agent.contracts.doors import Route
from agent.gateway.exchanges.event import EventExchange
from agent.gateway.exchanges.exchange import Exchange
from agent.gateway.exchanges.http import HttpExchange
from agent.gateway.exchanges.job import JobExchange
from agent.gateway.exchanges.shared import Callee
from agent.gateway.wire.client import ClientConnection
from agent.gateway.wire.head import RequestHead
from agent.model.failure import Failure, FailureKind

NOWHERE: Final = Route("http", "")
"""The route of a head that was not routed yet."""
EXCHANGES: Final[dict[CallKind, type[Exchange]]] = {
    "http": HttpExchange,
    "event": EventExchange,
    "job": JobExchange,
}


class RoutedHead(RequestHead):
    """A caller's head, and what follows from it."""

    route: Route = NOWHERE
    callee: Callee | None = None
    generation = -1
    """Of the catalog when `callee` was found; until it changes, that is where this head goes."""
    kind: CallKind = "event"
    make: Callable[..., Exchange]
    """Makes the exchange of this kind of call; set with `callee`."""
    want_log_tail = False


Client = ClientConnection[RoutedHead]


def too_long(head: RoutedHead, route: Route, callee: Callee) -> Failure | None:
    """Return the failure when head or target are larger than the contract allows."""
    limits = callee.contract.limits
    if len(route.target) > limits.target_bytes > 0:
        message = f"path and query are longer than {limits.target_bytes} bytes"
        return Failure(FailureKind.HEADERS_TOO_LARGE, message, limit=limits.target_bytes)
    if head.size - len(head.target) > limits.header_bytes > 0:
        message = f"the request's headers are larger than {limits.header_bytes} bytes"
        return Failure(FailureKind.HEADERS_TOO_LARGE, message, limit=limits.header_bytes)
    return None
