"""What the node has and what is taken of it, now and whenever it changes, for a scheduler.

Watchers share what was counted a moment ago, and the file system is asked off the loop: neither
many watchers nor a slow disk cost the calls anything.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from agent.aio.tasks import spawn
from agent.control.node import CapacityView

if TYPE_CHECKING:
    from agent.node.parts import NodeParts

log = logging.getLogger(__name__)

LEAST_INTERVAL_S = 0.05
FREE_BYTES_S = 1.0  # how old the figure of free bytes may be, and how long a new one is awaited
QUIET = frozenset({"at_ns", "image_free_bytes"})
"""What changes all the time and is no news by itself."""


class FreeBytes:
    """The free bytes of a file system: one reading for all who ask, in a thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = 0
        self._reading: asyncio.Task[None] | None = None
        self._old_at = 0.0

    async def now(self) -> int:
        """Return them; what was known before if the disk does not answer."""
        now = asyncio.get_running_loop().time()
        if self._reading is None or (self._reading.done() and now >= self._old_at):
            self._old_at = now + FREE_BYTES_S
            self._reading = spawn("free bytes", asyncio.to_thread(self._read))
        await asyncio.wait({self._reading}, timeout=FREE_BYTES_S)
        return self._known

    def _read(self) -> None:
        try:
            self._known = shutil.disk_usage(self._path).free
        except OSError as error:
            log.warning("the free bytes of %s are not known: %s", self._path, error)


class NodeCapacity:
    """The capacity of one node."""

    def __init__(self, parts: NodeParts) -> None:
        self._parts = parts
        self._free = FreeBytes(parts.config.paths.data)
        self._shared: CapacityView | None = None
        self._old_at = 0.0

    async def now(self) -> CapacityView:
        """Return what there is and what is taken."""
        return self._count(await self._free.now())

    async def _lately(self) -> CapacityView:
        """Return what there was a moment ago, counted once for all watchers."""
        free, now = await self._free.now(), asyncio.get_running_loop().time()
        if self._shared is None or now >= self._old_at:
            self._shared = self._count(free)
            self._old_at = now + LEAST_INTERVAL_S
        return self._shared

    def _count(self, free_bytes: int) -> CapacityView:
        parts = self._parts
        fleet, use = parts.runners.fleet, parts.runners.fleet.admission.use
        targets = parts.catalog.targets()
        return CapacityView(
            at_ns=time.time_ns(),
            memory_bytes=fleet.admission.bounds.memory_bytes,
            memory_used_bytes=use.memory_bytes,
            cpu_millis=(os.cpu_count() or 1) * 1000,
            cpu_used_millis=use.cpu_millis,
            instances=parts.config.runtime.max_instances,
            instances_used=use.instances,
            inflight=sum(t.pool.inflight for t in targets),
            queued=sum(t.pool.waiting for t in targets),
            draining=not parts.mode.takes_calls,
            free_layers={
                int(kind.removeprefix("slot")): counts.ready
                for kind, counts in parts.layers.counts().items()
                if kind.startswith("slot")
            },
            image_free_bytes=min(free_bytes, parts.containerd.limit.left_bytes),
        )

    async def watch(self, min_interval_s: float) -> AsyncIterator[CapacityView]:
        """Yield the capacity now and after each change, at most every `min_interval_s` seconds."""
        before = await self.now()
        yield before
        while True:
            await asyncio.sleep(max(min_interval_s, LEAST_INTERVAL_S))
            now = await self._lately()
            if _changed(before, now):
                before = now
                yield now


def _changed(before: CapacityView, now: CapacityView) -> bool:
    names = (field.name for field in fields(CapacityView) if field.name not in QUIET)
    return any(getattr(before, name) != getattr(now, name) for name in names)
