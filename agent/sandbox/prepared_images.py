"""What a start needs of an image, found once and kept: its facts, layers and accounts.

Layers come from the one View per image; users and groups are looked up in the image's own passwd
and group files. Layers unpacked here come before those a lazy engine has mounted; what its process
has mounted is kept as long as that lives, and read on threads that may hang. Nothing is pulled
here: that is `agent/deployments/deploy.py` with `agent/containerd`. Forgetting an image is the
caller's duty when its name is removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from agent.containerd.client import Containerd
from agent.containerd.lazy import LazySource, is_lost
from agent.containerd.snapshots import view_key
from agent.errors import NotFound, RuntimeUnavailable
from agent.model.records import ImageFacts

T = TypeVar("T")

ACCOUNTS_BYTES = 1 << 20  # no honest passwd or group file is larger
# What lazy files say whose engine or registry is away.
UNREACHABLE = frozenset({errno.ENOTCONN, errno.EIO, errno.ESTALE})
ENGINE_S = 3.0
MAX_LINKS = 40  # as the kernel has it (path_resolution(7))


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """An image to start from: layer directories topmost first, and its account files.

    `source` is the process that serves the layers, as text; "" when they are unpacked.
    """

    facts: ImageFacts
    layers: tuple[Path, ...]
    passwd: bytes
    group: bytes
    source: str = ""


class PreparedImages:
    """Prepared images by chain id."""

    def __init__(self, containerd: Containerd) -> None:
        self._containerd = containerd
        self._prepared: dict[str, PreparedImage] = {}

    async def prepare(self, facts: ImageFacts, *, deadline: float) -> tuple[PreparedImage, bool]:
        """Return the prepared image and whether it was ready already.

        Raises NotFound when its layers are gone, RuntimeUnavailable when they cannot be reached.
        """
        found = self._prepared.get(facts.chain_id)
        if found is not None and not is_lost(found.source):
            # The layers may be another image's as well: what it says about itself may not.
            return replace(found, facts=facts), True
        layers, source = await self._layers(facts.chain_id, deadline)

        def accounts() -> tuple[bytes, bytes]:
            return _read(layers, "passwd"), _read(layers, "group")

        blank = PreparedImage(facts, layers, b"", b"", source)
        passwd, group = await self.look(blank, accounts, deadline=deadline)
        prepared = replace(blank, passwd=passwd, group=group)
        self._prepared[facts.chain_id] = prepared
        return prepared, False

    def is_current(self, image: PreparedImage) -> bool:
        """Say whether a start may still use what was prepared some time ago."""
        kept = self._prepared.get(image.facts.chain_id)
        return kept is not None and kept.layers is image.layers and not is_lost(image.source)

    async def look(self, image: PreparedImage, work: Callable[[], T], *, deadline: float) -> T:
        """Return what `work` finds in an image's files.

        Raises RuntimeUnavailable when a lazy image's files do not come within the deadline.
        """
        if not image.source:
            return await asyncio.to_thread(work)
        what = f"files of image {image.facts.ref}"
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
        self._prepared.pop(chain_id, None)

    async def forget(self, chain_id: str) -> None:
        """Drop an image that no version needs any more, with its View."""
        self._prepared.pop(chain_id, None)
        await self._containerd.snapshots.remove(view_key(chain_id))
        for engine in self._containerd.lazy:
            if engine.source() is not None:
                await engine.snapshots.remove(view_key(chain_id))


def _read(layers: tuple[Path, ...], name: str) -> bytes:
    """Return the topmost `/etc/<name>` of the layers; a link in an image is never followed."""
    for layer in layers:
        folder = layer / "etc"
        if folder.is_symlink():
            return b""
        try:
            fd = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno in UNREACHABLE:
                raise
            return b""  # a link, or a whiteout's character device
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return b""
            return file.read(ACCOUNTS_BYTES)
    return b""


def find_executable(rootfs: Path, command: str, search: str, workdir: str) -> str | None:
    """Say why the container could not execute `command`: "missing", "permission" or None.

    `rootfs` is the mounted root; links are resolved inside of it. `search` is the container's PATH.
    """
    if "/" in command:
        candidates = [command if command.startswith("/") else f"{workdir}/{command}"]
    else:
        candidates = [f"{folder}/{command}" for folder in search.split(":") if folder]
    why: str | None = "missing"
    for candidate in candidates:
        found = _inside(rootfs, candidate)
        if found is None:
            continue
        mode = found.stat().st_mode
        if stat.S_ISREG(mode) and mode & 0o111:
            return None
        why = "permission"
    return why


def _inside(rootfs: Path, path: str) -> Path | None:
    """Resolve a path of the container to one of the host, links included; None if it is missing."""
    todo = [part for part in reversed(path.split("/")) if part not in ("", ".")]
    here: list[str] = []
    links = 0
    while todo:
        part = todo.pop()
        if part == "..":
            here = here[:-1]
            continue
        full = rootfs.joinpath(*here, part)
        try:
            mode = full.lstat().st_mode
        except OSError as error:
            if error.errno in UNREACHABLE:
                raise
            return None
        if not stat.S_ISLNK(mode):
            here.append(part)
            continue
        links += 1
        if links > MAX_LINKS:
            return None
        target = str(full.readlink())
        if target.startswith("/"):
            here = []
        todo += [piece for piece in reversed(target.split("/")) if piece not in ("", ".")]
    return rootfs.joinpath(*here)
