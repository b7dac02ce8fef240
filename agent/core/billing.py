"""What calls cost: rounding, memory times time, overlapping calls.

Times are float seconds and milliseconds as the names say. Which rounding a platform uses is
`agent/contracts`' choice; whose CPU time it was is `agent/core/metering.py`'s.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

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
