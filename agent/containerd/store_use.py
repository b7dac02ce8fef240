"""What the image store holds, in bytes and files: its blobs, unfinished ones too, and its layers.

What a committed layer takes never changes, so containerd is asked for it once per layer; one that
is being unpacked is measured anew each time, which costs a walk over its files. Limits are
`store_limit.py`'s, who may go is `agent/core/image_gc.py`'s.
"""

from __future__ import annotations

import os
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.containerd.content import Content, Ingest
from agent.containerd.engine_store import EngineStore
from agent.containerd.leases import Leases
from agent.containerd.snapshots import Snapshot, Snapshots
from agent.core.image_gc import Amount, FileSystem, total
from agent.errors import NotFound

CONTENT = "content"
INGESTS = "ingests"
NOTHING = Amount()


def blob_part(digest: str) -> str:
    """Return a blob's key among the parts of images; an uncompressed one has a layer's digest."""
    return f"blob {digest}"


def layer_part(key: str) -> str:
    """Return a layer's key among the parts of images."""
    return f"layer {key}"


@dataclass(frozen=True, slots=True)
class StoreContents:
    """One look at the store. `sizes` are what each blob and committed layer takes, by its part."""

    sizes: Mapping[str, Amount]
    snapshots: Mapping[str, Snapshot]
    ingests: tuple[Ingest, ...]
    unfinished: Amount
    engines: Amount = NOTHING
    """What lazy engines keep."""

    @property
    def used(self) -> Amount:
        """What all of it takes together."""
        return total(self.sizes.values()) + self.unfinished + self.engines

    def chain(self, key: str) -> frozenset[str]:
        """Return the parts that a layer and those below it are, as far as they are here."""
        found: set[str] = set()
        while key in self.snapshots and layer_part(key) not in found:
            found.add(layer_part(key))
            key = self.snapshots[key].parent
        return frozenset(found)


class StoreUse:
    """Measures the store."""

    def __init__(
        self,
        content: Content,
        snapshots: Snapshots,
        leases: Leases,
        engines: EngineStore | None = None,
    ) -> None:
        self._engines = engines
        self._content = content
        self._snapshots = snapshots
        self._leases = leases
        self._known: dict[str, Amount] = {}

    async def look(self, *, deadline: float | None = None) -> StoreContents:
        """Return what there is now."""
        blobs = await self._content.sizes(deadline=deadline)
        ingests = tuple(await self._content.ingests(deadline=deadline))
        listed = {shot.key: shot for shot in await self._snapshots.list(deadline=deadline)}
        layers: dict[str, Amount] = {}
        unfinished = Amount(sum(one.size_bytes for one in ingests), len(ingests))
        for key, shot in listed.items():
            part = layer_part(key)
            if shot.kind == "committed":
                layers[part] = self._known.get(part) or await self._measure(key, deadline)
            elif shot.kind == "active":
                unfinished += await self._measure(key, deadline)
        self._known = layers
        sizes = {blob_part(digest): Amount(size, 1) for digest, size in blobs.items()} | layers
        engines = await self._engines.look() if self._engines is not None else Amount()
        return StoreContents(sizes, listed, ingests, unfinished, engines)

    async def brought(
        self, lease: str, before: Container[str], *, deadline: float | None = None
    ) -> Amount:
        """Return what of the store a lease protects; what was a part `before` does not count."""
        blobs = await self._content.sizes(deadline=deadline)
        ingests = {one.ref: one.size_bytes for one in await self._content.ingests()}
        found = Amount()
        for resource in await self._leases.resources(lease, deadline=deadline):
            id = resource.id
            if resource.type == INGESTS:
                found += Amount(ingests.get(id, 0), 1)
            elif resource.type == CONTENT:
                found += Amount() if blob_part(id) in before else Amount(blobs.get(id, 0), 1)
            elif layer_part(id) not in before:
                found += await self._measure(id, deadline)
        return found

    async def _measure(self, key: str, deadline: float | None) -> Amount:
        """Return what one layer takes; nothing once it is gone."""
        try:
            usage = await self._snapshots.usage([key], deadline=deadline)
        except NotFound:
            return Amount()
        return Amount(usage.size_bytes, usage.inodes)


def file_system(path: Path) -> FileSystem:
    """Return what the file system at `path` has; blocks, for a disk may not answer."""
    told = os.statvfs(path)
    return FileSystem(
        whole=Amount(told.f_blocks * told.f_frsize, told.f_files),
        free=Amount(told.f_bavail * told.f_frsize, told.f_favail),
    )
