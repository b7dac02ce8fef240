"""One removal of a function while it waits for calls and jobs to end: others join it or hasten it.

It goes on when nobody waits for it any more. It does not know what is to be ended, or how:
`deploy.py` does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine

from agent.aio.tasks import spawn, stop
from agent.errors import RuntimeUnavailable

NAMED = 5


class Removal:
    """A removal under way; nothing is left of the function once it has ended without an error."""

    def __init__(self, name: str, within_s: float, left: Callable[[], list[str]]) -> None:
        self._name = name
        self._within_s = within_s
        self._left = left
        self._forced = asyncio.Event()
        self._work: asyncio.Task[None]

    def begin(self, work: Coroutine[None, None, None]) -> None:
        """Carry it out in a task of its own."""
        self._work = spawn(f"remove {self._name}", work)

    async def ended(self) -> None:
        """Wait until it has ended; raises what it failed with.

        Raises RuntimeUnavailable when it takes longer than anything may; it goes on then.
        """
        await self._wait()
        self._work.result()

    async def _wait(self) -> None:
        await asyncio.wait({self._work}, timeout=self._within_s)
        if self._work.done():
            return
        left = self._left()
        names = ", ".join(left[:NAMED]) + (", …" if len(left) > NAMED else "")
        raise RuntimeUnavailable(
            f"{self._name} takes no more calls, but {names or 'its last calls'} did not end within "
            f"{self._within_s:g} s. The removal goes on: remove it again to wait on, with force to "
            "kill what is left"
        )

    async def join(self, *, force: bool) -> bool:
        """Wait as `ended` does, killing with `force`; return whether it succeeded."""
        if force:
            self._forced.set()
        await self._wait()
        return not self._work.cancelled() and self._work.exception() is None

    async def end(self, end: Callable[[bool], Awaitable[None]], *, force: bool) -> None:
        """Run `end(force)`, and `end(True)` beside it as soon as somebody joins with force."""
        hastened = spawn(f"hasten removal of {self._name}", self._hasten(end))
        try:
            await end(force)
        finally:
            await stop(hastened)

    async def _hasten(self, end: Callable[[bool], Awaitable[None]]) -> None:
        await self._forced.wait()
        await end(True)
