"""Writable layers: provisioned slots whose size the kernel holds, or a tmpfs per instance.

Slots were made by root at setup, `<slots>/<class in MB>/<number>/{upper,work}`, each a file system
of its own or a directory with a quota; the agent only uses them and wipes them after use, in the
background. That one agent alone uses a slots directory is `agent/rootless/lock.py`'s care. Who has
which slot decides `agent/core/slots.py`; mounting the overlay is `rootfs.py`'s.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from agent.aio.tasks import launch
from agent.config import Storage
from agent.core.slots import SlotCounts, Slots, SlotState
from agent.errors import Bug, FailedPrecondition, Overloaded, RuntimeUnavailable
from agent.storage import mounts

log = logging.getLogger(__name__)

TMPFS = "tmpfs"
SLOT = "slot"
RETRY_AFTER_S = 1.0
MAX_TMPFS = 1023  # as many as there are network slots
MB = 1 << 20


@dataclass(frozen=True, slots=True)
class WritableLayer:
    """The writable layer of one instance. `kind` is "slot<MB>" or "tmpfs"."""

    instance: str
    upper: Path
    work: Path
    kind: str
    number: int


class WritableLayers:
    """All writable layers of one agent."""

    def __init__(self, config: Storage, slots: Path, run: Path) -> None:
        self._config = config
        self._base = slots
        self._tmpfs = run / "layers"
        self._slots: dict[str, Slots] = {}
        self._leased: set[tuple[str, int]] = set()

    def __repr__(self) -> str:
        return f"<WritableLayers {self._slots}>"

    async def open(self) -> None:
        """Find the slots. Raises FailedPrecondition when none were provisioned."""
        if self._config.writable == "tmpfs":
            self._tmpfs.mkdir(exist_ok=True)
            self._slots[TMPFS] = Slots(range(1, MAX_TMPFS + 1), first=SlotState.DIRTY)
            return
        if not self._base.is_dir():
            raise FailedPrecondition(f"{self._base} is not there: run setup/host.sh")
        for folder in sorted(self._base.iterdir()):
            if folder.name.isdecimal() and folder.is_dir():
                numbers = [int(p.name) for p in folder.iterdir() if _is_slot(p)]
                if numbers:
                    self._slots[f"{SLOT}{folder.name}"] = Slots(
                        sorted(numbers), first=SlotState.DIRTY
                    )
        if not self._slots:
            raise FailedPrecondition(
                f"no writable-layer slots below {self._base}: run setup/host.sh --slots N, "
                'or set storage.writable = "tmpfs"'
            )

    def adopt(self, instance: str, kind: str, number: int) -> WritableLayer:
        """Take over the layer of a running instance from its record. Raises RuntimeUnavailable."""
        slots = self._slots.get(kind)
        if slots is None or number not in slots:
            raise RuntimeUnavailable(f"{instance}: there is no writable layer {kind} {number}")
        slots.adopt(number)
        self._leased.add((kind, number))
        return self._layer(instance, kind, number)

    async def ready(self) -> None:
        """Wipe everything that nobody adopted, in the background; then it can be leased."""
        for kind, slots in self._slots.items():
            for number in slots.numbers(SlotState.DIRTY):
                if kind == TMPFS and not self._folder(kind, number).exists():
                    slots.clean(number)
                else:
                    launch(f"wipe {kind} {number}", self._clean(kind, number))

    async def lease(self, instance: str, disk_mb: int) -> WritableLayer:
        """Return a clean layer of at least `disk_mb`.

        Raises Overloaded(slots) when none is free, FailedPrecondition when this node was given no
        slots of that size at all.
        """
        kind = TMPFS if TMPFS in self._slots else f"{SLOT}{disk_mb}"
        slots = self._slots.get(kind)
        if slots is None:
            raise FailedPrecondition(
                f"this node has no writable layers of {disk_mb} MB: run setup/host.sh, or deploy "
                f"with disk_mb = {self._sizes()}"
            )
        number = slots.lease()
        if number is None:
            raise Overloaded(
                f"all {len(slots)} writable layers of this node are in use",
                reason="slots",
                retry_after_s=RETRY_AFTER_S,
            )
        self._leased.add((kind, number))
        if kind == TMPFS:
            try:
                self._make_tmpfs(number, disk_mb)
            except BaseException:
                self._leased.discard((kind, number))
                slots.release(number)
                launch(f"wipe {kind} {number}", self._clean(kind, number))
                raise
        return self._layer(instance, kind, number)

    def _make_tmpfs(self, number: int, disk_mb: int) -> None:
        folder = self._folder(TMPFS, number)
        folder.mkdir(exist_ok=True)
        mounts.tmpfs(folder, disk_mb * MB, self._config.inodes)
        (folder / "upper").mkdir()
        (folder / "work").mkdir()

    async def release(self, layer: WritableLayer) -> None:
        """Take a layer back, once, after the root over it is unmounted; wiped in the background.

        Raises Bug on a second release.
        """
        key = (layer.kind, layer.number)
        if key not in self._leased:
            raise Bug(f"{layer.kind} {layer.number} was given back twice")
        self._leased.discard(key)
        self._slots[layer.kind].release(layer.number)
        launch(f"wipe {layer.kind} {layer.number}", self._clean(layer.kind, layer.number))

    async def _clean(self, kind: str, number: int) -> None:
        try:
            await asyncio.to_thread(self._wipe, kind, number)
        except (OSError, RuntimeUnavailable) as error:
            log.warning("%s %d cannot be wiped and is not used again: %s", kind, number, error)
            return
        self._slots[kind].clean(number)

    def _wipe(self, kind: str, number: int) -> None:
        folder = self._folder(kind, number)
        if kind == TMPFS:
            mounts.unmount(folder)
            folder.rmdir()
            return
        for part in (folder / "upper", folder / "work"):
            for entry in list(part.iterdir()):
                if entry.is_dir() and not entry.is_symlink():
                    _remove_tree(entry)
                else:
                    entry.unlink()

    async def usage(self, layer: WritableLayer) -> tuple[int, int]:
        """Return the bytes a layer uses and its size."""
        found = await asyncio.to_thread(os.statvfs, layer.upper)
        size = found.f_blocks * found.f_frsize
        return size - found.f_bfree * found.f_frsize, size

    def counts(self) -> dict[str, SlotCounts]:
        """Return how many layers stand where, by kind."""
        return {kind: slots.counts() for kind, slots in self._slots.items()}

    def _layer(self, instance: str, kind: str, number: int) -> WritableLayer:
        folder = self._folder(kind, number)
        return WritableLayer(instance, folder / "upper", folder / "work", kind, number)

    def _folder(self, kind: str, number: int) -> Path:
        if kind == TMPFS:
            return self._tmpfs / str(number)
        return self._base / kind.removeprefix(SLOT) / str(number)

    def _sizes(self) -> str:
        return " or ".join(kind.removeprefix(SLOT) for kind in self._slots) or "nothing"


def _is_slot(path: Path) -> bool:
    return path.name.isdecimal() and (path / "upper").is_dir() and (path / "work").is_dir()


def _remove_tree(folder: Path) -> None:
    """Remove a tree whatever modes its directories have: they are ours, so the modes can change."""

    def retry(function: object, path: str, error: object) -> None:
        parent = Path(path).parent
        for place in (parent, Path(path)):
            if place.is_dir() and not place.is_symlink():
                place.chmod(0o700)
        if Path(path).is_dir() and not Path(path).is_symlink():
            shutil.rmtree(path)
        else:
            Path(path).unlink()

    shutil.rmtree(folder, onerror=retry)
