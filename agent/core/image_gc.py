"""Which images are collected, how many, and when a store counts as full.

An image is a name and the parts it is made of: blobs and unpacked layers. Parts are shared, so what
a removal gives back depends on what stays; a part that something in use needs (`pinned`) is never
given back, and an image that would give nothing back is left alone. Who goes first: the least
recently used, then by name. Doing it is `agent/node/image_collector.py`'s, what there is
`agent/containerd/store_use.py`'s to know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

NO_LIMIT = 1 << 62
AUTO_SHARE = (4, 5)  # of a file system, when the configuration does not say
# Kept free of images on the file system: records, logs and writable layers go on when it is full.
RESERVE_SHARE = 50
RESERVE_MOST_BYTES = 1 << 30
RESERVE_MOST_FILES = 10_000
PULL_GRACE_NS = 600 * 1_000_000_000  # an interrupted pull may be taken up again by the next worker


@dataclass(frozen=True, slots=True)
class Amount:
    """Bytes and files on disk."""

    bytes: int = 0
    files: int = 0

    def __add__(self, other: Amount) -> Amount:
        """Return both together."""
        return Amount(self.bytes + other.bytes, self.files + other.files)

    def __sub__(self, other: Amount) -> Amount:
        """Return what is left; below zero where `other` is more."""
        return Amount(self.bytes - other.bytes, self.files - other.files)

    def fits(self, most: Amount) -> bool:
        """Say whether neither figure is above `most`'s."""
        return self.bytes <= most.bytes and self.files <= most.files

    def percent(self, share: float) -> Amount:
        """Return so many percent of it, rounded down."""
        return Amount(int(self.bytes * share / 100), int(self.files * share / 100))


def larger(one: Amount, other: Amount) -> Amount:
    """Return the larger of each figure."""
    return Amount(max(one.bytes, other.bytes), max(one.files, other.files))


def total(amounts: Iterable[Amount]) -> Amount:
    """Return the sum."""
    size_bytes = files = 0
    for amount in amounts:
        size_bytes += amount.bytes
        files += amount.files
    return Amount(size_bytes, files)


@dataclass(frozen=True, slots=True)
class FileSystem:
    """What a file system has and has left; `whole.files` 0 where inodes are not counted."""

    whole: Amount
    free: Amount


def reserve(disk: FileSystem) -> Amount:
    """Return what of a file system images must leave free."""
    return Amount(
        min(RESERVE_MOST_BYTES, disk.whole.bytes // RESERVE_SHARE),
        min(RESERVE_MOST_FILES, disk.whole.files // RESERVE_SHARE),
    )


def limit(configured: Amount, disk: FileSystem, used: Amount) -> Amount:
    """Return the most the store may hold now; a `configured` 0 means a share of the file system.

    `used` is what it holds. Others may fill the file system as well: then it may hold less.
    """
    part, parts = AUTO_SHARE
    left = used + disk.free - reserve(disk)
    size_bytes = configured.bytes or disk.whole.bytes * part // parts
    files = configured.files or disk.whole.files * part // parts or NO_LIMIT
    return Amount(
        max(0, min(size_bytes, left.bytes)),
        max(0, min(files, left.files if disk.whole.files else NO_LIMIT)),
    )


@dataclass(frozen=True, slots=True)
class StoredImage:
    """A name in the store. `parts` are keys of its blobs and layers; `held` says why it stays."""

    name: str
    used_ns: int
    parts: frozenset[str]
    held: str = ""


@dataclass(frozen=True, slots=True)
class Collected:
    """An image that goes, and what that gives back when those before it have gone."""

    name: str
    freed: Amount


def plan(
    images: Sequence[StoredImage],
    sizes: Mapping[str, Amount],
    pinned: Collection[str],
    excess: Amount,
    *,
    used_before_ns: int = NO_LIMIT,
) -> list[Collected]:
    """Return the images to remove, in order, until at least `excess` is given back.

    Those used at `used_before_ns` or later stay. It may not be enough: then all that can go does.
    """
    holders = Counter(part for image in images for part in image.parts)
    fixed = {part for image in images if image.held for part in image.parts}.union(pinned)
    going: list[Collected] = []
    freed = Amount()
    for image in sorted(images, key=lambda image: (image.used_ns, image.name)):
        if excess.fits(freed):
            break
        own = image.parts - fixed  # nothing of one that is held
        if image.used_ns >= used_before_ns or not own:
            continue
        holders.subtract(own)
        gives = total(sizes.get(part, Amount()) for part in own if not holders[part])
        going.append(Collected(image.name, gives))
        freed += gives
    return going


class HeldLease(Protocol):
    """A lease: its id says what for, `worker` is the generation of who made it, 0: unknown."""

    @property
    def id(self) -> str:
        """Return its name."""

    @property
    def created_ns(self) -> int:
        """Return when it was made."""

    @property
    def worker(self) -> int:
        """Return the generation of its maker."""


def is_orphan_lease(
    lease: HeldLease, ours: int, living: Collection[int], began_ns: int, now_ns: int
) -> bool:
    """Say whether nobody works under a lease any more.

    `ours` is this worker's generation, which a worker before the last boot may have had as well:
    what is older than `began_ns` is not ours. Leases that name no worker end by themselves.
    """
    if not lease.worker or lease.worker in living:
        return False
    if lease.worker == ours and lease.created_ns >= began_ns:
        return False
    return "-pull-" not in lease.id or lease.created_ns < now_ns - PULL_GRACE_NS
