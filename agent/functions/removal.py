"""One removal of a function while it waits for calls and jobs to end: others join it or hasten it.

It does not know what is to be ended, or how: `deploy.py` does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from agent.aio.tasks import spawn, stop


class Removal:
    """A removal under way; `done` once it has ended, `succeeded` if nothing is left then."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.succeeded = False
        self._forced = asyncio.Event()
        self._done = asyncio.Event()

    async def join(self, *, force: bool) -> bool:
        """Wait until it has ended, killing with `force`; return whether it succeeded."""
        if force:
            self._forced.set()
        await self._done.wait()
        return self.succeeded

    async def end(self, end: Callable[[bool], Awaitable[None]], *, force: bool) -> None:
        """Run `end(force)`, and `end(True)` beside it as soon as somebody joins with force."""
        hastened = spawn(f"hasten removal of {self.name}", self._hasten(end))
        try:
            await end(force)
        finally:
            await stop(hastened)

    async def _hasten(self, end: Callable[[bool], Awaitable[None]]) -> None:
        await self._forced.wait()
        await end(True)

    def has_ended(self) -> None:
        """Let those go who joined."""
        self._done.set()
