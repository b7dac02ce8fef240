"""What calls cost: rounding, memory times time, overlapping calls, shares of CPU.

Times are float seconds and milliseconds as the names say, CPU readings whole microseconds of the
instance's cgroup. Which rounding a platform uses is `agent/contracts`' choice; reading the cgroup
is `agent/cgroups`'.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable

MB_PER_GB = 1024


def billed_ms(wall_ms: float, step_ms: float = 1.0) -> float:
    """Round a duration up to whole steps, at least one.

    Readings carry float noise in the last digits; a billionth of a step more is not a step more.
    """
    return max(1, math.ceil(wall_ms / step_ms - 1e-9)) * step_ms


def gb_s(memory_mb: int, seconds: float) -> float:
    """Return memory size times time, in GB-seconds (1 GB = 1024 MB)."""
    return memory_mb / MB_PER_GB * max(0.0, seconds)


def pull_gb_s(memory_mb: int, waited_s: float) -> float:
    """Return what a start's wait for its image costs: the memory size for as long as it waited."""
    return gb_s(memory_mb, waited_s)


def union_s(intervals: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of (begin, end) intervals, seconds; overlap counts once."""
    total = 0.0
    until = -math.inf
    for begin, end in sorted(intervals):
        if end > until:
            total += end - max(begin, until)
            until = end
    return total


class BusyTime:
    """How long an instance had at least one call: the union of its calls, without keeping them."""

    __slots__ = ("_busy_s", "_inflight", "_since")

    def __init__(self) -> None:
        self._busy_s = 0.0
        self._inflight = 0
        self._since = 0.0

    def begin(self, now: float) -> None:
        """A call has begun."""
        if self._inflight == 0:
            self._since = now
        self._inflight += 1

    def end(self, now: float) -> None:
        """A call has ended; one end per begin."""
        self._inflight -= 1
        if self._inflight == 0:
            self._busy_s += now - self._since

    def seconds(self, now: float) -> float:
        """Return the busy time so far."""
        running = now - self._since if self._inflight else 0.0
        return self._busy_s + running


class _Share:
    __slots__ = ("alone", "base_us", "joins")

    def __init__(self, base_us: float, joins: int, *, alone: bool) -> None:
        self.base_us = base_us
        self.joins = joins
        self.alone = alone


class CpuShares:
    """CPU time of single calls out of one instance's counter.

    Between two readings the instance's CPU time is split evenly among the calls in flight. A call
    that was alone from begin to end has the exact figure; what an idle instance burns is nobody's.
    """

    __slots__ = ("_calls", "_joins", "_last_us", "_share_us")

    def __init__(self) -> None:
        self._calls: dict[Hashable, _Share] = {}
        self._joins = 0
        self._last_us = 0
        self._share_us = 0.0

    def begin(self, call: Hashable, cpu_us: int) -> None:
        """A call begins while the counter stands at `cpu_us`; `call` tells it from others."""
        self._advance(cpu_us)
        if self._calls:
            self._joins += 1
        self._calls[call] = _Share(self._share_us, self._joins, alone=not self._calls)

    def end(self, call: Hashable, cpu_us: int) -> tuple[float, bool]:
        """Return the call's CPU milliseconds and whether they are exact; unknown calls cost 0."""
        self._advance(cpu_us)
        share = self._calls.pop(call, None)
        if share is None:
            return 0.0, False
        exact = share.alone and share.joins == self._joins
        return (self._share_us - share.base_us) / 1000, exact

    def _advance(self, cpu_us: int) -> None:
        if self._calls:
            self._share_us += max(0, cpu_us - self._last_us) / len(self._calls)
        self._last_us = max(self._last_us, cpu_us)
