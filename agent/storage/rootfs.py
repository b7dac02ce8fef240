"""The root file system of each instance: an overlay of the image's layers and a writable layer.

One mount per instance at `<run>/rootfs/<instance>`, made without any snapshot write. Layers come
from `agent/sandbox/images.py`, the writable one from `slots.py`. The container's own mounts live in
its mount namespace and are the runtime's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from pathlib import Path

from agent.storage import mounts
from agent.storage.slots import WritableLayer


class RootFilesystems:
    """The mounted root file systems below `<run>/rootfs`."""

    def __init__(self, run: Path) -> None:
        self._base = run / "rootfs"

    def path(self, instance: str) -> Path:
        """Return where an instance's root is or would be."""
        return self._base / instance

    async def prepare(self, instance: str, lowerdirs: Sequence[Path], layer: WritableLayer) -> Path:
        """Mount an instance's root, `lowerdirs` topmost first, and return its path.

        Raises RuntimeUnavailable; nothing is left behind then.
        """
        # 0.1 ms: less than a hop to another thread and back costs under load.
        target = self.path(instance)
        target.mkdir(parents=True, exist_ok=True)
        try:
            mounts.overlay(lowerdirs, layer.upper, layer.work, target)
        except BaseException:
            target.rmdir()
            raise
        return target

    async def teardown(self, instance: str) -> None:
        """Unmount and remove an instance's root; nothing to do is fine."""
        target = self.path(instance)
        if not target.exists():
            return
        await asyncio.to_thread(_take_down, target)

    async def sweep(self, keep: Collection[str]) -> None:
        """Remove every root but those of the instances in `keep`; once, after a restart."""
        if not self._base.is_dir():
            return
        for target in list(self._base.iterdir()):
            if target.name not in keep:
                await asyncio.to_thread(_take_down, target)


def _take_down(target: Path) -> None:
    mounts.unmount(target)
    target.rmdir()
