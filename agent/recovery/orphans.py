"""What a worker that died left in the image store: leases, half-written blobs, views of nothing.

Only what is ours and what nobody works on any more: a lease whose worker lives stays, and so does
anything young enough that its owner may come back to it. What a lease alone held goes with it, by
containerd's own collection, which the caller asks for. Full stores are not this room's affair:
`agent/node/image_collector.py` calls it first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.containerd.snapshots import VIEW_PREFIX
from agent.containerd.store_use import StoreContents
from agent.core.image_gc import Amount, is_orphan_lease
from agent.errors import AgentError, NotFound

if TYPE_CHECKING:
    from agent.containerd.client import Containerd
    from agent.sandbox.prepared_images import PreparedImages

log = logging.getLogger(__name__)

INGEST_AGE_S = 3600.0  # nothing writes to it: containerd itself waits a day
ENGINE_S = 5.0
NS = 1_000_000_000
NOTHING = Amount()

Needed = Callable[[], Collection[str]]
"""The chain ids that versions, instances and deploys under way run on, now."""


@dataclass(frozen=True, slots=True)
class Orphan:
    """Something that nobody owns. `kind` is lease, layers or unfinished blob."""

    kind: str
    name: str
    freed: Amount = NOTHING
    layer: str = ""
    """For a view: the topmost layer that it keeps."""
    engine: str = ""
    """For a view of what a lazy engine has mounted: whose it is."""


class Orphans:
    """Finds and removes them."""

    def __init__(
        self,
        containerd: Containerd,
        prepared: PreparedImages,
        living: Callable[[], Collection[int]],
    ) -> None:
        self._containerd = containerd
        self._prepared = prepared
        self._living = living
        self._began_ns = time.time_ns()

    async def unmount(self, chain_id: str, needed: Callable[[], Collection[str]]) -> None:
        """Let go what lazy engines have mounted of an image whose name is gone; errors are told."""
        try:
            await self._prepared.unmount(chain_id, needed)
        except AgentError as error:
            log.warning("layers %s stay mounted: %s", chain_id, error)

    async def find(self, contents: StoreContents, needed: Collection[str]) -> list[Orphan]:
        """Return what is nobody's; `needed` are the chain ids of images and of what runs."""
        now_ns = time.time_ns()
        ours, living = self._containerd.leases.worker, frozenset(self._living())
        found = [
            Orphan("lease", lease.id)
            for lease in await self._containerd.leases.ours()
            if is_orphan_lease(lease, ours, living, self._began_ns, now_ns)
        ]
        found += [
            Orphan("unfinished blob", one.ref, Amount(one.size_bytes, 1))
            for one in contents.ingests
            if one.updated_ns < now_ns - INGEST_AGE_S * NS
        ]
        found += [
            Orphan("layers", key, layer=shot.parent)
            for key, shot in contents.snapshots.items()
            if key.startswith(VIEW_PREFIX) and shot.parent not in needed
        ]
        return found + await self._mounted(needed)

    async def _mounted(self, needed: Collection[str]) -> list[Orphan]:
        """Return the views of layers that engines have mounted for nobody.

        They are left when an image goes while its engine is away, when its tag moves, and by a
        worker that dies in between; an engine mounts them again, whenever it starts.
        """
        found: list[Orphan] = []
        for engine in self._containerd.lazy:
            if not engine.has_run or not await engine.answers():
                continue
            try:
                deadline = asyncio.get_running_loop().time() + ENGINE_S
                listed = await engine.snapshots.list(deadline=deadline)
            except AgentError as error:  # the next round is another try
                log.warning("what %s has mounted is not known: %s", engine.name, error)
                continue
            found += [
                Orphan("layers", f"{engine.name} {one.key}", layer=one.parent, engine=engine.name)
                for one in listed
                if one.key.startswith(VIEW_PREFIX) and one.parent not in needed
            ]
        return found

    async def remove(self, orphans: Collection[Orphan], needed: Needed) -> list[Orphan]:
        """Remove them but for what is needed by now; returns what could be.

        What only they held is containerd's to collect.
        """
        gone = []
        for orphan in orphans:
            try:
                if await self._remove(orphan, needed):
                    gone.append(orphan)
            except AgentError as error:  # the next round is another try
                log.warning("%s %s was not removed: %s", orphan.kind, orphan.name, error)
        return gone

    async def _remove(self, orphan: Orphan, needed: Needed) -> bool:
        if orphan.kind == "lease":
            return await self._containerd.leases.delete(orphan.name)
        if orphan.engine:
            await self._prepared.unmount(orphan.layer, needed)
            return orphan.layer not in needed()
        if orphan.kind == "layers":
            return await self._prepared.forget(orphan.layer, needed)
        with contextlib.suppress(NotFound):
            await self._containerd.content.forget_ingest(orphan.name)
        return True
