"""Writable layers for instances: leased empty, given back once, empty again for the next.

One interface over the two kinds a node can have: slots that setup has provisioned, or memory. New
leases are of the configured kind; layers of the other kind that outlived a change of configuration
are adopted all the same. `rootfs` mounts what is leased here.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from agent import config
from agent.core.slots import SlotCounts
from agent.errors import RuntimeUnavailable
from agent.storage import tmpfs
from agent.storage.layer import WritableLayer
from agent.storage.provisioned import ProvisionedSlots
from agent.storage.tmpfs import TmpfsLayers

__all__ = ["WritableLayer", "WritableLayers"]


class WritableLayers:
    """All writable layers of one node. One per worker; all calls from the loop's thread."""

    def __init__(self, settings: config.StorageSettings, slots: Path, run: Path) -> None:
        self._use_slots = settings.writable == "slots"
        self._slots = ProvisionedSlots(slots)
        self._tmpfs = TmpfsLayers(run, settings.inodes)

    def __repr__(self) -> str:
        return f"<WritableLayers {self._slots!r} {self._tmpfs!r}>"

    async def open(self) -> None:
        """Find the slots. Raises FailedPrecondition naming what setup has to do."""
        if self._use_slots:
            await self._slots.open()

    def adopt(self, instance: str, kind: str, number: int) -> WritableLayer:
        """Take over the layer of an instance that outlived its worker; between open and ready.

        `kind` and `number` are the record's. Raises NotFound when the layer is not there.
        """
        if kind == tmpfs.KIND:
            return self._tmpfs.adopt(instance)
        return self._slots.adopt(instance, kind, number)

    def reserve(self, instance: str, kind: str, number: int) -> None:
        """Set a layer aside that may still be in use; unknown ones are ignored."""
        if kind == tmpfs.KIND:
            self._tmpfs.reserve(instance)
        else:
            self._slots.reserve(kind, number)

    async def unreserve(self, instance: str, kind: str, number: int) -> None:
        """Take back what was set aside; safe for what was not."""
        if kind == tmpfs.KIND:
            await self._tmpfs.unreserve(instance)
        else:
            self._slots.unreserve(kind, number)

    async def ready(self) -> None:
        """Begin to wipe and remove everything that nobody adopted.

        After `RootFilesystems.sweep`, so that no stale overlay lies over what is wiped.
        """
        if self._use_slots:
            self._slots.begin()
        await self._tmpfs.sweep()

    async def lease(self, instance: str, disk_mb: int) -> WritableLayer:
        """Return an empty layer that holds `disk_mb` MB.

        Raises Overloaded(slots), FailedPrecondition for a size this node does not have, or
        RuntimeUnavailable. A cancelled lease leaves nothing.
        """
        if self._use_slots:
            return await self._slots.lease(instance, disk_mb)
        return await self._tmpfs.lease(instance, disk_mb)

    async def release(self, layer: WritableLayer) -> None:
        """Give a layer back, once, after its overlay is unmounted; Bug for one that is not out."""
        if layer.kind == tmpfs.KIND:
            await self._tmpfs.release(layer)
        else:
            self._slots.release(layer)

    async def usage(self, layer: WritableLayer) -> tuple[int, int]:
        """Return the bytes used and the bytes in all of a layer's file system."""
        try:
            found = await asyncio.to_thread(os.statvfs, layer.upper)
        except OSError as error:
            raise RuntimeUnavailable(f"{layer.upper}: {error.strerror}") from error
        total = found.f_blocks * found.f_frsize
        return total - found.f_bfree * found.f_frsize, total

    def counts(self) -> dict[str, SlotCounts]:
        """Return how many layers stand where, by kind."""
        return {**self._slots.counts(), tmpfs.KIND: self._tmpfs.counts()}

    async def close(self) -> None:
        """Stop wiping; layers of running instances stay."""
        await self._slots.close()
