"""Pauses shorter than a loop's timers can make: uvloop and asyncio count in whole milliseconds.

For waiting on what tells nobody, where a millisecond is most of the time it takes.
"""

from __future__ import annotations

import asyncio
import os
from types import TracebackType
from typing import Self

from agent.linux import timerfd


class FinePauses:
    """Makes pauses, one at a time, from one descriptor; for a `with` on the loop's thread."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._descriptor = -1
        self._over: asyncio.Future[None] | None = None

    def __enter__(self) -> Self:
        """Begin; the first pause takes the descriptor."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the descriptor back."""
        if self._loop is not None:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)

    async def pause(self, seconds: float) -> None:
        """Let others run for so long, to a tenth of a millisecond or so.

        Raises OSError when there is no descriptor left.
        """
        if self._loop is None:
            self._descriptor = timerfd.create()
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._descriptor, self._expired)
        self._over = self._loop.create_future()
        timerfd.expire_in(self._descriptor, seconds)
        await self._over

    def _expired(self) -> None:
        os.read(self._descriptor, 8)
        if self._over is not None and not self._over.done():
            self._over.set_result(None)
