"""What a start needs of an image, found once and kept: its facts, layers and accounts.

Layers come from the one View per image; users and groups are looked up in the image's own passwd
and group files. Nothing is pulled here: that is `agent/deployments/deploy.py` with
`agent/containerd`. Forgetting an image is the caller's duty when its name is removed.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

from agent.containerd.client import Containerd
from agent.containerd.snapshots import lower_dirs, view_key
from agent.errors import NotFound
from agent.linux import mountinfo
from agent.model.records import ImageFacts

ACCOUNTS_BYTES = 1 << 20  # no honest passwd or group file is larger
MAX_LINKS = 40  # as the kernel has it (path_resolution(7))


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
            passwd = await asyncio.to_thread(_read, layers, "passwd")
            group = await asyncio.to_thread(_read, layers, "group")
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
        except OSError:  # a link, or a whiteout's character device
            return b""
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
        except OSError:
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
