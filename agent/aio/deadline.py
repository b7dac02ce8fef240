"""A bound on waiting that can be brought forward while somebody waits: a stop that becomes urgent.

`over` is what waiters put beside the thing they wait for.
"""

from __future__ import annotations

import asyncio
from typing import Any


class ShrinkingDeadline:
    """How much longer to wait; without end until `at_most` says so. Lives on one loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self.over: asyncio.Future[None] = self._loop.create_future()

    def __repr__(self) -> str:
        return f"<ShrinkingDeadline {'over' if self.over.done() else 'left'}>"

    def at_most(self, seconds: float) -> None:
        """Let it be over in that many seconds, unless it is sooner already."""
        if self.over.done():
            return
        if seconds <= 0:
            self._end()
            return
        at = self._loop.time() + seconds
        if self._timer is None or at < self._timer.when():
            self.close()
            self._timer = self._loop.call_at(at, self._end)

    async def wait_for(self, *things: asyncio.Future[Any]) -> None:
        """Return when one of the things is done, or the deadline has come."""
        await asyncio.wait({*things, self.over}, return_when=asyncio.FIRST_COMPLETED)

    def close(self) -> None:
        """Forget the timer; safe to repeat."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self) -> None:
        self.close()
        if not self.over.done():
            self.over.set_result(None)
