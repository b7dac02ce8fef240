"""What lazy engines keep on disk: indexes, and what was read of their mounts; counted, given back.

An engine collects nothing by itself: its indexes stay for good, what was read of a layer until it
has mounted many others. So one that has nothing mounted is ended, and all that it kept is removed;
the next lazy image starts it anew. One that is in use keeps what it has: it is counted in the image
store, and bounded by what its images take whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Collection, Iterable
from pathlib import Path

from agent.containerd.lazy import LazyEngine
from agent.core.image_gc import Amount
from agent.errors import AgentError
from agent.linux import mount, mountinfo, trees

log = logging.getLogger(__name__)

LIST_S = 3.0
UNMOUNT_LOOKS = 60
LOOK_EVERY_S = 0.05
REMOVE_S = 60.0
MAX_DEPTH = 32


def measure(directories: Iterable[Path]) -> Amount:
    """Return what lies in some directories, but for what is mounted there; blocks."""
    points = {one.point for one in mountinfo.parse(mountinfo.text())}
    size_bytes = files = 0
    left = [(str(directory), 0) for directory in directories]
    while left:
        place, depth = left.pop()
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    if entry.path in points:  # its engine may hang, and we with it
                        continue
                    if entry.is_dir(follow_symlinks=False) and depth < MAX_DEPTH:
                        left.append((entry.path, depth + 1))
                    size_bytes += entry.stat(follow_symlinks=False).st_blocks * 512
                    files += 1
        except OSError:  # it has just gone, or never was
            continue
    return Amount(size_bytes, files)


class EngineStore:
    """The directories of all engines."""

    def __init__(self, engines: Collection[LazyEngine]) -> None:
        self._engines = engines
        self._idle_since: dict[str, float] = {}

    async def look(self) -> Amount:
        """Return what all engines keep."""
        places = [place for engine in self._engines for place in (engine.data, engine.set_aside)]
        return await asyncio.to_thread(measure, places) if places else Amount()

    async def idle(self, least_s: float = 0.0) -> dict[str, Amount]:
        """Return what engines keep that have had nothing mounted for so long, by their names."""
        found = {}
        for engine in self._engines:
            if not await _is_idle(engine):
                self._idle_since.pop(engine.name, None)
                continue
            since = self._idle_since.setdefault(engine.name, time.monotonic())
            if time.monotonic() - since >= least_s:
                kept = await asyncio.to_thread(measure, [engine.data, engine.set_aside])
                found[engine.name] = kept
        return found

    async def give_back(self, name: str) -> bool:
        """End an idle engine and remove what it kept; False if it is in use after all."""
        engine = next(one for one in self._engines if one.name == name)
        async with engine.turn:
            if not await _is_idle(engine):
                return False
            await _let_unmount(engine)
            await engine.end()
            self._idle_since.pop(name, None)
        # What the engine did not unmount is dead with it.
        for point in _points_below(engine.data, engine.set_aside):
            with contextlib.suppress(OSError):
                await asyncio.to_thread(mount.unmount, point)
        within_s = REMOVE_S
        left = await asyncio.to_thread(_empty, engine.set_aside, within_s)
        for path in left:
            log.warning("%s of %s was not removed", path, name)
        return True


async def _is_idle(engine: LazyEngine) -> bool:
    """Say whether an engine has something to give back, and nothing that needs it."""
    if engine.users or not (engine.has_run or engine.set_aside.exists()):
        return False
    try:
        deadline = asyncio.get_running_loop().time() + LIST_S
        return not await engine.snapshots.list(deadline=deadline)
    except AgentError:
        return False


async def _let_unmount(engine: LazyEngine) -> None:
    """Wait a while for an engine that may still be unmounting what is no snapshot any more."""
    for _ in range(UNMOUNT_LOOKS):
        if not _points_below(engine.data):
            return
        await asyncio.sleep(LOOK_EVERY_S)  # sleeps: between two looks at the mount table


def _points_below(*directories: Path) -> list[str]:
    begins = tuple(f"{directory}/" for directory in directories)
    found = (one.point for one in mountinfo.parse(mountinfo.text()))
    return [point for point in found if point.startswith(begins)]


def _empty(directory: Path, within_s: float) -> list[Path]:
    left = trees.empty(directory, within_s=within_s) if directory.exists() else []
    if not left and directory.exists():
        directory.rmdir()
    return left
