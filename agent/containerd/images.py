"""Image records, and what an image says about itself, read from the content store.

A record is a name for a manifest; the records made by `transfer` and `importer` always point at the
linux/amd64 manifest itself. Records made by others may point at an index, so reading resolves it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

from agent._pb.containerd.services.images.v1 import images_pb2 as pb
from agent._pb.containerd.services.images.v1 import images_pb2_grpc as rpc
from agent._pb.containerd.types import descriptor_pb2
from agent.containerd import cpu
from agent.containerd.channel import Channel
from agent.containerd.content import Content
from agent.containerd.snapshots import Snapshots
from agent.core import oci_image
from agent.core.oci_image import Descriptor, ImageConfig, Manifest
from agent.errors import AlreadyExists, InvalidSpec, NotFound, Problem
from agent.model.image_ref import ImageRef, parse_image_ref
from agent.model.records import ImageFacts

# An index of indexes is legal; more levels than this are a joke.
MAX_DEPTH = 4
# On an image's config, by what unpacked it: keeps the topmost snapshot from being collected.
SNAPSHOT_LABEL = "containerd.io/gc.ref.snapshot."


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """A name and the manifest or index it stands for."""

    name: str
    target: Descriptor
    labels: Mapping[str, str]
    created_ns: int


@dataclass(frozen=True, slots=True)
class Image:
    """A linux/amd64 image in the content store.

    `digest` is that of its manifest. `unpacked_bytes` is what its layers take on disk, None while
    they are not unpacked. A lazily mounted image is unpacked, but its layers' blobs are not here.
    """

    name: str
    digest: str
    manifest: Manifest
    config: ImageConfig
    unpacked_bytes: int | None

    @property
    def chain_id(self) -> str:
        """The key of its topmost snapshot."""
        return self.config.chain_id

    @property
    def compressed_bytes(self) -> int:
        """What pulling it transfers."""
        return self.manifest.compressed_bytes

    def blobs(self) -> tuple[str, ...]:
        """The digests of its manifest, config and layers."""
        layers = (layer.digest for layer in self.manifest.layers)
        return (self.digest, self.manifest.config.digest, *layers)

    def facts(self) -> ImageFacts:
        """Return it as it is kept with a function's version; its size is the unpacked one."""
        return ImageFacts(
            ref=self.name,
            digest=self.digest,
            chain_id=self.chain_id,
            size_bytes=self.unpacked_bytes or self.compressed_bytes,
            entrypoint=self.config.entrypoint,
            cmd=self.config.cmd,
            env=self.config.env,
            workdir=self.config.workdir,
            user=self.config.user,
            stop_signal=self.config.stop_signal,
            volumes=self.config.volumes,
            compressed_bytes=self.compressed_bytes,
        )


class Images:
    """The image store."""

    def __init__(self, channel: Channel, content: Content, snapshots: Snapshots) -> None:
        self._channel = channel
        self._rpc = rpc.ImagesStub(channel.grpc)
        self.content = content
        self._snapshots = snapshots
        self.snapshotter = snapshots.snapshotter

    async def get(self, name: str, *, deadline: float | None = None) -> ImageRecord:
        """Return the record of a full name such as docker.io/library/busybox:1. Raises NotFound."""
        request = pb.GetImageRequest(name=name)
        try:
            reply = await self._channel.call(
                self._rpc.Get, request, f"read image {name}", deadline=deadline
            )
        except NotFound as error:
            text = f"image {name} is not on this node: pull or import it first"
            raise NotFound(text) from error
        return _record(reply.image)

    async def put(
        self,
        name: str,
        target: Descriptor,
        labels: Mapping[str, str],
        *,
        lease: str = "",
        deadline: float | None = None,
    ) -> None:
        """Make `name` stand for `target`, whatever it stood for before."""
        descriptor = descriptor_pb2.Descriptor(
            media_type=target.media_type, digest=target.digest, size=target.size_bytes
        )
        image = pb.Image(name=name, labels=dict(labels), target=descriptor)
        what = f"record image {name}"
        create = pb.CreateImageRequest(image=image)
        try:
            await self._channel.call(self._rpc.Create, create, what, deadline=deadline, lease=lease)
        except AlreadyExists:
            update = pb.UpdateImageRequest(image=image)
            await self._channel.call(self._rpc.Update, update, what, deadline=deadline, lease=lease)

    async def list(self, *, deadline: float | None = None) -> tuple[ImageRecord, ...]:
        """Return all records."""
        request = pb.ListImagesRequest()
        reply = await self._channel.call(self._rpc.List, request, "list images", deadline=deadline)
        return tuple(_record(image) for image in reply.images)

    async def delete(self, name: str, *, sync: bool = False, deadline: float | None = None) -> None:
        """Remove a record; with `sync` wait until what it alone held is collected.

        The image's view (see `snapshots`) holds its layers, so remove that first. Raises NotFound.
        """
        request = pb.DeleteImageRequest(name=name, sync=sync)
        await self._channel.call(
            self._rpc.Delete, request, f"remove image {name}", deadline=deadline
        )

    async def inspect(self, name: str, *, deadline: float | None = None) -> Image:
        """Return what the image called `name` is and says.

        Raises NotFound when the record or a blob is missing, InvalidSpec when it is not for
        linux/amd64 or of an unknown format.
        """
        record = await self.get(name, deadline=deadline)
        target, data = await self._resolve(record.target, name, deadline)
        manifest = oci_image.parse_manifest(data, target.media_type, name)
        raw = await self._read(manifest.config.digest, name, deadline)
        config = oci_image.parse_config(raw, name, cpu.level())
        oci_image.check_layers(manifest, config, name)
        unpacked_bytes = None
        with contextlib.suppress(NotFound):
            keys = oci_image.chain_ids(config.diff_ids)
            unpacked_bytes = (await self._snapshots.usage(keys, deadline=deadline)).size_bytes
        return Image(name, target.digest, manifest, config, unpacked_bytes)

    async def unlabel(self, chain_id: str, snapshotter: str) -> None:
        """Let a snapshotter's layers be collected, whatever images say that they are theirs.

        By the layers, not by a name: a tag may stand for another image by now, or for none.
        """
        label = SNAPSHOT_LABEL + snapshotter
        for digest in await self.content.labelled(label, chain_id):
            with contextlib.suppress(NotFound):  # its image has just gone
                await self.content.label(digest, label, "")

    async def _resolve(
        self, target: Descriptor, name: str, deadline: float | None
    ) -> tuple[Descriptor, bytes]:
        """Follow indexes to the manifest for linux/amd64; returns it with its bytes."""
        for _ in range(MAX_DEPTH):
            oci_image.check_runnable(target, name)
            data = await self._read(target.digest, name, deadline)
            if target.media_type in oci_image.MANIFEST_TYPES:
                return target, data
            target = oci_image.choose(oci_image.parse_index(data, name), name, cpu.level())
        raise NotFound(f"image {name}: its indexes are nested more than {MAX_DEPTH} deep")

    async def _read(self, digest: str, name: str, deadline: float | None) -> bytes:
        try:
            return await self.content.read(digest, oci_image.MAX_JSON_BYTES, deadline=deadline)
        except NotFound as error:
            text = f"image {name} is incomplete here ({digest} is missing): pull or import it again"
            raise NotFound(text) from error


def image_ref(text: str) -> ImageRef:
    """Return a reference taken apart; raises InvalidSpec when it is none."""
    try:
        return parse_image_ref(text)
    except ValueError as error:
        raise InvalidSpec([Problem("image", str(error))]) from error


def _record(image: pb.Image) -> ImageRecord:
    target = image.target
    return ImageRecord(
        name=image.name,
        target=Descriptor(target.media_type, target.digest, int(target.size)),
        labels=dict(image.labels),
        created_ns=image.created_at.ToNanoseconds(),
    )
