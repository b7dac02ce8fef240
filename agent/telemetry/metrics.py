"""The agent's metrics: a prometheus registry of its own, and plain counters for the warm path.

A call increments plain integers (`CallCounters`), which become text when somebody asks: those of
functions, of which there may be many, in `call_text.py`. Other rooms hand in functions that read a
value at that moment. Nothing here knows what a call is made of, and nothing is sampled in the
background but the loop's lag.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from agent.aio.slices import Slices
from agent.core.counters import CallCounters
from agent.telemetry.call_text import call_text

START_BUCKETS_S: Final = (0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.3, 0.6, 1.2, 2.5, 5, 10, 30)
LAG_PERIOD_S: Final = 0.1  # a loop that is held up for less may go unseen
MINUTE_S: Final = 60.0

Reading = float | Mapping[tuple[str, ...], float]
Read = Callable[[], Reading]


class LoopLag:
    """How late the event loop runs its timers, seconds: while it is late, every call waits.

    What is told is the worst of the present and the last minute, so that whoever reads takes
    nothing away from the next reader.
    """

    def __init__(self) -> None:
        self._worst_s = 0.0
        self._before_s = 0.0
        self._minute_ends = 0.0
        self._due = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to measure on the running loop."""
        self._arm(asyncio.get_running_loop(), time.monotonic())

    def stop(self) -> None:
        """Stop measuring; safe to repeat."""
        self._due = math.inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def worst_s(self) -> float:
        """Return the worst lag lately, a timer that is late right now included."""
        return max(self._worst_s, self._before_s, time.monotonic() - self._due)

    def _arm(self, loop: asyncio.AbstractEventLoop, now: float) -> None:
        self._due = now + LAG_PERIOD_S
        self._timer = loop.call_later(LAG_PERIOD_S, self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        now = time.monotonic()
        if now >= self._minute_ends:
            self._before_s, self._worst_s = self._worst_s, 0.0
            self._minute_ends = now + MINUTE_S
        self._worst_s = max(self._worst_s, now - self._due)
        self._arm(loop, now)


class AgentMetrics:
    """One registry for one agent; nothing global, so two agents fit in one test process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.calls = CallCounters()
        self.lag = LoopLag()
        self.registry.register(_Door(self.calls))
        self.gauge(
            "kindling_loop_lag_seconds",
            "Worst lateness of the event loop lately.",
            self.lag.worst_s,
        )

    def gauge(self, name: str, text: str, read: Read, labels: Sequence[str] = ()) -> None:
        """Register a gauge read when asked; with `labels`, `read` returns values by label tuple."""
        self.registry.register(_Readings(GaugeMetricFamily, name, text, read, labels))

    def counter(self, name: str, text: str, read: Read, labels: Sequence[str] = ()) -> None:
        """Register a counter kept as plain numbers elsewhere."""
        self.registry.register(_Readings(CounterMetricFamily, name, text, read, labels))

    def histogram(
        self,
        name: str,
        text: str,
        labels: Sequence[str] = (),
        buckets: Sequence[float] = START_BUCKETS_S,
    ) -> Histogram:
        """Return a histogram for cold paths (starts, pulls), seconds."""
        return Histogram(name, text, labels, registry=self.registry, buckets=buckets)

    async def render(self) -> bytes:
        """Return everything in prometheus' text format."""
        slices, parts = Slices(), []
        for family in self.registry.collect():
            parts.append(generate_latest(_One(family)))
            await slices.pause()
        functions = await call_text(self.calls.functions.values())
        return b"".join((*parts, functions.encode()))


class _One(CollectorRegistry):
    """A registry of one metric as it is now."""

    def __init__(self, family: Metric) -> None:
        super().__init__()
        self._family = family

    def collect(self) -> Iterator[Metric]:
        yield self._family


class _Readings(Collector):
    def __init__(
        self,
        family: type[GaugeMetricFamily | CounterMetricFamily],
        name: str,
        text: str,
        read: Read,
        labels: Sequence[str],
    ) -> None:
        self._family, self._name, self._text = family, name, text
        self._read, self._labels = read, labels

    def describe(self) -> list[Metric]:
        return [self._family(self._name, self._text, labels=self._labels)]

    def collect(self) -> Iterator[Metric]:
        family = self._family(self._name, self._text, labels=self._labels)
        reading = self._read()
        if isinstance(reading, Mapping):
            for values, value in reading.items():
                family.add_metric(values, value)
        else:
            family.add_metric((), reading)
        yield family


class _Door(Collector):
    def __init__(self, calls: CallCounters) -> None:
        self._calls = calls

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        calls = self._calls
        yield GaugeMetricFamily(
            "kindling_connections", "Open connections of callers.", calls.connections
        )
        for name, text, value in (
            ("kindling_connections_accepted", "Connections accepted.", calls.connections_total),
            (
                "kindling_connections_refused",
                "Connections over the limit.",
                calls.connections_refused,
            ),
            ("kindling_upstream_connects", "Connections to instances.", calls.upstream_connects),
            ("kindling_upstream_retries", "Requests sent again.", calls.upstream_retries),
        ):
            yield CounterMetricFamily(name, text, value)
        refused = CounterMetricFamily(
            "kindling_requests_refused", "Requests that never became a call.", labels=["status"]
        )
        for status, count in calls.requests_refused.items():
            refused.add_metric([str(status)], count)
        yield refused
