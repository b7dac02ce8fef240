"""Writable layers in memory: one tmpfs per instance, made at its start, gone at its end.

Needs nothing provisioned; what a function writes counts as its memory. The size is the kernel's
limit, as with slots. Lives below `<run>/layers/<instance>`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from agent.core.slots import SlotCounts
from agent.errors import Bug, NotFound, RuntimeUnavailable
from agent.storage import mounts
from agent.storage.layer import WritableLayer
from agent.storage.undo import done_or_undone

KIND = "tmpfs"


class TmpfsLayers:
    """All tmpfs layers of one node."""

    def __init__(self, run: Path, inodes: int) -> None:
        self._root = run / "layers"
        self._inodes = inodes
        self._held: dict[str, WritableLayer] = {}
        self._reserved: set[str] = set()

    def __repr__(self) -> str:
        return f"<TmpfsLayers leased={len(self._held)}>"

    def adopt(self, instance: str) -> WritableLayer:
        """Take over a running instance's tmpfs; NotFound if it is not mounted."""
        place = self._root / instance
        if not place.is_mount():
            raise NotFound(f"the tmpfs layer of {instance} is not mounted at {place}")
        self._reserved.discard(instance)
        return self._hold(instance)

    async def lease(self, instance: str, disk_mb: int) -> WritableLayer:
        """Mount a tmpfs of that size; raises RuntimeUnavailable, and leaves nothing then."""
        if instance in self._held:
            raise Bug(f"{instance} has a writable layer already")
        place = self._root / instance
        await done_or_undone(
            f"mount layer of {instance}",
            lambda: self._make(place, disk_mb),
            lambda: remove(place),
        )
        return self._hold(instance)

    async def release(self, layer: WritableLayer) -> None:
        """Unmount a layer, once."""
        if self._held.get(layer.instance) is not layer:
            raise Bug(f"the tmpfs layer of {layer.instance} is not leased to whom releases it")
        del self._held[layer.instance]
        await asyncio.to_thread(remove, self._root / layer.instance)

    def reserve(self, instance: str) -> None:
        """Leave a layer alone that nobody here holds."""
        self._reserved.add(instance)

    async def unreserve(self, instance: str) -> None:
        """Remove a layer that was left alone; safe for one that was not."""
        if instance in self._reserved:
            self._reserved.discard(instance)
            await asyncio.to_thread(remove, self._root / instance)

    async def sweep(self) -> None:
        """Remove every layer that nobody has."""
        await asyncio.to_thread(sweep, self._root, self._held.keys() | self._reserved)

    def counts(self) -> SlotCounts:
        """Return how many layers are leased; there is no stock of them."""
        return SlotCounts(free=0, making=0, ready=0, leased=len(self._held), dirty=0)

    def _hold(self, instance: str) -> WritableLayer:
        place = self._root / instance
        layer = WritableLayer(instance, place / "upper", place / "work", KIND, 0)
        self._held[instance] = layer
        return layer

    def _make(self, place: Path, disk_mb: int) -> None:
        try:
            place.mkdir(parents=True)
            mounts.tmpfs(place, disk_mb << 20, self._inodes)
            for name in ("upper", "work"):
                (place / name).mkdir(0o755)
        except FileExistsError as error:
            raise Bug(f"{place} exists already") from error
        except OSError as error:
            remove(place)
            raise RuntimeUnavailable(f"{place} cannot be made: {error.strerror}") from error
        except RuntimeUnavailable:
            remove(place)
            raise


def remove(place: Path) -> None:
    """Unmount and remove a mount point; nothing there is fine."""
    mounts.detach(place)
    with suppress(FileNotFoundError):
        place.rmdir()


def sweep(root: Path, keep: Collection[str]) -> None:
    """Remove every mount point in `root` whose name is not in `keep`."""
    if root.is_dir():
        for place in sorted(root.iterdir()):
            if place.name not in keep:
                remove(place)
