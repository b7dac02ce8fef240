"""What the node has and what is taken of it, now and whenever it changes, for a scheduler."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import fields
from typing import TYPE_CHECKING

from agent.control.node import CapacityView

if TYPE_CHECKING:
    from agent.node import Rooms

LEAST_INTERVAL_S = 0.05
QUIET = frozenset({"at_ns", "image_free_bytes"})
"""What changes all the time and is no news by itself."""


class NodeCapacity:
    """The capacity of one node."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    def now(self) -> CapacityView:
        """Return what there is and what is taken."""
        rooms = self._rooms
        fleet, use = rooms.runners.fleet, rooms.runners.fleet.use
        targets = rooms.registry.targets()
        return CapacityView(
            at_ns=time.time_ns(),
            memory_bytes=fleet.memory_bytes,
            memory_used_bytes=use.memory_bytes,
            cpu_millis=(os.cpu_count() or 1) * 1000,
            cpu_used_millis=use.cpu_millis,
            instances=rooms.config.runtime.max_instances,
            instances_used=use.instances,
            inflight=sum(t.pool.inflight for t in targets),
            queued=sum(t.pool.waiting for t in targets),
            draining=not rooms.mode.takes_calls,
            free_layers={
                int(kind.removeprefix("slot")): counts.ready
                for kind, counts in rooms.layers.counts().items()
                if kind.startswith("slot")
            },
            image_free_bytes=shutil.disk_usage(rooms.config.paths.data).free,
        )

    async def watch(self, min_interval_s: float) -> AsyncIterator[CapacityView]:
        """Yield the capacity now and after each change, at most every `min_interval_s` seconds."""
        before: CapacityView | None = None
        while True:
            now = self.now()
            if before is None or _changed(before, now):
                before = now
                yield now
            await asyncio.sleep(max(min_interval_s, LEAST_INTERVAL_S))


def _changed(before: CapacityView, now: CapacityView) -> bool:
    names = (field.name for field in fields(CapacityView) if field.name not in QUIET)
    return any(getattr(before, name) != getattr(now, name) for name in names)
