"""Python's search for cyclic garbage, kept short however much a worker holds.

Most garbage goes at once, by its reference counts. What refers to itself in a ring is found by a
search, and a whole one looks at every object there is: for a thousand functions it holds the loop,
and with it every call, for a twentieth of a second. So what has survived a whole search is set
aside (`gc.freeze`), and the next one looks only at what came since. Rings among what was set aside
are found by a search of everything, once in a long while, in a moment when nothing is under way.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

YOUNG, OLDER, WHOLE = 2000, 5, 2
"""So many objects more start a search of the young; so many of those one of the older, and so on:
a whole search looks at some 20,000 objects, 2 ms."""
OLDEST = 2
EVERYTHING_S = 3600.0
MOST_SEARCHES = 50
"""After so many whole ones a million objects may be set aside: everything is searched sooner."""
LOOK_S = 1.0
MOST_LOOKS = 600
"""Looks for a moment when nothing is under way, before it is done in any."""


class Searches:
    """The searches of this process. Make one, and begin."""

    def __init__(self) -> None:
        self.whole = 0
        """Whole ones since everything was searched."""

    def begin(self) -> None:
        """Have every whole search set aside what has survived it, from now on; safe to repeat."""
        gc.set_threshold(YOUNG, OLDER, WHOLE)
        if self._done not in gc.callbacks:
            gc.callbacks.append(self._done)

    def _done(self, phase: str, info: dict[str, Any]) -> None:
        if phase == "stop" and info["generation"] == OLDEST:
            self.whole += 1
            gc.freeze()

    def everything(self) -> int:
        """Search all there is, and set it aside again; returns how many objects were garbage."""
        gc.unfreeze()
        found = gc.collect()
        self.whole = 0
        return found

    async def now_and_then(self, is_quiet: Callable[[], bool]) -> None:
        """Search everything in a quiet moment, when an hour has passed or it is worth it."""
        while True:
            await self._worth_it()
            for _ in range(MOST_LOOKS):
                if is_quiet():
                    break
                await asyncio.sleep(LOOK_S)
            began = time.monotonic()
            found, took_ms = self.everything(), 1e3 * (time.monotonic() - began)
            log.info("%d objects were garbage, found in %.0f ms", found, took_ms)

    async def _worth_it(self) -> None:
        passed_s = 0.0
        while passed_s < EVERYTHING_S and self.whole < MOST_SEARCHES:
            await asyncio.sleep(LOOK_S)
            passed_s += LOOK_S
