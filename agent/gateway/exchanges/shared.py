"""What all calls of one gateway share: time limits, request ids, counters, the way upstream.

Time is coarse: one timer for everything, armed only while there is something to watch. Calls of
equal time limit stand in one queue in the order they began, so that a tick looks at the overdue
ones only. The rules of one call are in `exchange.py`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from agent.calls.ports import Target
from agent.contracts.base import CallKind
from agent.contracts.doors import Door, admits, call_kind
from agent.core.counters import CallCounters, FunctionCounters
from agent.gateway.wire.upstream import UpstreamConnector

TICK_S: Final = 0.1
"""How late a time limit may be noticed. Limits are whole seconds in every contract."""
ENTROPY_BYTES: Final = 16 * 256
"""Random bytes fetched at once for request ids."""
BUFFERED_BYTES: Final = 256 << 20
"""Bodies held in memory by all calls together: collected events and replies to them."""

DOORS: Final[tuple[Door, ...]] = ("fc_api", "tencent_api", "invoke", "http", "host")


class OpenCall(Protocol):
    """A call that has not ended. `deadline` is absolute loop time, `deadlines` where it stands."""

    deadline: float
    deadlines: DeadlineQueue

    def expired(self) -> None:
        """The deadline has passed."""

    def cut(self) -> None:
        """End now, because the gateway closes."""


DeadlineQueue = dict[OpenCall, None]
"""Calls of one time limit, the earliest deadline first."""


class Callee:
    """A function version as its calls use it: everything a warm call asks for, one step away."""

    __slots__ = (
        "acquire",
        "call_s",
        "cancel",
        "contract",
        "counters",
        "deadlines",
        "http_reply",
        "keeps_s",
        "kind",
        "kinds",
        "new_request_id",
        "release",
        "request_bytes",
        "request_head",
        "response_bytes",
        "short_head_bytes",
        "single",
        "target",
    )

    def __init__(
        self, target: Target, counters: FunctionCounters, deadlines: DeadlineQueue
    ) -> None:
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
        self.deadlines = deadlines
        self.keeps_s = 0.0
        """For how long the function says that it keeps connections; 0 if it does not."""


def _randoms() -> Iterator[bytes]:
    while True:
        entropy = os.urandom(ENTROPY_BYTES)
        yield from [entropy[at : at + 16] for at in range(0, ENTROPY_BYTES, 16)]


class SharedState:
    """What the calls of one gateway share. Lives on one loop; nothing here awaits."""

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
        self.buffered_most_bytes = BUFFERED_BYTES
        self.loop = loop
        self.time = loop.time
        self.waiting: set[OpenCall] = set()
        """Calls without a lease: queued, collecting a body, or waiting for a job."""
        self._callees: dict[Target, Callee] = {}
        self._queues: dict[float, DeadlineQueue] = {}
        self.random: Callable[[], bytes] = _randoms().__next__
        """Returns 16 random bytes."""

    def callee(self, target: Target) -> Callee:
        """Return the callee of a target, made at its first call."""
        callee = self._callees.get(target)
        if callee is None:
            if (
                len(self._callees) >= 4096
            ):  # targets of removed versions; callees are cheap to remake
                self._callees.clear()
            counters = self.counters.function(target.version.name)
            callee = Callee(target, counters, self.deadlines(target.contract.limits.call_s))
            self._callees[target] = callee
        return callee

    def deadlines(self, limit_s: float) -> DeadlineQueue:
        """Return the queue of calls with this time limit."""
        return self._queues.setdefault(limit_s, {})

    def watch_zombie(self, call: OpenCall) -> None:
        """Watch a call whose caller was answered already."""
        call.deadline = self.time() + self.zombie_s
        call.deadlines = self.deadlines(self.zombie_s)
        call.deadlines[call] = None

    def reserve(self, size: int) -> bool:
        """Count `size` bytes as held in memory; False when all calls together hold too much."""
        if self.buffered_bytes + size > self.buffered_most_bytes:
            return False
        self.buffered_bytes += size
        return True

    def unreserve(self, size: int) -> None:
        """Give bytes back."""
        self.buffered_bytes -= size

    def tick(self, now: float) -> None:
        """End what is overdue."""
        for queue in list(self._queues.values()):
            overdue = []
            for call in queue:
                if call.deadline > now:
                    break
                overdue.append(call)
            for call in overdue:
                call.expired()

    def sweep(self, now: float) -> None:
        """Close what was idle for long, and forget callees: those in use are made again."""
        self.connector.sweep(now)
        self._callees.clear()

    @property
    def busy(self) -> bool:
        """True while any time limit is to be kept."""
        return bool(self.waiting) or any(self._queues.values())

    def open_calls(self) -> list[OpenCall]:
        """Return every call that has not ended."""
        return [*self.waiting, *(call for queue in self._queues.values() for call in queue)]
