"""Rounds that take every contender once, in an order of their own, so that nobody follows another.

What a round found counts when the round is whole: ratios are of neighbours. Ctrl-C ends the rounds
and keeps the whole ones. The first round does not count: it fills caches of files and code.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Mapping

from bench.options import Options

Found = Mapping[str, float]
Contender = Callable[[int], Found]


def take(
    options: Options, count: int, contenders: Mapping[str, Contender]
) -> dict[str, list[float]]:
    """Run `count` rounds; each contender is given the round's number and returns its figures.

    Raises KeyboardInterrupt only before the first whole round.
    """
    samples: dict[str, list[float]] = defaultdict(list)
    order = random.Random(count)  # the same at every run
    taken = 0
    try:
        for number in range(-1, count):
            found: dict[str, float] = {}
            for name in order.sample(list(contenders), len(contenders)):
                found |= contenders[name](number + 1)
            if number >= 0:
                for figure, value in found.items():
                    samples[figure].append(value)
                taken += 1
    except KeyboardInterrupt:
        options.stopped.set()
        if not taken:
            raise
    return dict(samples)
