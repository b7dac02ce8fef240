"""A mounted image on its way to being unpacked: who it is for, how far it is, and one try.

A try is an ordinary pull of the same digest. When it is made, and made again, is `lazy_image.py`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.aio.tasks import finish
from agent.deployments.asking import Ahead, Asking
from agent.errors import AgentError, NotFound
from agent.model.image_ref import parse_image_ref
from agent.model.records import ImageFacts
from agent.telemetry.events import Events

if TYPE_CHECKING:
    from agent.containerd.client import Containerd
    from agent.containerd.silence import Progress
    from agent.deployments.image_use import ImageUse

MB = 1 << 20
COMPLETE_S = 3600.0
FORGET_S = 10.0
TOLD_S = 10.0  # between two events about one image's progress


@dataclass(slots=True)
class Completion:
    """One image on its way from mounted to unpacked; `askers` are those it is for, by name."""

    facts: ImageFacts
    askers: dict[str, Asking]
    done_bytes: int = 0
    total_bytes: int = 0
    task: asyncio.Task[None] | None = None

    @property
    def asker(self) -> Asking:
        """Whose credentials count: those of who asked last, a function's before all others."""
        askers = list(reversed(self.askers.values()))
        return next((one for one in askers if not isinstance(one, Ahead)), askers[0])

    def __str__(self) -> str:
        of = f"{self.done_bytes // MB} of {self.total_bytes // MB} MB"
        return f"{self.facts.ref}: {of}"


class Completing:
    """Tries to complete images."""

    def __init__(self, containerd: Containerd, events: Events, use: ImageUse) -> None:
        self._door = containerd
        self._events = events
        self._use = use

    async def fetch_whole(self, one: Completion) -> None:
        """Fetch and unpack it, unless it is here by now; a view holds it then. Raises as pulls."""
        deadline = asyncio.get_running_loop().time() + COMPLETE_S
        snapshots, chain_id = self._door.snapshots, one.facts.chain_id
        if await snapshots.exists(chain_id):  # by an import, or another image of the same layers
            await snapshots.image_layers(chain_id, deadline=deadline)
            return
        # By digest: the tag may stand for another image by now.
        reference = parse_image_ref(one.facts.ref)
        name = f"{reference.name}@{one.facts.digest}"
        asker = one.asker
        access = self._door.keyring.access(reference.host, asker.registry, asker.name)
        told = self._teller(one)
        with self._use.passing(name) as is_passing:
            known = await self._is_named(name)
            try:
                transfer = self._door.transfer
                await transfer.pull(name, deadline=deadline, progress=told, access=access)
                # The view, and the image's own name, hold the layers from here on.
                await snapshots.image_layers(chain_id, deadline=deadline)
            finally:
                if not known and is_passing():
                    await finish(f"forget {name}", self._forget_name(name), within_s=FORGET_S)

    def _teller(self, one: Completion) -> Callable[[Progress], None]:
        loop = asyncio.get_running_loop()
        blobs: dict[str, tuple[int, int]] = {}
        told_at = loop.time()

        def told(step: Progress) -> None:
            nonlocal told_at
            if not step.total_bytes or step.event == "extracting":
                return
            blobs[step.name] = (step.done_bytes, step.total_bytes)
            one.done_bytes = sum(done for done, _ in blobs.values())
            one.total_bytes = max(sum(total for _, total in blobs.values()), one.done_bytes)
            if loop.time() >= told_at + TOLD_S:
                told_at = loop.time()
                details = {"done_bytes": str(one.done_bytes), "total_bytes": str(one.total_bytes)}
                self._events.add("ImageCompleting", message=f"image {one}", details=details)

        return told

    async def _forget_name(self, name: str) -> None:
        with contextlib.suppress(AgentError), self._use.removing(name):
            await self._door.images.delete(name)

    async def _is_named(self, name: str) -> bool:
        with contextlib.suppress(NotFound):
            await self._door.images.get(name)
            return True
        return False
