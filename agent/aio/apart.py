"""Blocking work that may hang for ever, on threads of its own: asked with a deadline, then left.

For files whose other end is a daemon or a registry. The loop's pool of threads has a handful, and
everybody needs them; here a few hang at most, those who come later wait for their turn and give up
at their deadline, and the process ends without waiting for any of them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


class Apart:
    """At most `most` threads at once."""

    def __init__(self, most: int) -> None:
        self._turns = asyncio.Semaphore(most)

    async def run(self, what: str, work: Callable[[], T], *, deadline: float) -> T:
        """Return what `work` returns; raises TimeoutError at the deadline.

        `work` goes on then, and keeps its turn until it ends.
        """
        async with asyncio.timeout_at(deadline):
            await self._turns.acquire()
            return await asyncio.shield(self._start(what, work))

    def _start(self, what: str, work: Callable[[], T]) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[T] = loop.create_future()
        ended.add_done_callback(lambda done: done.cancelled() or done.exception())

        def settle(result: T | None, error: Exception | None) -> None:
            self._turns.release()
            if error is not None:
                ended.set_exception(error)
            else:
                ended.set_result(result)  # type: ignore[arg-type]  # work's own result

        def run() -> None:
            result, failed = None, None
            try:
                result = work()
            except Exception as error:
                failed = error
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(settle, result, failed)

        threading.Thread(target=run, name=f"apart: {what}", daemon=True).start()
        return ended
