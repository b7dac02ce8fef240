"""Writable-layer slots as setup has made them: found, leased, wiped, leased again.

Each slot is `<slots>/<class in MB>/<number>`, a directory whose size the kernel limits, with
`upper` and `work` in it. That one agent alone uses them is `agent/rootless/lock.py`'s care. The
wiper, one background task, empties what was given back; until then a slot is nobody's. A slot that
cannot be emptied is used no more.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from contextlib import suppress
from pathlib import Path

from agent.aio import tasks
from agent.aio.turns import TurnQueue
from agent.core.slots import SlotCounts, Slots, SlotState
from agent.errors import Bug, FailedPrecondition, NotFound, Overloaded
from agent.linux import trees
from agent.storage.layer import WritableLayer

log = logging.getLogger(__name__)

_PARTS = ("upper", "work")
_KIND = re.compile(r"slot(\d{1,6})")
# What mke2fs puts into a slot and only root may remove.
_KEPT = ("lost+found",)
# Far above what as many files as a large slot can hold take on a slow disk.
_WIPE_S = 600.0
# How long the wiper works before it asks whether it is to stop; a reload waits for it.
_SLICE_S = 1.0
# How long a start waits for a slot that is being wiped.
_WAIT_S = 5.0


def kind_of(class_mb: int) -> str:
    """Return the record's word for a slot of that size."""
    return f"slot{class_mb}"


class ProvisionedSlots:
    """All slots below one directory. Lives on the loop."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._classes: dict[int, Slots] = {}
        self._held: dict[tuple[int, int], WritableLayer] = {}
        self._reserved: set[tuple[int, int]] = set()
        self._lines: dict[int, TurnQueue] = {}
        self._wake = asyncio.Event()
        self._wiper: asyncio.Task[None] | None = None
        self._closing = False

    def __repr__(self) -> str:
        return f"<ProvisionedSlots {self._directory} {self._classes}>"

    async def open(self) -> None:
        """Find the slots; nothing is wiped yet. Raises FailedPrecondition when there are none."""
        found = await asyncio.to_thread(_discover, self._directory)
        for class_mb, numbers in found.items():
            self._classes[class_mb] = Slots(numbers, first=SlotState.DIRTY)
            self._lines[class_mb] = TurnQueue()

    def adopt(self, instance: str, kind: str, number: int) -> WritableLayer:
        """Record that a running instance has this slot; NotFound if setup has taken it away."""
        class_mb = _class_of(kind)
        slots = self._classes.get(class_mb)
        if slots is None or number not in slots:
            raise NotFound(f"writable-layer slot {kind}/{number} of {instance} does not exist")
        if (class_mb, number) in self._reserved:
            self._reserved.discard((class_mb, number))
        else:
            slots.adopt(number)
        return self._hold(instance, class_mb, number)

    def reserve(self, kind: str, number: int) -> None:
        """Set a slot aside that nobody here holds: neither wiped nor leased until `unreserve`."""
        class_mb = _class_of(kind)
        slots = self._classes.get(class_mb)
        if slots is not None and slots.adoptable(number):
            slots.adopt(number)
            self._reserved.add((class_mb, number))

    def unreserve(self, kind: str, number: int) -> None:
        """Have a slot that was set aside wiped; safe for one that was not."""
        key = (_class_of(kind), number)
        if key in self._reserved:
            self._reserved.discard(key)
            self._classes[key[0]].release(number)
            self._wake.set()

    def begin(self) -> None:
        """Start wiping everything that nobody adopted."""
        self._wiper = tasks.spawn("writable-slots", self._wipe())

    async def lease(self, instance: str, disk_mb: int) -> WritableLayer:
        """Return an empty slot of exactly that class.

        Raises Overloaded(slots) when all are taken, FailedPrecondition when there are none of
        that size on this node.
        """
        slots = self._classes.get(disk_mb)
        if slots is None:
            sizes = ", ".join(str(size) for size in sorted(self._classes))
            raise FailedPrecondition(
                f"this node has no writable-layer slots of {disk_mb} MB (only of {sizes} MB): "
                "run setup/host.sh with --slots or --big-slots"
            )
        line, deadline = self._lines[disk_mb], asyncio.get_running_loop().time() + _WAIT_S
        number = None if len(line) else slots.lease()
        while number is None:
            counts = slots.counts()
            if counts.dirty + counts.ready <= len(line) or self._wiper is None:
                raise _full(slots, disk_mb)
            try:
                await line.turn(deadline)
            except TimeoutError as error:
                raise _full(slots, disk_mb) from error
            number = slots.lease()
        return self._hold(instance, disk_mb, number)

    def release(self, layer: WritableLayer) -> None:
        """Take a slot back; raises Bug unless `layer` is the very lease that is out."""
        key = (_class_of(layer.kind), layer.number)
        if self._held.get(key) is not layer:
            raise Bug(f"{layer.kind}/{layer.number} is not leased to whom releases it")
        self._classes[key[0]].release(layer.number)
        del self._held[key]
        self._wake.set()

    def counts(self) -> dict[str, SlotCounts]:
        """Return how many slots stand where, by kind; `free` ones are out of use."""
        return {kind_of(class_mb): slots.counts() for class_mb, slots in self._classes.items()}

    async def close(self) -> None:
        """Stop wiping, in the middle of a slot too: the next worker must find nobody at work in it.

        Slots of running instances stay as they are.
        """
        wiper, self._wiper = self._wiper, None
        if wiper is not None:
            self._closing = True
            self._wake.set()
            await asyncio.wait({wiper})

    def _hold(self, instance: str, class_mb: int, number: int) -> WritableLayer:
        place = self._place(class_mb, number)
        kind = kind_of(class_mb)
        layer = WritableLayer(instance, place / "upper", place / "work", kind, number)
        self._held[class_mb, number] = layer
        return layer

    def _place(self, class_mb: int, number: int) -> Path:
        return self._directory / str(class_mb) / str(number)

    async def _wipe(self) -> None:
        while not self._closing:
            found = self._dirty()
            if found is None:
                self._wake.clear()
                await self._wake.wait()
                continue
            class_mb, number = found
            place = self._place(class_mb, number)
            try:
                wiped = await self._wipe_slot(place)
            except OSError:
                log.exception("slot %s cannot be emptied and is used no more", place)
                self._classes[class_mb].discard(number)
                continue
            if wiped:
                self._classes[class_mb].clean(number)
                self._lines[class_mb].tell()

    async def _wipe_slot(self, place: Path) -> bool:
        """Empty one slot; False when it was cut short: the next worker does it again then."""
        until = time.monotonic() + _WIPE_S
        while not self._closing:
            try:
                await asyncio.to_thread(_renew, place, _SLICE_S)
            except TimeoutError:
                if time.monotonic() >= until:
                    raise
            else:
                return True
        return False

    def _dirty(self) -> tuple[int, int] | None:
        """The dirty slot for which most callers wait."""
        for class_mb in sorted(self._classes, key=lambda size: -len(self._lines[size])):
            numbers = self._classes[class_mb].numbers(SlotState.DIRTY)
            if numbers:
                return class_mb, numbers[0]
        return None


def _full(slots: Slots, disk_mb: int) -> Overloaded:
    return Overloaded(
        f"all {len(slots)} writable-layer slots of {disk_mb} MB are taken", reason="slots"
    )


def _class_of(kind: str) -> int:
    found = _KIND.fullmatch(kind)
    if found is None:
        raise Bug(f"{kind!r} is no kind of writable-layer slot")
    return int(found[1])


def _renew(place: Path, within_s: float) -> None:
    """Make upper and work anew: an overlay also leaves marks on the directories themselves.

    Emptied first, for a full slot has no room for a new directory; one at a time, so that a slot
    whose wiping was cut short is still known as one.
    """
    trees.empty_or_raise(place, (*_PARTS, *_KEPT), within_s=within_s)
    for name in _PARTS:
        with suppress(FileNotFoundError):
            trees.empty_or_raise(place / name, within_s=within_s)
            (place / name).rmdir()
        (place / name).mkdir(0o755)


def _discover(directory: Path) -> dict[int, list[int]]:
    """Return the numbers of the usable slots by class."""
    found: dict[int, list[int]] = {}
    with suppress(FileNotFoundError):
        for group in sorted(directory.iterdir()):
            if group.name.isdecimal() and group.is_dir():
                numbers = [
                    int(p.name) for p in group.iterdir() if p.name.isdecimal() and _usable(p)
                ]
                if numbers:
                    found[int(group.name)] = sorted(numbers)
    if not found:
        raise FailedPrecondition(
            f"no writable-layer slots below {directory}: run 'setup/host.sh --slots N', "
            'or set storage.writable = "tmpfs"'
        )
    return found


def _usable(place: Path) -> bool:
    """Tell a slot, even one half wiped, from the empty directory it would be mounted on."""
    return os.access(place, os.W_OK | os.X_OK) and any((place / name).is_dir() for name in _PARTS)
