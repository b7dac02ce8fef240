"""Blocking work that is either done whole or undone, even if its caller is cancelled meanwhile.

A thread cannot be stopped half-way: the caller's cancellation waits for its end, then undoes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from agent.aio import tasks

T = TypeVar("T")

# Mounts take a tenth of a millisecond; this bounds a kernel that hangs.
_UNDO_S = 10.0


async def done_or_undone(name: str, run: Callable[[], T], undo: Callable[[], object]) -> T:
    """Return what `run` returns in a worker thread, or raise what it raises.

    When the caller is cancelled, `undo` is run after `run`, both to their ends, and the
    cancellation goes on.
    """
    work = tasks.spawn(name, asyncio.to_thread(run))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:

        async def take_back() -> None:
            await asyncio.wait({work})
            await asyncio.to_thread(undo)

        await tasks.finish(f"undo {name}", take_back(), within_s=_UNDO_S)
        raise
