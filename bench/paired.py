"""Whether two revisions differ: pairs of figures, taken one right after the other.

A pair's ratio is free of what the machine did to both. Two questions are asked of the ratios: what
their median is, with an interval from resampling them (Efron's percentile bootstrap), and whether
as many and as large ones would lie on one side of 1 by chance (Wilcoxon's signed-rank test, exact:
all signs are counted out, ties share their ranks). Several figures are asked about at once, so one
among twenty would seem to differ for nothing: Holm's correction holds for all together. Only where
both answers agree is a difference called one. Pure.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bench.figures import number, percentile

LEVEL = 0.05
RESAMPLES = 4000
LEAST_PAIRS = 6  # with fewer not even a figure that always differs can be told from chance


@dataclass(frozen=True, slots=True)
class Compared:
    """One figure of two revisions: medians, ratio B / A with its interval, chance of as much.

    `needed` is how many pairs it takes to tell anything, among as many figures.
    """

    pairs: int
    needed: int
    a: float
    b: float
    ratio: float
    low: float
    high: float
    chance: float

    @property
    def differs(self) -> bool:
        """Whether interval and test both say so."""
        return self.chance < LEVEL and not self.low <= 1 <= self.high

    def sentence(self) -> str:
        """Say how B is to A."""
        if self.pairs < self.needed:
            return f"{self.pairs} pairs tell nothing of so many figures: {self.needed} are needed"
        interval = f"B / A {self.ratio:.3f} ({self.low:.3f} - {self.high:.3f})"
        if not self.differs:
            return f"no difference beyond noise: {interval}, by chance {self.chance:.2g}"
        more = "more" if self.ratio > 1 else "less"
        share = abs(self.ratio - 1) * 100
        return f"B has {number(share)} % {more}: {interval}, by chance {self.chance:.2g}"


def compared(
    a: Mapping[str, Sequence[float]], b: Mapping[str, Sequence[float]]
) -> dict[str, Compared]:
    """Compare each figure that both have, in pairs by position; figures of zero are left out.

    Raises ValueError when a figure has not as many values on both sides.
    """
    found: dict[str, Compared] = {}
    for name in a:
        if name not in b or not a[name] or not all(v > 0 for v in (*a[name], *b[name])):
            continue
        logs = [math.log(y / x) for x, y in zip(a[name], b[name], strict=True)]
        low, high = interval(logs)
        found[name] = Compared(
            pairs=len(logs),
            needed=0,
            a=statistics.median(a[name]),
            b=statistics.median(b[name]),
            ratio=math.exp(statistics.median(logs)),
            low=math.exp(low),
            high=math.exp(high),
            chance=signed_rank(logs),
        )
    corrected = holm({name: one.chance for name, one in found.items()})
    needed = pairs_needed(len(found))
    return {
        name: replace(one, chance=corrected[name], needed=needed) for name, one in found.items()
    }


def pairs_needed(figures: int) -> int:
    """Return how many pairs can tell one of these figures from chance, if all point one way."""
    return next(n for n in range(LEAST_PAIRS, 64) if 2.0 ** (1 - n) * figures < LEVEL)


def interval(values: Sequence[float], seed: int = 1) -> tuple[float, float]:
    """Return the bounds between which the median lies with a chance of 95 %."""
    source = random.Random(seed)  # the same at every run
    size = len(values)
    medians = [statistics.median(source.choices(values, k=size)) for _ in range(RESAMPLES)]
    return percentile(medians, 100 * LEVEL / 2), percentile(medians, 100 * (1 - LEVEL / 2))


def signed_rank(differences: Sequence[float]) -> float:
    """Return the chance of a rank sum as far from the middle if signs came by chance, two-sided."""
    moved = [value for value in differences if value != 0]
    if not moved:
        return 1.0
    doubled = ranks([abs(value) for value in moved])
    positive = sum(rank for rank, value in zip(doubled, moved, strict=True) if value > 0)
    ways = {0: 1}  # by rank sum of the positive ones
    for rank in doubled:
        more = dict(ways)
        for total, count in ways.items():
            more[total + rank] = more.get(total + rank, 0) + count
        ways = more
    middle = sum(doubled) / 2
    far = abs(positive - middle)
    as_far = sum(count for total, count in ways.items() if abs(total - middle) >= far)
    return float(as_far / 2 ** len(doubled))


def ranks(values: Sequence[float]) -> list[int]:
    """Return twice the rank of each value, from 2 on; equal ones share the middle of theirs."""
    ordered = sorted(values)
    first: dict[float, int] = {}
    count: dict[float, int] = {}
    for place, value in enumerate(ordered, 1):
        first.setdefault(value, place)
        count[value] = count.get(value, 0) + 1
    return [2 * first[value] + count[value] - 1 for value in values]


def holm(chances: Mapping[str, float]) -> dict[str, float]:
    """Return chances corrected for how many there are."""
    corrected: dict[str, float] = {}
    least = 0.0
    for place, (name, chance) in enumerate(sorted(chances.items(), key=lambda item: item[1])):
        least = max(least, min(1.0, chance * (len(chances) - place)))
        corrected[name] = least
    return corrected
