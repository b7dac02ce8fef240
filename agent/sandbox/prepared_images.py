"""What a start needs of an image, found once and kept: its facts, layers and accounts.

Layers come from the one View per image; users and groups are looked up in the image's own passwd
and group files. Nothing is pulled here: that is `agent/deployments/deploy.py` with
`agent/containerd`. Forgetting an image is the caller's duty when its name is removed.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path

from agent.containerd.client import Containerd
from agent.containerd.snapshots import view_key
from agent.core.users import MAX_FILE_BYTES
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

    async def prepare(self, facts: ImageFacts, *, deadline: float) -> tuple[PreparedImage, bool]:
        """Return the prepared image and whether it was ready already.

        Raises NotFound when its unpacked layers are gone.
        """
        found = self._prepared.get(facts.chain_id)
        if found is not None:
            # The layers may be another image's as well: what it says about itself may not.
            return replace(found, facts=facts), True
        dirs = await self._containerd.snapshots.image_layers(facts.chain_id, deadline=deadline)
        layers = tuple(Path(directory) for directory in dirs)
        files = ImageFiles(layers)
        passwd = await asyncio.to_thread(_read, files, "/etc/passwd")
        group = await asyncio.to_thread(_read, files, "/etc/group")
        prepared = PreparedImage(facts, layers, passwd, group)
        self._prepared[facts.chain_id] = prepared
        return prepared, False

    async def forget(self, chain_id: str) -> None:
        """Drop an image that no version needs any more, with its View."""
        self._prepared.pop(chain_id, None)
        await self._containerd.snapshots.remove(view_key(chain_id))


def _read(files: ImageFiles, path: str) -> bytes:
    """Return a file of accounts as the container would see it; b"" where there is none to read."""
    try:
        return files.read(path, MAX_FILE_BYTES + 1)
    except OSError:
        return b""
