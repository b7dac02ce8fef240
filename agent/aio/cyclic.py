"""Python's search for cyclic garbage, kept short however much a worker holds.

Most garbage goes at once, by its reference counts. What refers to itself in a ring is found by a
search, and a whole one looks at every object there is: for a thousand functions it holds the loop,
and with it every call, for a twentieth of a second. So what has survived a whole search is set
aside (`gc.freeze`), and the next one looks only at what came since. Rings among what was set aside
are found by a search of everything, once in a long while, in a moment when nothing is under way.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

YOUNG, OLDER, WHOLE = 2000, 5, 2
"""So many objects more start a search of the young; so many of those one of the older, and so on:
a whole search looks at some 20,000 objects, 2 ms."""
OLDEST = 2
EVERYTHING_S = 3600.0
LOOK_S = 1.0
MOST_LOOKS = 24 * 3600


def _set_aside(phase: str, info: dict[str, Any]) -> None:
    if phase == "stop" and info["generation"] == OLDEST:
        gc.freeze()


def search_in_parts() -> None:
    """Have every whole search set aside what has survived it, from now on; safe to repeat."""
    gc.set_threshold(YOUNG, OLDER, WHOLE)
    if _set_aside not in gc.callbacks:
        gc.callbacks.append(_set_aside)


def search_everything() -> int:
    """Search all there is, and set it aside again; returns how many objects were garbage."""
    gc.unfreeze()
    return gc.collect()


async def search_now_and_then(is_quiet: Callable[[], bool]) -> None:
    """Search everything about once an hour when it is quiet, else once a day, for ever."""
    while True:
        await asyncio.sleep(EVERYTHING_S)
        for _ in range(MOST_LOOKS):
            if is_quiet():
                break
            await asyncio.sleep(LOOK_S)
        began = time.monotonic()
        found = search_everything()
        log.info(
            "%d objects were garbage, found in %.0f ms", found, 1e3 * (time.monotonic() - began)
        )
