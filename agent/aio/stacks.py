"""What every thread and every task is doing, printed on a signal: for a worker that hangs.

`kill -USR2` makes the interpreter print the stacks of all threads, also when the loop is blocked,
and the loop, as soon as it runs, where each task waits. Both go to stderr, which is the log. What
is printed is bounded; tasks that wait at the same place are told once.
"""

from __future__ import annotations

import asyncio
import faulthandler
import signal
import sys
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

SIGNAL = signal.SIGUSR2
MOST_CHARS = 128 << 10
MOST_FRAMES = 30  # of one task
MOST_NAMES = 5  # of tasks that wait at the same place
MOST_NAME_CHARS = 100
STDERR = 2
PACKAGE = "agent"

Where = tuple[str, ...]


def print_on_signal(loop: asyncio.AbstractEventLoop) -> None:
    """Obey the signal from now on, on top of what may be registered for it."""
    faulthandler.unregister(SIGNAL)  # it would not move in front of the loop's by itself
    loop.add_signal_handler(SIGNAL, _print, loop)
    # After the loop's: this one comes first then, needs no loop, and hands the signal on.
    faulthandler.register(SIGNAL, file=STDERR, all_threads=True, chain=True)


def _print(loop: asyncio.AbstractEventLoop) -> None:
    sys.stderr.write(told(asyncio.all_tasks(loop)))
    sys.stderr.flush()


def told(tasks: Iterable[asyncio.Task[Any]]) -> str:
    """Return where the tasks wait, the outermost frame first, in at most MOST_CHARS."""
    names: dict[Where, list[str]] = defaultdict(list)
    for task in tasks:
        names[_where(task)].append(task.get_name()[:MOST_NAME_CHARS])
    parts = [f"{sum(map(len, names.values()))} tasks at {len(names)} places:"]
    left = MOST_CHARS
    for where, waiting in sorted(names.items(), key=lambda item: len(item[1])):
        part = "\n  ".join((_naming(sorted(waiting)), *where))
        left -= len(part) + 1
        if left < 0:
            parts.append("… (the rest is left out)")
            break
        parts.append(part)
    return "\n".join(parts) + "\n"


def _naming(names: list[str]) -> str:
    shown = ", ".join(names[:MOST_NAMES])
    return f"{shown} and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else shown


def _where(task: asyncio.Task[Any]) -> Where:
    """Return the frames of a task down to what it awaits; `get_stack` knows the first one only."""
    found: list[str] = []
    step: Any = task.get_coro()
    while step is not None:
        frame = _of(step, ("cr_frame", "gi_frame", "ag_frame"))
        if len(found) == MOST_FRAMES or frame is None:
            found.append("…" if frame is not None else _without_frame(task, step))
            break
        code = frame.f_code
        found.append(f"{code.co_filename}:{frame.f_lineno} in {code.co_qualname}")
        step = _of(step, ("cr_await", "gi_yieldfrom", "ag_await"))
    return tuple(found)


def _without_frame(task: asyncio.Task[Any], step: object) -> str:
    """Name what has no frames: something of the loop's, or a coroutine that is compiled.

    Of what that one awaits in turn only the end is known: what the loop wakes the task for.
    """
    kind = type(step)
    if kind.__module__.partition(".")[0] != PACKAGE:
        return f"awaits {kind.__qualname__}"
    end = getattr(task, "_fut_waiter", None)
    what = f" {end.get_name()[:MOST_NAME_CHARS]}" if isinstance(end, asyncio.Task) else ""
    return f"compiled {kind.__module__}.{kind.__qualname__}, awaits {type(end).__name__}{what}"


def _of(step: object, names: Iterable[str]) -> Any:
    """Return what a coroutine, a generator or an asynchronous generator has under its own name."""
    found = (getattr(step, name, None) for name in names)
    return next((value for value in found if value is not None), None)
