"""What images this node has: what each is made of, who needs it, when it was last used.

A digest never changes its meaning, so what it is made of is read once. Who needs an image is asked
anew each time, of the catalog, the instances and the deploys under way. `images.py` shows it,
`image_collector.py` decides by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.containerd.store_use import StoreContents, blob_part
from agent.core.image_gc import StoredImage
from agent.errors import InvalidSpec, NotFound

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from agent.containerd.client import Containerd
    from agent.containerd.images import Image, ImageRecord
    from agent.deployments.catalog import Catalog
    from agent.instances.admission import Admission


@dataclass(frozen=True, slots=True)
class Known:
    """What a digest stands for: the runnable manifest, its blobs' parts, its topmost layer."""

    digest: str
    blobs: frozenset[str]
    chain_id: str


@dataclass(frozen=True, slots=True)
class Stock:
    """One look at the images and at what they are made of."""

    contents: StoreContents
    records: tuple[ImageRecord, ...]
    known: dict[str, Known]
    """By the records' targets; images that this node cannot run are missing."""


class ImageStock:
    """The images of one node."""

    def __init__(
        self,
        containerd: Containerd,
        catalog: Catalog,
        admission: Admission,
        keep: Collection[str],
    ) -> None:
        self._containerd = containerd
        self._catalog = catalog
        self._admission = admission
        self._keep = frozenset(keep)
        self._known: dict[str, Known] = {}

    async def look(self) -> Stock:
        """Return what there is now."""
        contents = await self._containerd.limit.use.look()
        records = await self._containerd.images.list()
        known: dict[str, Known] = {}
        for record in records:
            target = record.target.digest
            found = self._known.get(target) or await self._inspect(record)
            if found is not None:
                known[target] = found
        self._known = known
        return Stock(contents, records, known)

    async def _inspect(self, record: ImageRecord) -> Known | None:
        try:
            image = await self._containerd.images.inspect(record.name)
        except (NotFound, InvalidSpec):
            return None
        return known_of(image, record.target.digest)

    def stored(self, stock: Stock) -> list[StoredImage]:
        """Return every image with its parts, its last use, and why it stays if it must."""
        found, users = [], self._catalog.users()
        for record in stock.records:
            known = stock.known.get(record.target.digest)
            parts = frozenset([blob_part(record.target.digest)])
            if known is not None:
                parts = known.blobs | stock.contents.chain(known.chain_id)
            held = self._held(record.name, users.get(known.digest, []) if known is not None else [])
            found.append(StoredImage(record.name, self.used_ns(record, known), parts, held))
        return found

    def used_ns(self, record: ImageRecord, known: Known | None) -> int:
        """Return when an image was last used; that it came here counts as a use."""
        last_ns = self._catalog.image_use.last_ns
        return max(last_ns.get(known.digest, 0) if known else 0, record.created_ns)

    def _held(self, name: str, users: Sequence[str]) -> str:
        """Return why an image must stay, "" if it may go; its layers may be needed all the same."""
        if name in self._keep:
            return "kept by images.keep"
        if self._catalog.image_use.relies_on(name):
            return "being deployed or pulled"
        return f"in use by {', '.join(users)}" if users else ""

    def needed_layers(self) -> set[str]:
        """Return the chain ids of what versions, instances and deploys under way run on."""
        versions = [target.version for target in self._catalog.targets()]
        versions += [one.version for one in self._admission.instances.values()]
        needed = {version.image.chain_id for version in versions if version.image is not None}
        return needed | self._catalog.image_use.layers


def known_of(image: Image, target: str) -> Known:
    """Return what of an image never changes; `target` is what its record stands for."""
    digests = (target, *image.blobs())
    return Known(image.digest, frozenset(map(blob_part, digests)), image.chain_id)
