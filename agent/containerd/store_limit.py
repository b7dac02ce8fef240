"""The image store's own limit: what would pass it is refused, or stopped on its way.

How much a pull or import will take is known only in part: a layer of 10 MB may unpack to 50 GB, or
to millions of files. So while one runs, the file system is asked often what it has left, which
costs a microsecond, and the store is measured only when that has shrunk by more than there was
room for. Then the transfer that has brought most is cancelled, and containerd takes back what it
unpacked. Before anything is refused, what nobody needs is collected and the transfer tried once
more: `make_room` is `agent/node/image_collector.py`'s. What counts is `agent/core/image_gc.py`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Container, Coroutine, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from agent.aio.tasks import spawn, stop
from agent.containerd.store_use import StoreUse, blob_part, file_system
from agent.core.image_gc import NO_LIMIT, Amount, FileSystem, limit
from agent.core.oci_image import Descriptor
from agent.errors import AgentError, NotFound, Overloaded

log = logging.getLogger(__name__)

T = TypeVar("T")
MakeRoom = Callable[[Amount], Awaitable[bool]]
"""Gives back at least so much, if it can; says whether anything was given back."""

LOOK_S = 0.05  # a fast disk takes 50 MB or 2,500 files meanwhile
MEASURE_SHARE = 4  # measuring may take a fifth of the time, however many files it walks over
MEASURE_PAUSE_S = 1.0  # where the file system counts no inodes, and every look is a measuring
RETRY_AFTER_S = 60.0
MB = 1 << 20


@dataclass(frozen=True, slots=True)
class StoreBounds:
    """The most that was configured (0: a share of the file system), and a path on it."""

    most: Amount
    path: Path


@dataclass(frozen=True, slots=True)
class Room:
    """What was left when the store was measured: of its limit, and of the file system."""

    left: Amount
    disk: FileSystem
    used: Amount


class StoreLimit:
    """Holds transfers to what the store may take. Without bounds it lets everything pass."""

    def __init__(self, use: StoreUse) -> None:
        self.use = use
        self._bounds: StoreBounds | None = None
        self._make_room: MakeRoom | None = None
        self._running: dict[str, Container[str]] = {}
        self.left_bytes = NO_LIMIT
        """What was left of the limit when the store was last measured."""

    def hold_to(self, bounds: StoreBounds, make_room: MakeRoom) -> None:
        """Hold every transfer from now on to these bounds."""
        self._bounds, self._make_room = bounds, make_room

    async def room(self) -> Room:
        """Measure the store. Only with bounds."""
        assert self._bounds is not None
        used = (await self.use.look()).used
        disk = await asyncio.to_thread(file_system, self._bounds.path)
        left = limit(self._bounds.most, disk, used) - used
        self.left_bytes = max(0, left.bytes)
        return Room(left, disk, used)

    async def admit(self, what: str, blobs: Iterable[Descriptor]) -> None:
        """Collect until the blobs that are not here yet fit; raises Overloaded when they cannot."""
        if self._bounds is None or self._make_room is None:
            return
        here = (await self.use.look()).sizes
        missing = {one.digest: one.size_bytes for one in blobs if blob_part(one.digest) not in here}
        wanted_bytes = sum(missing.values())
        wanted = Amount(wanted_bytes, len(missing))
        room = await self.room()
        if not wanted.fits(room.left):
            await self._make_room(wanted - room.left)
            room = await self.room()
        if not wanted.fits(room.left):
            raise self._refusal(f"{what}: {wanted_bytes / MB:.1f} MB more do not fit", room, wanted)

    async def within(
        self, what: str, lease: str, transfer: Callable[[], Coroutine[Any, Any, T]]
    ) -> T:
        """Run a transfer under its lease and return its result; `transfer` may be called twice.

        Raises Overloaded where it was stopped: at the limit, or because the disk is full.
        """
        if self._bounds is None or self._make_room is None:
            return await transfer()
        try:
            return await self._watched(what, lease, transfer)
        except Overloaded as error:
            if error.reason != "disk" or not await self._make_room(Amount(NO_LIMIT, NO_LIMIT)):
                raise
            log.warning("%s; tried once more after a collection", error)
        return await self._watched(what, lease, transfer)

    async def _watched(
        self, what: str, lease: str, transfer: Callable[[], Coroutine[Any, Any, T]]
    ) -> T:
        before = (await self.use.look()).sizes

        async def work() -> T | AgentError:
            try:
                return await transfer()
            except AgentError as error:  # the caller's to hear, not the log's
                return error

        self._running[lease] = before
        running = spawn(what, work())
        watching = spawn(f"limit of {what}", self._until_too_much(lease))
        try:
            await asyncio.wait({running, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                await stop(running)
                raise self._refusal(f"{what}: stopped", watching.result(), Amount())
            result = running.result()
            if isinstance(result, AgentError):
                raise result
            await self._settle(what, lease)
            return result
        finally:
            await stop(running, watching)
            del self._running[lease]

    async def _settle(self, what: str, lease: str) -> None:
        """Collect, or refuse, where a transfer had ended before anybody saw it was too much."""
        room = await self.room()
        if not Amount().fits(room.left) and self._make_room is not None:
            await self._make_room(Amount() - room.left)
            room = await self.room()
        if not Amount().fits(room.left) and await self._brought_most(lease):
            raise self._refusal(f"{what}: stopped", room, Amount())

    async def _until_too_much(self, lease: str) -> Room:
        """Return when the store is past its limit, and this transfer has brought most of all."""
        loop = asyncio.get_running_loop()
        room: Room | None = None
        not_before = loop.time()
        while True:
            await asyncio.sleep(LOOK_S)
            began, pause_s = loop.time(), 0.0
            try:
                if began < not_before or (room is not None and await self._has_room(room)):
                    continue
                room = await self.room()
                if not Amount().fits(room.left) and await self._brought_most(lease):
                    return room
                pause_s = 0.0 if self._counted(room.disk) else MEASURE_PAUSE_S
            except (AgentError, OSError) as error:  # the transfer itself will hear of it
                log.info("the image store could not be measured: %s", error)
            not_before = loop.time() + pause_s + MEASURE_SHARE * (loop.time() - began)

    async def _has_room(self, room: Room) -> bool:
        """Say whether the file system has not shrunk by more than there was room for."""
        assert self._bounds is not None
        disk = await asyncio.to_thread(file_system, self._bounds.path)
        return self._counted(disk) and (room.disk.free - disk.free).fits(room.left)

    def _counted(self, disk: FileSystem) -> bool:
        """Say whether the file system tells of all that is limited."""
        assert self._bounds is not None
        return bool(disk.whole.files or not self._bounds.most.files)

    async def _brought_most(self, lease: str) -> bool:
        brought: dict[str, Amount] = {}
        for one, before in list(self._running.items()):
            try:
                brought[one] = await self.use.brought(one, before)
            except NotFound:  # it has just ended
                continue
        most = max(brought, key=lambda one: brought[one].bytes, default=lease)
        many = max(brought, key=lambda one: brought[one].files, default=lease)
        return lease in (most, many)

    def _refusal(self, what: str, room: Room, wanted: Amount) -> Overloaded:
        """Say which limit it was: the store's own, or what others have left of the disk."""
        assert self._bounds is not None
        own = limit(self._bounds.most, FileSystem(room.disk.whole, room.disk.whole), Amount())
        most = room.used + room.left
        files = wanted.bytes <= room.left.bytes
        if most.files < own.files if files else most.bytes < own.bytes:
            free = room.disk.free
            left = f"{free.files} inodes" if files else f"{free.bytes / MB:.1f} MB"
            why = f"disk full: {left} left below {self._bounds.path}; remove images or other files"
        else:
            limit_text = (
                f"{most.files} files (images.max_files), it holds {room.used.files}"
                if files
                else f"{most.bytes / MB:.1f} MB (images.max_bytes), "
                f"it holds {room.used.bytes / MB:.1f} MB"
            )
            why = (
                f"the image store's limit is {limit_text}; remove functions or images, or raise it"
            )
        return Overloaded(f"{what}: {why}", reason="disk", retry_after_s=RETRY_AFTER_S)
