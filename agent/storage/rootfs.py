"""An instance's root file system: one overlay over the image's layers and its writable layer.

Mounted in the runtime's namespace at `<run>/rootfs/<instance>`. Knows no image and no slot: both
come in as directories. After a worker's death `sweep` finds what nobody has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from agent.errors import Bug, RuntimeUnavailable
from agent.storage import mounts, tmpfs
from agent.storage.layer import WritableLayer
from agent.storage.undo import done_or_undone


class RootFilesystems:
    """All root file systems of one node."""

    def __init__(self, run: Path) -> None:
        self._root = run / "rootfs"

    def path(self, instance: str) -> Path:
        """Return where an instance's root is, or would be."""
        return self._root / instance

    async def prepare(
        self,
        instance: str,
        lowerdirs: Sequence[Path],
        layer: WritableLayer,
        furnish: Callable[[Path], None] | None = None,
    ) -> Path:
        """Mount `lowerdirs` (topmost first) under `layer` and return the absolute path.

        `furnish` is called before, on a thread, with the directory that writes go to. Raises
        RuntimeUnavailable naming path and cause. Nothing is left when it raises or is cancelled.
        """
        place = self.path(instance)
        lowers = tuple(lowerdirs)
        return await done_or_undone(
            f"mount {instance}",
            lambda: _mount(place, lowers, layer, furnish),
            lambda: tmpfs.remove(place),
        )

    async def teardown(self, instance: str) -> None:
        """Unmount and remove an instance's root; nothing there is fine."""
        await asyncio.to_thread(tmpfs.remove, self.path(instance))

    async def sweep(self, keep: Collection[str]) -> None:
        """Remove every root but those of the instances in `keep`."""
        await asyncio.to_thread(tmpfs.sweep, self._root, frozenset(keep))


def _mount(
    place: Path,
    lowerdirs: tuple[Path, ...],
    layer: WritableLayer,
    furnish: Callable[[Path], None] | None,
) -> Path:
    if not lowerdirs:
        raise Bug(f"{place.name} has no image layers")
    try:
        place.mkdir(parents=True)
    except FileExistsError as error:
        raise Bug(f"{place} exists already") from error
    except OSError as error:
        raise RuntimeUnavailable(f"{place} cannot be made: {error.strerror}") from error
    try:
        if furnish is not None:
            furnish(layer.upper)
        mounts.overlay(place, lowerdirs, layer.upper, layer.work)
    except OSError as error:
        tmpfs.remove(place)
        raise RuntimeUnavailable(f"{layer.upper} cannot be filled: {error}") from error
    except RuntimeUnavailable:
        tmpfs.remove(place)
        raise
    return place
