"""Callers who wait, in order, until something has become free.

A caller is only told to look again: what it waits for stays where it is until the caller takes it,
so that nothing is lost when a caller is cancelled in the very turn in which it was told.
"""

from __future__ import annotations

import asyncio
from collections import deque


class TurnQueue:
    """A waiting line. Lives on one loop."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def __repr__(self) -> str:
        return f"<TurnQueue waiting={len(self._waiting)}>"

    async def turn(self, deadline: float) -> None:
        """Stand in line until told; raises TimeoutError at `deadline` (absolute loop time)."""
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        try:
            async with asyncio.timeout_at(deadline):
                try:
                    await answer
                except asyncio.CancelledError:
                    self._pass_on(answer)
                    raise
        finally:
            if answer in self._waiting:
                self._waiting.remove(answer)

    def _pass_on(self, answer: asyncio.Future[None]) -> None:
        """Give what a caller was told, but does not stay for, to the next one."""
        if answer.cancelled() or not answer.done():
            return
        error = answer.exception()
        if isinstance(error, Exception):
            self.refuse(error)
        else:
            self.tell()

    def tell(self, count: int = 1) -> None:
        """Tell the first `count` callers to look again."""
        while count > 0 and self._waiting:
            answer = self._waiting.popleft()
            if not answer.done():
                answer.set_result(None)
                count -= 1

    def refuse(self, error: Exception) -> None:
        """Let the first caller's wait end with an error; does nothing when nobody waits."""
        while self._waiting:
            answer = self._waiting.popleft()
            if not answer.done():
                answer.set_exception(error)
                return
