"""What is done with samples: medians, percentiles, ratios, goals, and the table that shows them.

Pure: lists of numbers in, plain values and text out. A ratio is of medians, with the quartiles of
the ratios of neighbouring rounds beside it, because both saw the machine in the same mood.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

BAR = 44


@dataclass(frozen=True, slots=True)
class Summary:
    """The distribution of one figure, in the unit of its samples."""

    n: int
    median: float
    p90: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Ratio:
    """One figure over another: of the medians, and the quartiles over the rounds."""

    of_medians: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure and its limit; `at_most` says on which side of it the figure has to be."""

    text: str
    value: float
    limit: float
    at_most: bool = True

    @property
    def held(self) -> bool:
        """Whether the figure is on the right side; the limit itself is."""
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    def sentence(self) -> str:
        """Say the goal, the figure and whether it is reached."""
        sign = "<=" if self.at_most else ">="
        verdict = "reached" if self.held else "MISSED"
        return f"{verdict:8}{self.text} {sign} {number(self.limit)}: {number(self.value)}"


def percentile(samples: Sequence[float], percent: float) -> float:
    """Return a percentile by linear interpolation between the closest ranks; raises ValueError."""
    if not samples:
        raise ValueError("no samples")
    if not 0 <= percent <= 100:
        raise ValueError(f"{percent} is no percentage")
    ordered = sorted(samples)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def summary(samples: Sequence[float]) -> Summary:
    """Return the summary of at least one sample; raises ValueError."""
    return Summary(
        len(samples),
        percentile(samples, 50),
        percentile(samples, 90),
        percentile(samples, 0),
        percentile(samples, 100),
    )


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Return ours over theirs; both lists are of the same rounds, in order. Raises ValueError."""
    pairs = [a / b for a, b in zip(ours, theirs, strict=True)]
    return Ratio(
        statistics.median(ours) / statistics.median(theirs),
        percentile(pairs, 25),
        percentile(pairs, 75),
    )


def number(value: float) -> str:
    """Return a number with about three significant digits."""
    size = abs(value)
    if size >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def table(rows: Mapping[str, Sequence[float]], unit: str) -> list[str]:
    """Return lines with median, p90, range and a bar for each row of samples."""
    found = {name: summary(samples) for name, samples in rows.items()}
    width = max(map(len, found), default=0)
    longest = max((one.median for one in found.values()), default=0) or 1
    head = f"{'':{width}} {'median':>9} {'p90':>9} {'min':>9} {'max':>9}  {unit}"
    lines = [head]
    for name, one in found.items():
        cells = "".join(f" {number(v):>9}" for v in (one.median, one.p90, one.low, one.high))
        lines.append(f"{name:{width}}{cells}  {'#' * bar_length(one.median, longest)}")
    return lines


def bar_length(value: float, longest: float) -> int:
    """Return how many characters a bar has; every value above zero has one at least."""
    if value <= 0 or longest <= 0:
        return 0
    return max(1, round(BAR * min(value / longest, 1.0)))


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it: goals with their verdict, dataclasses as objects."""
    if isinstance(value, Goal):
        return asdict(value) | {"held": value.held}
    if isinstance(value, (Summary, Ratio)):
        return asdict(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value
