"""Background tasks with a name and an owner, and cleanup that cancellation cannot cut short.

`spawn` is the only place where the agent makes asyncio tasks; a task that fails unexpectedly is
logged here with its name, because nobody else may be waiting for it. `finish` runs a cleanup to its
end even when the caller is cancelled meanwhile, within a bound.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

_alive: set[asyncio.Task[Any]] = set()


def spawn(name: str, coro: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Start `coro` as a background task called `name` and return it.

    The task is kept alive until it ends. An exception other than cancellation is logged; it is
    still raised to whoever awaits the task.
    """
    task = _kept(name, coro)
    task.add_done_callback(_report)
    return task


def _kept(name: str, coro: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Make the task and hold on to it: the loop itself only keeps a weak reference."""
    task = asyncio.get_running_loop().create_task(coro, name=name)
    _alive.add(task)
    task.add_done_callback(_alive.discard)
    return task


def launch(name: str, coro: Coroutine[Any, Any, Any]) -> None:
    """Start `coro` as `spawn` does, for work that nobody awaits: it reports by what it does."""
    spawn(name, coro).get_name()


def _report(task: asyncio.Task[Any]) -> None:
    if task.cancelled():
        return
    error = task.exception()
    if error is not None:
        log.error("background task %s failed: %r", task.get_name(), error, exc_info=error)


async def finish(name: str, coro: Coroutine[Any, Any, T], *, within_s: float) -> T | None:
    """Run a cleanup to its end, shielded from the caller's cancellation.

    Returns its result, or None if it took longer than `within_s` seconds (then it is cancelled and
    a warning names it). If the caller is cancelled, the cleanup still ends before the cancellation
    goes on. Errors of the cleanup itself are raised.
    """
    task = _kept(name, coro)
    deadline = asyncio.get_running_loop().time() + within_s
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        left_s = deadline - asyncio.get_running_loop().time()
        if left_s <= 0:
            log.warning("cleanup %s did not end within %.1f s; given up", name, within_s)
            task.cancel()
            break
        try:
            await asyncio.wait({task}, timeout=left_s)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if task.done():
            _report(task)
        raise cancelled
    return task.result() if task.done() and not task.cancelled() else None


async def stop(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancel tasks and wait until they have ended; their errors were logged by `spawn`."""
    live = [task for task in tasks if task is not None]
    for task in live:
        task.cancel()
    if live:
        await asyncio.wait(live)
