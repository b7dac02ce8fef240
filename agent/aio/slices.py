"""Long work cut into slices, so that nobody's call waits for the whole of it.

For what walks over all functions, instances or lines: it asks `pause` after each, and once a slice
has lasted long enough, whatever else is due comes first. A thread would not do: beside a busy one
the loop gets the interpreter back only every few milliseconds. What is walked over may change in a
pause, so walk over a copy.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

SLICE_S = 0.00025
"""A call passes the loop two or three times, so a slice is a share of what a warm one takes."""


class Slices:
    """The slices of one piece of work; make one where it begins. `now` is its clock, seconds."""

    __slots__ = ("_began", "_now")

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._began = now()

    async def pause(self) -> None:
        """Let others go first if the slice has lasted long enough; then the next one begins."""
        if self._now() - self._began >= SLICE_S:
            await asyncio.sleep(0)
            self._began = self._now()
