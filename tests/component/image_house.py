"""A node's images over a store in memory that collects as containerd does.

`images`, `blobs`, `snapshots` and `leases` are what is there; `collect` removes what nothing refers
to. Everything above it is the real thing: stock, collector, orphans, limit, prepared images.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from agent.config import ImagesSettings, LazySettings
from agent.containerd.engine_store import EngineStore
from agent.containerd.keyring import Keyring
from agent.containerd.leases import StoreLease
from agent.containerd.snapshots import Snapshot, SnapshotMount, Usage, view_key
from agent.containerd.store_limit import StoreBounds, StoreLimit
from agent.containerd.store_use import StoreUse
from agent.core.image_gc import Amount
from agent.core.oci_image import Descriptor
from agent.deployments.catalog import Catalog
from agent.deployments.lazy_image import LazyImages
from agent.errors import NotFound
from agent.node.image_collector import ImageCollector
from agent.node.image_stock import ImageStock
from agent.node.images import NodeImages
from agent.recovery.orphans import Orphans
from agent.sandbox.prepared_images import PreparedImages
from agent.store.last_use import LastUses
from agent.telemetry.events import Events

WORKER = 7
LAYER = Amount(100, 10)
BLOB_BYTES = 40


class Store:
    """containerd, as far as images go."""

    def __init__(self) -> None:
        self.here: dict[str, Any] = {}
        self.blobs: dict[str, int] = {}
        self.layers: dict[str, Snapshot] = {}
        self.held: dict[str, StoreLease] = {}
        self.unfinished: list[Any] = []
        self.interrupted: list[str] = []
        self.collected = 0
        self.worker = WORKER
        self.gate: asyncio.Event | None = None
        self.at_gate = asyncio.Event()
        self.loaded = b""
        self.snapshotter = "overlayfs"

    def add(
        self,
        name: str,
        digest: str = "sha256:1",
        layers: tuple[str, ...] = ("sha256:c",),
        **more: Any,
    ) -> None:
        """An image of layers, lowest first, each a blob and a snapshot of its own."""
        blobs = [f"{key}-blob" for key in layers]
        manifest = SimpleNamespace(
            media_type="m",
            config=Descriptor("c", f"{digest}-config", 1),
            layers=tuple(Descriptor("l", blob, BLOB_BYTES) for blob in blobs),
        )
        self.here[name] = SimpleNamespace(
            name=name,
            digest=digest,
            chain_id=layers[-1],
            compressed_bytes=BLOB_BYTES * len(blobs),
            unpacked_bytes=LAYER.bytes * len(layers),
            manifest=manifest,
            created_ns=more.get("created_ns", 0),
            blobs=lambda: (digest, f"{digest}-config", *blobs),
        )
        self.blobs |= dict.fromkeys(blobs, BLOB_BYTES) | {digest: 1, f"{digest}-config": 1}
        below = ""
        for key in layers:
            self.layers[key] = Snapshot(key, below, "committed", {})
            below = key

    def view(self, chain_id: str) -> None:
        self.layers[view_key(chain_id)] = Snapshot(view_key(chain_id), chain_id, "view", {})

    # images

    async def get(self, name: str) -> Any:
        if name not in self.here:
            raise NotFound(name)
        image = self.here[name]
        return SimpleNamespace(
            name=name, target=Descriptor("m", image.digest, 1), created_ns=image.created_ns
        )

    async def inspect(self, name: str) -> Any:
        await self.get(name)
        return self.here[name]

    async def delete(self, name: str) -> None:
        if self.gate is not None:
            self.at_gate.set()
            await self.gate.wait()
        del self.here[name]

    async def load(
        self, path: Path, *, name: str, everything: bool, scratch: Path, deadline: float
    ) -> tuple[Any, ...]:
        self.loaded = path.read_bytes()
        self.add(name)
        return (self.here[name],)

    # leases

    async def ours(self) -> tuple[StoreLease, ...]:
        return tuple(self.held.values())

    async def give_up(self) -> bool:
        """Let go of what interrupted pulls have fetched."""
        gone, self.interrupted = self.interrupted, []
        for blob in gone:
            del self.blobs[blob]
        return bool(gone)

    async def drop_lease(self, id: str, **_: Any) -> bool:
        return self.held.pop(id, None) is not None

    async def collect(self, *, deadline: float) -> None:
        """Remove what neither an image nor a view refers to."""
        self.collected += 1
        roots = [image.chain_id for image in self.here.values()]
        roots += [shot.parent for shot in self.layers.values() if shot.kind == "view"]
        alive: set[str] = set()
        for root in roots:
            while root:
                alive.add(root)
                root = self.layers[root].parent
        keep = {
            digest
            for image in self.here.values()
            for digest in (
                image.digest,
                image.manifest.config.digest,
                *(layer.digest for layer in image.manifest.layers),
            )
        }
        self.layers = {k: s for k, s in self.layers.items() if s.kind == "view" or k in alive}
        self.blobs = {k: size for k, size in self.blobs.items() if k in keep}

    # content and snapshots

    async def sizes(self, **_: Any) -> dict[str, int]:
        return dict(self.blobs)

    async def ingests(self, **_: Any) -> Any:
        return list(self.unfinished)

    async def forget_ingest(self, ref: str) -> None:
        self.unfinished = [one for one in self.unfinished if one.ref != ref]

    async def snapshots(self, **_: Any) -> list[Snapshot]:
        return [*self.layers.values()]

    async def usage(self, keys: Any, **_: Any) -> Usage:
        return Usage(LAYER.bytes * len(keys), LAYER.files * len(keys))

    async def mounts(self, key: str) -> tuple[SnapshotMount, ...]:
        if key not in self.layers:
            raise NotFound(key)
        return (SnapshotMount("bind", f"/nowhere/snapshots/{key}/fs"),)

    async def remove(self, key: str) -> bool:
        return self.layers.pop(key, None) is not None

    async def list(self, **_: Any) -> Any:
        return tuple([await self.get(name) for name in self.here])

    def client(self) -> Any:
        """It as `containerd.client.Containerd` has it."""
        content = SimpleNamespace(sizes=self.sizes, ingests=self.ingests)
        content.forget_ingest = self.forget_ingest
        snapshots = SimpleNamespace(
            list=self.snapshots, usage=self.usage, mounts=self.mounts, remove=self.remove
        )
        leases = SimpleNamespace(
            worker=self.worker, ours=self.ours, delete=self.drop_lease, collect=self.collect
        )
        leases.give_up = self.give_up
        use: Any = StoreUse(cast(Any, content), cast(Any, snapshots), cast(Any, leases))
        return SimpleNamespace(
            lazy=(),
            images=self,
            importer=self,
            content=content,
            snapshots=snapshots,
            leases=leases,
            limit=StoreLimit(use),
            engine_store=EngineStore(()),
            keyring=Keyring(),
        )


def function(name: str, digest: str, chain_id: str) -> Any:
    image = SimpleNamespace(digest=digest, chain_id=chain_id)
    return SimpleNamespace(version=SimpleNamespace(key=(name, 1), image=image))


class ImageHouse:
    """A node with a store in memory; its limit is `most`."""

    def __init__(self, path: Path, **settings: Any) -> None:
        self.path = path / "import"
        self.store, self.catalog = Store(), Catalog()
        self.living: frozenset[int] = frozenset()
        self.settings = ImagesSettings(**settings)
        self.containerd = self.store.client()
        self.instances: dict[str, Any] = {}
        admission: Any = SimpleNamespace(instances=self.instances)
        prepared = PreparedImages(self.containerd)
        self.stock = ImageStock(self.containerd, self.catalog, admission, self.settings.keep)
        self.uses = LastUses(path / "images.json")
        self.collector = ImageCollector(
            self.settings,
            self.containerd,
            self.stock,
            Orphans(self.containerd, prepared, lambda: self.living),
            self.catalog,
            path,
        )
        most = Amount(self.settings.max_bytes, self.settings.max_files)
        bounds = StoreBounds(most, path)
        self.containerd.limit.hold_to(bounds, self.collector.make_room)
        self.lazy = LazyImages(
            LazySettings(), self.containerd, prepared, Events(), self.catalog.image_use
        )
        self.images = NodeImages(
            self.containerd, self.collector, self.catalog, self.lazy, self.path, 60.0
        )

    def names(self) -> list[str]:
        return sorted(self.store.here)

    async def used(self) -> Amount:
        use: StoreUse = self.containerd.limit.use
        return (await use.look()).used

    def run(self, id: str, chain_id: str) -> None:
        """An instance on these layers."""
        image = SimpleNamespace(digest=f"{id}-digest", chain_id=chain_id)
        self.instances[id] = SimpleNamespace(version=SimpleNamespace(image=image))

    def lease(self, id: str, *, worker: int, age_s: float = 0.0) -> None:
        self.store.held[id] = StoreLease(id, time.time_ns() - int(age_s * 1e9), worker)
