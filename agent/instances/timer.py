"""The one timer of all versions: queue deadlines and idle times.

Visits only versions that have something to do soon; idle ones are looked at once a second, in
slices: there may be a thousand.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Protocol

from agent.aio.slices import Slices

log = logging.getLogger(__name__)

TICK_S = 0.05  # how late a waiting call may hear that its time is over
IDLE_LOOK_S = 1.0


class Visited(Protocol):
    """A version, as the timer sees it."""

    @property
    def waiting(self) -> bool:
        """Whether calls wait, so that the next tick matters."""

    def tick(self, now: float) -> None:
        """Keep time limits; end what is idle, start what is wanted."""


class Timer:
    """Visits versions; `now` is the clock of all of them."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._soon: dict[Visited, None] = {}

    def visit(self, one: Visited) -> None:
        """Look at a version on the next tick."""
        self._soon[one] = None

    async def run(self, everyone: Callable[[], Iterable[Visited]]) -> None:
        """Tick for ever."""
        look_at_all = self._now()
        while True:
            await asyncio.sleep(TICK_S)
            now = self._now()
            if now >= look_at_all:
                look_at_all = now + IDLE_LOOK_S
                due = list(everyone())
            else:
                due = list(self._soon)
            self._soon.clear()
            slices = Slices()
            for one in due:
                try:
                    one.tick(now)
                except Exception:  # one function's trouble must not stop all the others' timers
                    log.exception("timer of %r", one)
                if one.waiting:
                    self._soon[one] = None
                await slices.pause()
