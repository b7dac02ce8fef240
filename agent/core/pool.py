"""The decisions for one function version: which instance serves, who waits, what to start or stop.

Members are instances as the pool sees them: how many calls each has, whether it serves yet. The one
used last is used first, so that spare ones grow idle and go. Waiters queue in order of arrival.
Hot methods (`take`, `enqueue`, `release`, `abandon`) cost the same however many members there are;
`idle` and `expired` look at everything and belong on a timer.

Nothing is started, stopped or told from here; every method takes `now` and returns what should
happen. `agent/calls/target.py` and `agent/instances/scaling.py` do it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import Generic, TypeVar

from agent.errors import Bug, Overloaded

T = TypeVar("T")
W = TypeVar("W")

FIRST_BACKOFF_S = 0.5
LAST_BACKOFF_S = 30.0
STABLE_S = 10.0  # a member that ends by itself before this time might as well not have started
QUEUE_RETRY_AFTER_S = 1.0


class Stage(Enum):
    """How far a member is: only READY ones get calls."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Policy:
    """What the spec says about one version; `concurrency` is per instance, `min` never undercut."""

    concurrency: int = 1
    min: int = 0
    max: int = 100
    max_queue: int = 1000
    idle_s: float = 300.0


class Member(Generic[T]):
    """One instance in the pool. `strikes` counts the failures before it served."""

    __slots__ = (
        "idle_since",
        "inflight",
        "instance",
        "ready_at",
        "stacked",
        "stage",
        "strikes",
    )

    def __init__(self, instance: T, now: float) -> None:
        self.instance = instance
        self.stage = Stage.STARTING
        self.inflight = 0
        self.idle_since = now
        self.ready_at = -inf
        self.strikes = 0
        self.stacked = False

    def __repr__(self) -> str:
        return f"<{self.instance} {self.stage.value} {self.inflight}>"


class Pool(Generic[T, W]):
    """Members and waiters of one version.

    Invariants: no member above `policy.concurrency`; nobody waits while a READY member has room;
    every waiter leaves exactly once, by `ready`, `adopted`, `release`, `expired`, `abandon`,
    `failed` or `close`. `policy` may be replaced, all but its concurrency.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._room = policy.concurrency
        self.closed = False
        self.starting = 0
        self.ready_count = 0
        self.inflight = 0
        self.failures = 0
        self._retry_at = -inf
        self._members: dict[Member[T], None] = {}
        self._stack: list[Member[T]] = []
        self._queue: OrderedDict[W, float] = OrderedDict()
        self._earliest = inf

    # -- calls, hot

    def take(self, now: float) -> Member[T] | None:
        """Occupy a place on the member used last that has room, or return None."""
        del now
        if not self._stack:
            return None
        member = self._stack[-1]
        member.inflight = inflight = member.inflight + 1
        self.inflight += 1
        if inflight >= self._room:
            self._stack.pop()
            member.stacked = False
        return member

    def enqueue(self, waiter: W, now: float, deadline: float) -> None:
        """Let a call wait until `deadline`; call it only after `take` returned None.

        Raises Overloaded: `draining` when the pool is closed, `queue` when it is full.
        """
        if self.closed:
            raise Overloaded("the function is being removed", reason="draining")
        if len(self._queue) >= self.policy.max_queue:
            raise Overloaded(
                f"the queue is full: {len(self._queue)} calls wait (max_queue)",
                reason="queue",
                retry_after_s=QUEUE_RETRY_AFTER_S,
            )
        if waiter in self._queue:
            raise Bug(f"{waiter!r} waits already")
        self._queue[waiter] = max(deadline, now)
        self._earliest = min(self._earliest, deadline)

    def release(self, member: Member[T], now: float) -> W | None:
        """Give a place back; the waiter returned has it now.

        On a member that drains nobody gets it; `is_empty` says when the last call has left. On one
        that is gone nothing happens.
        """
        if member.stage is Stage.GONE:
            return None
        inflight = member.inflight
        if not inflight:
            raise Bug(f"{member!r} has no call to release")
        if self._queue and member.stage is Stage.READY and inflight <= self._room:
            return self._queue.popitem(last=False)[0]  # the leaving call still counted
        member.inflight = inflight = inflight - 1
        self.inflight -= 1
        if not inflight:
            member.idle_since = now
        if not member.stacked:
            self._stack_if_room(member)
        return None

    def abandon(self, waiter: W) -> bool:
        """Forget a waiter; False when it no longer waits."""
        return self._queue.pop(waiter, None) is not None

    # -- members

    def added(self, instance: T, now: float) -> Member[T]:
        """Count an instance whose start begins now."""
        member = Member(instance, now)
        self._members[member] = None
        self.starting += 1
        return member

    def ready(self, member: Member[T], now: float, taken: int = 0) -> list[W]:
        """Note that a member serves; the waiters returned have a place on it each, in order.

        `taken` places on it are in calls of another worker, which started it.
        """
        if member.stage is not Stage.STARTING:
            raise Bug(f"{member!r} was not starting")
        member.stage = Stage.READY
        member.idle_since = now
        self.starting -= 1
        self.ready_count += 1
        member.ready_at, member.strikes = now, self.failures
        self.failures, self._retry_at = 0, -inf
        member.inflight += taken
        self.inflight += taken
        return self._serve(member)

    def adopted(self, instance: T, now: float, taken: int = 0) -> tuple[Member[T], list[W]]:
        """Count an instance that already serves, with `taken` calls of other workers in flight.

        Those are released like any other call. The waiters returned have a place on it each.
        """
        member = self.added(instance, now)
        member.inflight = taken
        self.inflight += taken
        member.stage = Stage.READY
        self.starting -= 1
        self.ready_count += 1
        return member, self._serve(member)

    def drain(self, member: Member[T]) -> bool:
        """Give a member no more calls; True when it has none left."""
        if member.stage is Stage.GONE:
            return True
        self._uncount(member)
        member.stage = Stage.DRAINING
        return member.inflight == 0

    def is_empty(self, member: Member[T]) -> bool:
        """Say whether a member has no call left."""
        return member.inflight == 0

    def gone(self, member: Member[T]) -> None:
        """Forget a member that has ended, whatever it was doing; safe to call twice."""
        if member.stage is Stage.GONE:
            return
        self._uncount(member)
        self.inflight -= member.inflight
        member.inflight = 0
        member.stage = Stage.GONE
        del self._members[member]

    def crashed(self, member: Member[T], now: float) -> None:
        """Forget a member that served and whose process ended by itself.

        Soon after its start it counts as one more failed start, else nothing paused between the
        starts of a function that crashes as soon as it serves.
        """
        young = member.stage is Stage.READY and now - member.ready_at < STABLE_S
        self.gone(member)
        if young:
            self.failures = member.strikes + 1
            self._retry_at = now + self._backoff_s()

    def failed(self, member: Member[T], now: float) -> list[W]:
        """Forget a member whose start failed; return the waiters that must now be refused.

        Nobody, while another member serves. Everybody, when none is left that starts. Between the
        two as many as this start was for and the remaining starts are not, oldest first; a function
        that always crashes would otherwise be started for ever.
        """
        self.gone(member)
        self.failures += 1
        self._retry_at = now + self._backoff_s()
        if self.ready_count:
            return []
        refused = len(self._queue)
        if self.starting:
            uncovered = refused - self.starting * self.policy.concurrency
            refused = max(0, min(uncovered, self.policy.concurrency))
        return [self._queue.popitem(last=False)[0] for _ in range(refused)]

    def close(self) -> list[W]:
        """Take no more calls, for good; return the waiters to refuse."""
        self.closed = True
        for member in self._stack:
            member.stacked = False
        self._stack.clear()
        refused = list(self._queue)
        self._queue.clear()
        self._earliest = inf
        return refused

    # -- on a timer, or after a change

    def starts_wanted(self, now: float) -> int:
        """Say how many instances to start now: for waiters not yet covered, and up to `min`.

        After failed starts both wait for a growing pause, unless nothing serves or starts and
        somebody waits: then each new call is one more try.
        """
        if self.closed:
            return 0
        serving = self.starting + self.ready_count
        uncovered = len(self._queue) - self.starting * self.policy.concurrency
        for_waiters = -(-uncovered // self.policy.concurrency) if uncovered > 0 else 0
        if now < self._retry_at and not (for_waiters and serving == 0):
            return 0
        wanted = max(for_waiters, self.policy.min - serving)
        return max(0, min(wanted, self.policy.max - serving))

    def expired(self, now: float) -> list[W]:
        """Remove and return the waiters whose deadline has passed, in order."""
        if now < self._earliest:
            return []
        late = [waiter for waiter, deadline in self._queue.items() if deadline <= now]
        for waiter in late:
            del self._queue[waiter]
        self._earliest = min(self._queue.values(), default=inf)
        return late

    def idle(self, now: float, idle_s: float | None = None) -> list[Member[T]]:
        """Return members idle for `idle_s` and not needed for `min`, longest idle first.

        `idle_s` is the policy's unless given: another function may want their room sooner.
        """
        least_s = self.policy.idle_s if idle_s is None else idle_s
        spare = self.ready_count - (0 if self.closed else self.policy.min)
        due = [
            member
            for member in self._members
            if member.stage is Stage.READY
            and member.inflight == 0
            and now - member.idle_since >= least_s
        ]
        due.sort(key=lambda member: member.idle_since)
        return due[: max(0, spare)]

    @property
    def waiting(self) -> int:
        """How many calls wait."""
        return len(self._queue)

    @property
    def members(self) -> tuple[Member[T], ...]:
        """Every member that has not gone, oldest first."""
        return tuple(self._members)

    def __repr__(self) -> str:
        state = "closed " if self.closed else ""
        failures = f" failures={self.failures}" if self.failures else ""
        return (
            f"<Pool {state}ready={self.ready_count} starting={self.starting} "
            f"inflight={self.inflight} waiting={len(self._queue)}{failures} {list(self._members)}>"
        )

    # -- inside

    def _backoff_s(self) -> float:
        return float(min(FIRST_BACKOFF_S * 2 ** min(self.failures - 1, 16), LAST_BACKOFF_S))

    def _serve(self, member: Member[T]) -> list[W]:
        served: list[W] = []
        while self._queue and member.inflight < self.policy.concurrency:
            served.append(self._queue.popitem(last=False)[0])
            member.inflight += 1
            self.inflight += 1
        self._stack_if_room(member)
        return served

    def _stack_if_room(self, member: Member[T]) -> None:
        if (
            not member.stacked
            and not self.closed
            and member.stage is Stage.READY
            and member.inflight < self.policy.concurrency
        ):
            member.stacked = True
            self._stack.append(member)

    def _uncount(self, member: Member[T]) -> None:
        if member.stage is Stage.STARTING:
            self.starting -= 1
        elif member.stage is Stage.READY:
            self.ready_count -= 1
        if member.stacked:
            self._stack.remove(member)
            member.stacked = False
