"""What a start needs of an image, found once and kept: its facts, layers and accounts.

Layers come from the one View per image; users and groups are looked up in the image's own passwd
and group files. Nothing is pulled here: that is `agent/deployments/deploy.py` with
`agent/containerd`. Forgetting an image is the caller's duty when its name is removed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

from agent.containerd.client import Containerd
from agent.containerd.snapshots import lower_dirs, view_key
from agent.core.users import MAX_FILE_BYTES
from agent.errors import NotFound
from agent.linux import mountinfo
from agent.model.records import ImageFacts
from agent.sandbox.image_files import ImageFiles


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """An unpacked image: layer directories topmost first, and its account files."""

    facts: ImageFacts
    layers: tuple[Path, ...]
    passwd: bytes
    group: bytes


class PreparedImages:
    """Prepared images by chain id."""

    def __init__(self, containerd: Containerd) -> None:
        self._containerd = containerd
        self._prepared: dict[str, PreparedImage] = {}
        self._turn = asyncio.Lock()

    async def prepare(self, facts: ImageFacts, *, deadline: float) -> tuple[PreparedImage, bool]:
        """Return the prepared image and whether it was ready already.

        Raises NotFound when its unpacked layers are gone.
        """
        found = self._prepared.get(facts.chain_id)
        if found is not None:
            # The layers may be another image's as well: what it says about itself may not.
            return replace(found, facts=facts), True
        async with self._turn:  # a View that is being removed is made anew, not found
            dirs = await self._containerd.snapshots.image_layers(facts.chain_id, deadline=deadline)
            layers = tuple(Path(directory) for directory in dirs)
            files = ImageFiles(layers)
            passwd = await asyncio.to_thread(_read, files, "/etc/passwd")
            group = await asyncio.to_thread(_read, files, "/etc/group")
            prepared = PreparedImage(facts, layers, passwd, group)
            self._prepared[facts.chain_id] = prepared
        return prepared, False

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
                self._prepared.pop(chain_id, None)
                return False
            layers = {_tail(directory) for directory in lower_dirs(mounts)}
            mounted = await asyncio.to_thread(_mounted_layers)
            if chain_id in needed() or not layers.isdisjoint(mounted):
                return False
            self._prepared.pop(chain_id, None)
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


def _read(files: ImageFiles, path: str) -> bytes:
    """Return a file of accounts as the container would see it; b"" where there is none to read."""
    try:
        return files.read(path, MAX_FILE_BYTES + 1)
    except OSError:
        return b""
