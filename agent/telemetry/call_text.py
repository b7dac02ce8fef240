"""The calls of all functions in prometheus' text format, written one function after the other.

The client library turns every number into an object first, a tenth of a second for a thousand
functions, in which no call is served. Here a function takes a few microseconds, and others come in
between. Within one function the figures are of one moment.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate, chain
from typing import Final

from agent.aio.slices import Slices
from agent.core.counters import BUCKETS_S, FunctionCounters

_BOUNDS: Final = (*map(str, BUCKETS_S), "+Inf")
_CLASSES: Final = ("gone", *(f"{digit}xx" for digit in range(1, 10)))
_SECONDS: Final = "kindling_call_duration_seconds"


async def call_text(functions: Iterable[FunctionCounters]) -> str:
    """Return the text; names of functions need no escapes."""
    replies = _head("counter", "kindling_calls_total", "Calls by function and class of reply.")
    failures = _head("counter", "kindling_call_failures_total", "Failed calls by kind.")
    cold = _head("counter", "kindling_cold_starts_total", "Calls that caused a start.")
    inflight = _head("gauge", "kindling_calls_inflight", "Calls waiting or running.")
    seconds = _head("histogram", _SECONDS, "Request read to reply sent.")
    slices = Slices()
    for one in list(functions):
        name = f'function="{one.name}"'
        replies += [
            f'kindling_calls_total{{class="{kind}",{name}}} {count}.0\n'
            for kind, count in zip(_CLASSES, one.classes, strict=True)
            if count
        ]
        failures += [
            f'kindling_call_failures_total{{{name},kind="{kind}"}} {count}.0\n'
            for kind, count in one.failures.items()
        ]
        cold.append(f"kindling_cold_starts_total{{{name}}} {one.cold_starts}.0\n")
        inflight.append(f"kindling_calls_inflight{{{name}}} {one.inflight}.0\n")
        seconds += _histogram(name, one)
        await slices.pause()
    return "".join(chain(replies, failures, cold, inflight, seconds))


def _head(kind: str, name: str, text: str) -> list[str]:
    """Return the lines of a metric, with those that stand above its samples."""
    return [f"# HELP {name} {text}\n# TYPE {name} {kind}\n"]


def _histogram(name: str, one: FunctionCounters) -> list[str]:
    totals = list(accumulate(one.buckets))
    lines = [
        f'{_SECONDS}_bucket{{{name},le="{bound}"}} {total}.0\n'
        for bound, total in zip(_BOUNDS, totals, strict=True)
    ]
    lines.append(f"{_SECONDS}_count{{{name}}} {totals[-1]}.0\n")
    lines.append(f"{_SECONDS}_sum{{{name}}} {one.seconds}\n")
    return lines
