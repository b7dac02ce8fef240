"""What a start needs of an image, found once and kept: its facts and where its layers are.

Layers come from the one View per image; of what is in them nothing is kept. Layers unpacked here
come before those a lazy engine has mounted; what its process has mounted is kept as long as that
lives, and read on threads that may hang. Nothing is pulled here: that is
`agent/deployments/deploy.py` with `agent/containerd`. Forgetting an image is the caller's duty when
its name is removed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from agent.containerd.client import Containerd
from agent.containerd.lazy import LazySource, is_lost, unmount
from agent.containerd.snapshots import lower_dirs, view_key
from agent.errors import NotFound, RuntimeUnavailable
from agent.linux import mountinfo
from agent.model.records import ImageFacts

T = TypeVar("T")

ENGINE_S = 3.0


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """An image to start from: layer directories topmost first.

    `source` is the process that serves the layers, as text; "" when they are unpacked.
    """

    facts: ImageFacts
    layers: tuple[Path, ...]
    source: str = ""


class PreparedImages:
    """Prepared images by chain id."""

    def __init__(self, containerd: Containerd) -> None:
        self._containerd = containerd
        self._prepared: dict[str, PreparedImage] = {}
        self._turn = asyncio.Lock()
        self._forgotten = 0
        """Another number whenever something that was found before may not hold any more."""

    async def prepare(self, facts: ImageFacts, *, deadline: float) -> tuple[PreparedImage, bool]:
        """Return the prepared image and whether it was ready already.

        Raises NotFound when its layers are gone, RuntimeUnavailable when they cannot be reached.
        """
        found = self._prepared.get(facts.chain_id)
        if found is not None and await self._holds_good(found, deadline):
            # The layers may be another image's as well: what it says about itself may not.
            return replace(found, facts=facts), True
        while True:
            began = self._forgotten
            prepared = await self._prepare(facts, deadline)
            if self._forgotten == began:
                self._prepared[facts.chain_id] = prepared
                return prepared, False

    async def _prepare(self, facts: ImageFacts, deadline: float) -> PreparedImage:
        layers, source = await self._layers(facts.chain_id, deadline)
        return PreparedImage(facts, layers, source)

    async def _holds_good(self, image: PreparedImage, deadline: float) -> bool:
        """Say whether starts go on with it: what is mounted may be lost, or unpacked by now."""
        if not image.source:
            return True
        unpacked = self._containerd.snapshots.exists
        return not is_lost(image.source) and not await unpacked(
            image.facts.chain_id, deadline=deadline
        )

    def is_current(self, image: PreparedImage) -> bool:
        """Say whether a start may still use what was prepared some time ago."""
        kept = self._prepared.get(image.facts.chain_id)
        return kept is not None and kept.layers is image.layers and not is_lost(image.source)

    def sources(self) -> set[str]:
        """Return the processes that serve what starts would use."""
        return {image.source for image in self._prepared.values() if image.source}

    async def look(self, image: PreparedImage, work: Callable[[], T], *, deadline: float) -> T:
        """Return what `work` finds in an image's files.

        Raises RuntimeUnavailable when they cannot be read, or when a lazy image's do not come
        within the deadline.
        """
        what = f"files of image {image.facts.ref}"
        if not image.source:
            try:
                return await asyncio.to_thread(work)
            except OSError as error:
                raise RuntimeUnavailable(f"{what} cannot be read: {error.strerror}") from error
        try:
            return await self._containerd.lazy.files.run(what, work, deadline=deadline)
        except (TimeoutError, OSError) as error:
            why = "not in time" if isinstance(error, TimeoutError) else error.strerror
            raise RuntimeUnavailable(f"{what} do not come from their registry: {why}") from error

    async def reachable(self, image: PreparedImage) -> None:
        """Check that nobody waits for a lazy image's files for ever; raises RuntimeUnavailable."""
        source = LazySource.parse(image.source)
        engine = self._containerd.lazy.get(source.engine) if source is not None else None
        if engine is not None and not await engine.answers():
            raise RuntimeUnavailable(f"{engine.name}, which serves {image.facts.ref}, hangs")

    async def _layers(self, chain_id: str, deadline: float) -> tuple[tuple[Path, ...], str]:
        """Return an image's layers, and who serves them. Raises NotFound."""
        door = self._containerd
        try:
            async with self._turn:  # a View that is being removed is made anew, not found
                dirs = await door.snapshots.image_layers(chain_id, deadline=deadline)
        except NotFound:
            for engine in door.lazy:
                if not engine.has_run:
                    continue
                # It may just be starting again; others wait for the permit of this start.
                soon = min(deadline, asyncio.get_running_loop().time() + ENGINE_S)
                source = engine.source() or await engine.up(soon)
                with contextlib.suppress(NotFound):
                    dirs = await engine.snapshots.image_layers(chain_id, deadline=deadline)
                    return tuple(map(Path, dirs)), str(source)
            raise
        return tuple(map(Path, dirs)), ""

    def completed(self, chain_id: str) -> None:
        """Have starts use the unpacked layers from now on."""
        self._forget(chain_id)

    def unmounted(self, chain_id: str) -> None:
        """Have no start use what an engine had mounted."""
        found = self._prepared.get(chain_id)
        if found is None or found.source:
            self._forget(chain_id)

    def _forget(self, chain_id: str) -> None:
        self._prepared.pop(chain_id, None)
        self._forgotten += 1  # whoever prepares it just now looks again

    async def unmount(self, chain_id: str, needed: Callable[[], Collection[str]]) -> None:
        """Have engines let go an image whose name is gone, unless its layers are needed.

        Raises RuntimeUnavailable when an engine does not answer.
        """
        if chain_id in needed():
            return
        self.unmounted(chain_id)
        await unmount(self._containerd.lazy, chain_id)

    async def forget(self, chain_id: str, needed: Callable[[], Collection[str]]) -> bool:
        """Drop an image that no version needs any more, with its View; False if that stays.

        It does while a root is mounted over its layers, whoever's that is, and when it is among the
        `needed` after all, which is asked at the last moment.
        """
        key = view_key(chain_id)
        async with self._turn:
            try:
                mounts = await self._containerd.snapshots.mounts(key)
            except NotFound:
                self._forget(chain_id)
                return False
            layers = {_tail(directory) for directory in lower_dirs(mounts)}
            mounted = await asyncio.to_thread(_mounted_layers)
            if chain_id in needed() or not layers.isdisjoint(mounted):
                return False
            self._forget(chain_id)
            return await self._containerd.snapshots.remove(key)


def _mounted_layers() -> set[str]:
    """Return the layers that any overlay of this mount namespace lies over."""
    found: set[str] = set()
    for mounted in mountinfo.parse(mountinfo.text()):
        for option in mounted.options if mounted.kind == "overlay" else ():
            name, _, value = option.partition("=")
            if name in ("lowerdir", "lowerdir+"):
                found.update(_tail(part) for part in value.split(":"))
    return found


def _tail(layer: str) -> str:
    """Return what tells a layer's directory apart however it was written: `<number>/fs`."""
    return "/".join(layer.split("/")[-2:])
