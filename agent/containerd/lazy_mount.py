"""Mounts an image by a lazy engine, layer by layer, and records it.

containerd can do so as part of a transfer, but tells an engine of one layer at a time and not how
large it is: each one then costs some round trips to the registry. Here the engine hears of all of
them with the first one, and asks for them at once. Manifest and config are written from what was
read when the reference was resolved. What an engine cannot mount is left to a transfer, which finds
mounted what could be.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Sequence

from agent.aio.tasks import finish
from agent.containerd.channel import Channel
from agent.containerd.images import SNAPSHOT_LABEL, Images
from agent.containerd.registry import Resolved
from agent.containerd.snapshots import Snapshots
from agent.core import oci_image
from agent.core.oci_image import Descriptor
from agent.errors import AlreadyExists

log = logging.getLogger(__name__)

LAYER_S = 60.0
UNDO_S = 30.0

# What engines go by: containerd's labels (its pkg/snapshotters/annotations.go), and sizes, without
# which each layer's is asked for and no other layer is (soci-snapshotter, fs/source/source.go).
TARGET = "containerd.io/snapshot.ref"
CRI = "containerd.io/snapshot/cri."
REMOTE = "containerd.io/snapshot/remote/"
HELD = "containerd.io/gc.ref.content."
LABEL_CHARS = 4096  # of key and value together (containerd, pkg/labels/validate.go)


class LazyMounter:
    """Mounts whole images."""

    def __init__(self, channel: Channel, images: Images) -> None:
        self._channel = channel
        self._images = images

    async def mount(
        self, name: str, found: Resolved, snapshotter: str, *, lease: str, deadline: float
    ) -> bool:
        """Mount a resolved image's layers and record it as `name`; False if one cannot be.

        Each layer has a minute at most. Raises RuntimeUnavailable when the engine does not answer.
        """
        snapshots = Snapshots(self._channel, snapshotter)
        layers, parent = found.manifest.layers, ""
        for number, chain in enumerate(oci_image.chain_ids(found.config.diff_ids)):
            labels = layer_labels(name, found.target.digest, layers[number:], snapshotter)
            labels[TARGET] = chain
            if not await self._layer(snapshots, parent, labels, lease, deadline):
                log.info("%s mounts no layer %s of %s", snapshotter, layers[number].digest, name)
                return False
            parent = chain
        await self._record(name, found, snapshotter, parent, lease, deadline)
        return True

    async def _layer(
        self,
        snapshots: Snapshots,
        parent: str,
        labels: dict[str, str],
        lease: str,
        deadline: float,
    ) -> bool:
        """Have one layer mounted; an engine that did says that its snapshot exists already."""
        key = f"extract-{secrets.token_hex(6)} {labels[TARGET]}"
        within = min(deadline, asyncio.get_running_loop().time() + LAYER_S)
        try:
            await snapshots.prepare(key, parent, labels, lease=lease, deadline=within)
        except AlreadyExists:
            return True
        await finish(f"remove snapshot {key}", snapshots.remove(key), within_s=UNDO_S)
        return False

    async def _record(
        self,
        name: str,
        found: Resolved,
        snapshotter: str,
        chain_id: str,
        lease: str,
        deadline: float,
    ) -> None:
        content, config = self._images.content, found.manifest.config
        for blob, data in ((config, found.config_bytes), (found.target, found.manifest_bytes)):
            await content.store(blob.digest, data, lease=lease, deadline=deadline)
        label, manifest = content.label, found.target.digest
        await label(config.digest, SNAPSHOT_LABEL + snapshotter, chain_id, deadline=deadline)
        await label(manifest, HELD + "config", config.digest, deadline=deadline)
        # Layers that are fetched later are held by the name as well.
        for number, layer in enumerate(found.manifest.layers):
            await label(manifest, f"{HELD}l.{number}", layer.digest, deadline=deadline)
        await self._images.put(name, found.target, {}, lease=lease, deadline=deadline)


def layer_labels(
    name: str, manifest: str, layers: Sequence[Descriptor], snapshotter: str
) -> dict[str, str]:
    """Return what an engine needs to know of the first of some layers, and of those above it."""
    digests, sizes = CRI + "image-layers", REMOTE + "image.layers.size"
    told = list(layers)
    while len(digests) + len(",".join(layer.digest for layer in told)) > LABEL_CHARS:
        told.pop()  # the rest is told with the next one
    return {
        CRI + "image-ref": name,
        CRI + "manifest-digest": manifest,
        CRI + "layer-digest": layers[0].digest,
        digests: ",".join(layer.digest for layer in told),
        f"{REMOTE}{snapshotter}.size": str(layers[0].size_bytes),
        sizes: ",".join(str(layer.size_bytes) for layer in told),
    }
