"""Those who found no room on the node, in the order in which they get some.

Knows neither instances nor why there was no room: who is in the queue is asked to try again as soon
as some may have come free.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol


class CapacitySeeker(Protocol):
    """Whoever came away without room and tries again when there may be some."""

    def try_again(self, now: float) -> bool:
        """Try now; say whether to be asked once more as long as there is room."""


class CapacityWait:
    """One wait for room: `over` is resolved when there may be some."""

    def __init__(self) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def try_again(self, now: float) -> bool:
        """See `CapacitySeeker.try_again`."""
        del now
        if not self.over.done():
            self.over.set_result(None)
        return False


class CapacityQueue:
    """The queue. Lives on one loop."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._seekers: dict[CapacitySeeker, None] = {}

    def __len__(self) -> int:
        return len(self._seekers)

    def join(self, seeker: CapacitySeeker) -> None:
        """Have somebody try again, once, as soon as there may be room."""
        self._seekers[seeker] = None

    def leave(self, seeker: CapacitySeeker) -> None:
        """Ask somebody no more; unknown ones are ignored."""
        self._seekers.pop(seeker, None)

    def freed(self) -> None:
        """Offer what has come free, in the loop's next turn."""
        if self._seekers:
            asyncio.get_running_loop().call_soon(self._offer)

    def _offer(self) -> None:
        """Let those who came away empty take one place each, in turn, until nobody can.

        Who fails joins again: the less somebody got, the further in front.
        """
        seekers, self._seekers = list(self._seekers), {}
        now = self._now()
        while seekers:
            seekers = [one for one in seekers if one.try_again(now)]
