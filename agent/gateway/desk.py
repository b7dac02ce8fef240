"""What all exchanges of one gateway share: time limits, request ids, counters, the way upstream.

Time is coarse: one timer for everything, armed only while there is something to watch. Calls of
equal time limit stand in one line in the order they began, so that a tick looks at the overdue ones
only. The rules of one call are in `exchange.py`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from agent.calls.ports import Target
from agent.contracts.base import CallKind
from agent.contracts.doors import Door, admits, call_kind

if TYPE_CHECKING:
    from agent.gateway.exchange import Exchange
    from agent.gateway.upstream import UpstreamConnector
    from agent.telemetry.metrics import CallCounters, FunctionCounters

TICK_S: Final = 0.1
"""How late a time limit may be noticed. Limits are whole seconds in every contract."""
ENTROPY_BYTES: Final = 16 * 256
"""Random bytes fetched at once for request ids."""
BUFFERED_BYTES: Final = 256 << 20
"""Bodies held in memory by all calls together: collected events and replies to them."""

DOORS: Final[tuple[Door, ...]] = ("fc_api", "tencent_api", "invoke", "http", "host")

Line = dict["Exchange", None]


class View:
    """One function version as exchanges use it: everything a warm call asks for, one step away."""

    __slots__ = (
        "acquire",
        "call_s",
        "cancel",
        "contract",
        "counters",
        "http_reply",
        "kind",
        "kinds",
        "line",
        "new_request_id",
        "release",
        "request_bytes",
        "request_head",
        "response_bytes",
        "short_head_bytes",
        "single",
        "target",
    )

    def __init__(self, target: Target, counters: FunctionCounters, line: Line) -> None:
        contract = target.contract
        spec = target.version.spec
        self.target = target
        self.contract = contract
        self.acquire = target.acquire
        self.release = target.release
        self.request_head = contract.request_head
        self.http_reply = contract.http_reply
        self.new_request_id = contract.new_request_id
        self.kind = contract.kind
        self.kinds: dict[Door, CallKind | None] = {
            door: call_kind(door, contract) if admits(door, contract) else None for door in DOORS
        }
        """How a call through each door reaches this function; None where it is not admitted."""
        self.short_head_bytes = min(contract.limits.header_bytes, contract.limits.target_bytes)
        """A head up to here cannot break either limit."""
        self.request_bytes = contract.limits.request_bytes
        self.response_bytes = contract.limits.response_bytes
        self.call_s = contract.limits.call_s
        self.single = spec.concurrency == 1
        self.cancel = spec.on_client_cancel
        self.counters = counters
        self.line = line


def _randoms() -> Iterator[bytes]:
    while True:
        entropy = os.urandom(ENTROPY_BYTES)
        yield from [entropy[at : at + 16] for at in range(0, ENTROPY_BYTES, 16)]


class Desk:
    """The shared part of a gateway. Lives on one loop; nothing here awaits."""

    def __init__(
        self,
        connector: UpstreamConnector,
        counters: CallCounters,
        zombie_s: float,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.connector = connector
        self.counters = counters
        self.zombie_s = zombie_s
        self.buffered_bytes = 0
        self.passing_on = False
        """Whether another worker serves: calls that wait for an instance are its calls."""
        self.loop = loop
        self.time = loop.time
        self.waiting: set[Exchange] = set()
        """Exchanges without a lease: queued, collecting a body, or waiting for a job."""
        self._views: dict[Target, View] = {}
        self._lines: dict[float, Line] = {}
        self.random: Callable[[], bytes] = _randoms().__next__
        """Returns 16 random bytes."""

    def view(self, target: Target) -> View:
        """Return the view of a target, made at its first call."""
        view = self._views.get(target)
        if view is None:
            if len(self._views) >= 4096:  # targets of removed versions; views are cheap to remake
                self._views.clear()
            counters = self.counters.function(target.version.name)
            view = View(target, counters, self.line(target.contract.limits.call_s))
            self._views[target] = view
        return view

    def line(self, limit_s: float) -> Line:
        """Return the line of calls with this time limit."""
        return self._lines.setdefault(limit_s, {})

    def watch_zombie(self, exchange: Exchange) -> None:
        """Watch an exchange whose caller was answered already."""
        exchange.deadline = self.time() + self.zombie_s
        exchange.line = self.line(self.zombie_s)
        exchange.line[exchange] = None

    def reserve(self, size: int) -> bool:
        """Count `size` bytes as held in memory; False when all calls together hold too much."""
        if self.buffered_bytes + size > BUFFERED_BYTES:
            return False
        self.buffered_bytes += size
        return True

    def unreserve(self, size: int) -> None:
        """Give bytes back."""
        self.buffered_bytes -= size

    def tick(self, now: float) -> None:
        """End what is overdue."""
        for line in list(self._lines.values()):
            overdue = []
            for exchange in line:
                if exchange.deadline > now:
                    break
                overdue.append(exchange)
            for exchange in overdue:
                exchange.expired()

    def sweep(self, now: float) -> None:
        """Close what was idle for long, and forget views: those in use are made again."""
        self.connector.sweep(now)
        self._views.clear()

    @property
    def busy(self) -> bool:
        """True while any time limit is to be kept."""
        return bool(self.waiting) or any(self._lines.values())

    def open_exchanges(self) -> list[Exchange]:
        """Return every exchange that has not ended."""
        return [*self.waiting, *(exchange for line in self._lines.values() for exchange in line)]
