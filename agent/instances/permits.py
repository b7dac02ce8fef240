"""How many starts the runtime works on at once, and who is next: functions take turns.

Two hundred calls of one function ask for two hundred starts; another function's first one stands
behind those under way, not behind all of them. Within a function whoever came first is first.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class StartPermits:
    """The permits of one node. Lives on one loop."""

    def __init__(self, count: int) -> None:
        self._free = count
        # By function, whose turn is next first; there is none while a permit is free.
        self._lines: dict[str, deque[asyncio.Future[None]]] = {}

    def __repr__(self) -> str:
        waiting = sum(map(len, self._lines.values()))
        return (
            f"<StartPermits {self._free} free, {waiting} waiting of {len(self._lines)} functions>"
        )

    @property
    def all_taken(self) -> bool:
        """Whether a start would have to wait for its turn."""
        return not self._free

    @asynccontextmanager
    async def of(self, function: str) -> AsyncIterator[None]:
        """Hold a permit for a start of a function."""
        await self._take(function)
        try:
            yield
        finally:
            self._pass_on()

    async def _take(self, function: str) -> None:
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lines.setdefault(function, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._leave(function, turn)
            else:  # it has come in the very same turn of the loop
                self._pass_on()
            raise

    def _leave(self, function: str, turn: asyncio.Future[None]) -> None:
        line = self._lines[function]
        line.remove(turn)
        if not line:
            del self._lines[function]

    def _pass_on(self) -> None:
        """Give a permit to the next function's first; that one's next turn is after all others'."""
        for function, line in self._lines.items():
            turn = next((one for one in line if not one.done()), None)
            if turn is None:  # all of it has just been cancelled
                continue
            line.remove(turn)
            del self._lines[function]
            if line:
                self._lines[function] = line
            turn.set_result(None)
            return
        self._free += 1
