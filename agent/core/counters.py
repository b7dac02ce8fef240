"""Calls in numbers: plain integers that a call increments.

`telemetry/metrics.py` makes samples of them when somebody asks.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60)


class FunctionCounters:
    """What happened to the calls of one function since the agent started."""

    __slots__ = ("buckets", "classes", "cold_starts", "failures", "inflight", "name", "seconds")

    def __init__(self, name: str) -> None:
        self.name = name
        self.classes = [0] * 10
        """Replies by the first digit of their status; 0 counts callers who went away."""
        self.failures: dict[str, int] = {}
        self.buckets = [0] * (len(BUCKETS_S) + 1)
        self.seconds = 0.0
        self.inflight = 0
        self.cold_starts = 0

    def ended(self, status: int, seconds: float) -> None:
        """Count one call that ended with `status` (0: the caller went away) after `seconds`."""
        self.classes[status // 100] += 1
        self.buckets[bisect_left(BUCKETS_S, seconds)] += 1
        self.seconds += seconds
        self.inflight -= 1

    def failed(self, kind: str) -> None:
        """Count one failure by its kind."""
        self.failures[kind] = self.failures.get(kind, 0) + 1


class CallCounters:
    """The callers' door in numbers. Functions are bounded by what is deployed: see `forget`."""

    def __init__(self) -> None:
        self.functions: dict[str, FunctionCounters] = {}
        self.connections = 0
        self.connections_total = 0
        self.connections_refused = 0
        self.upstream_connects = 0
        self.upstream_retries = 0
        self.requests_refused: dict[int, int] = {}

    def function(self, name: str) -> FunctionCounters:
        """Return the counters of one function, made at its first call."""
        counters = self.functions.get(name)
        if counters is None:
            counters = self.functions[name] = FunctionCounters(name)
        return counters

    def forget(self, name: str) -> None:
        """Drop the counters of a function that was removed."""
        self.functions.pop(name, None)

    def refused(self, status: int) -> None:
        """Count a request that never became a call."""
        self.requests_refused[status] = self.requests_refused.get(status, 0) + 1
