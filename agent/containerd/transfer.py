"""Brings images from registries into the content store and unpacks them.

containerd downloads and unpacks; here the reference is resolved first, so that what cannot run is
refused before download, and exactly the linux/amd64 manifest found then is fetched by its digest.
Everything is under a lease until the image record holds it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from google.protobuf.message import Message

from agent._pb.containerd.services.transfer.v1 import transfer_pb2 as pb
from agent._pb.containerd.services.transfer.v1 import transfer_pb2_grpc as rpc
from agent._pb.containerd.types import platform_pb2
from agent._pb.containerd.types.transfer import imagestore_pb2, progress_pb2, registry_pb2
from agent.aio import tasks
from agent.containerd import registry
from agent.containerd.channel import Channel
from agent.containerd.images import Image, Images, image_ref
from agent.containerd.leases import Leases
from agent.containerd.registry import Credentials, Resolved
from agent.containerd.streams import Stream, open_stream, pack
from agent.core.registry_hops import plain_http
from agent.errors import AgentError, InvalidSpec, NotFound, Problem, RuntimeUnavailable
from agent.model.image_ref import ImageRef

LAST_STEPS_S = 1.0
PLATFORM = platform_pb2.Platform(os="linux", architecture="amd64")
# How containerd's unpacker words that the layers themselves are wrong; it gives no code for it.
BAD_LAYER_WORDS = ("wrong diff id", "failed to extract layer", "layers and diffIDs don't match")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one blob (or the whole pull, `name` "") has come; told every 0.3 s at most."""

    event: str
    name: str
    done_bytes: int
    total_bytes: int


class Transfer:
    """Pulls, and the unpacking that `importer` shares."""

    def __init__(self, channel: Channel, images: Images, leases: Leases) -> None:
        self._channel = channel
        self._rpc = rpc.TransferStub(channel.grpc)
        self._images = images
        self._leases = leases
        self.snapshotter = images.snapshotter

    async def resolve(
        self, ref: str, *, deadline: float, credentials: Credentials | None = None
    ) -> Resolved:
        """Ask the registry what a reference stands for; see `registry.resolve`."""
        return await registry.resolve(image_ref(ref), deadline=deadline, credentials=credentials)

    async def pull(
        self,
        ref: str,
        *,
        deadline: float,
        progress: Callable[[Progress], None] | None = None,
        accept: Callable[[Resolved], None] | None = None,
        choose: Callable[[Resolved], Awaitable[str]] | None = None,
    ) -> Image:
        """Fetch and unpack what `ref` stands for now, and return it under its full name.

        `accept` sees the resolved image before download and may refuse it by raising. `choose`
        names the snapshotter of a lazy engine to mount it by, or "" to unpack it. `progress` is
        called on the loop and must not block. What is here already is not fetched again.
        `deadline` is the loop's time and bounds all of it. Raises as `registry.resolve` does, and
        InvalidSpec when the layers cannot be unpacked.
        """
        reference = image_ref(ref)
        found = await registry.resolve(reference, deadline=deadline)
        if accept is not None:
            accept(found)
        name = str(reference)
        here = await self.present(name, found, deadline)
        if here is not None:
            return here
        what = f"pull image {name}"
        left_s = deadline - asyncio.get_running_loop().time()
        async with self._leases.hold("pull", max(left_s, 0.0)) as lease:
            source = _source(reference, found.target.digest)
            target = self.store(name, await choose(found) if choose is not None else "")
            try:
                await self._run(source, target, what, lease=lease, deadline=deadline, told=progress)
            except NotFound as error:
                text = f"{what}: {reference.host} lost a part of it meanwhile; try again"
                raise NotFound(text) from error
            return await self._images.inspect(name, deadline=deadline)

    async def present(self, name: str, found: Resolved, deadline: float) -> Image | None:
        """Return what is unpacked here under this name, if it is what was found there."""
        try:
            image = await self._images.inspect(name, deadline=deadline)
        except (NotFound, InvalidSpec):
            return None
        same = image.digest == found.target.digest and image.unpacked_bytes is not None
        return image if same else None

    def store(self, name: str, snapshotter: str = "") -> imagestore_pb2.ImageStore:
        """Return the destination: a record called `name` ("" for none) and unpacked layers."""
        unpack = imagestore_pb2.UnpackConfiguration(
            platform=PLATFORM, snapshotter=snapshotter or self.snapshotter
        )
        return imagestore_pb2.ImageStore(name=name, platforms=[PLATFORM], unpacks=[unpack])

    async def run(
        self, source: Message, target: Message, what: str, *, lease: str, deadline: float
    ) -> None:
        """Transfer and wait for the end. Raises InvalidSpec when layers cannot be unpacked."""
        await self._run(source, target, what, lease=lease, deadline=deadline)

    async def _run(
        self,
        source: Message,
        target: Message,
        what: str,
        *,
        lease: str,
        deadline: float,
        told: Callable[[Progress], None] | None = None,
    ) -> None:
        request = pb.TransferRequest(source=pack(source), destination=pack(target))
        if told is None:
            await self._call(request, what, lease, deadline)
            return
        async with open_stream(self._channel, "progress", deadline) as stream:
            request.options.progress_stream = stream.id
            reader = tasks.spawn("progress of a pull", _follow(stream, told))
            try:
                await self._call(request, what, lease, deadline)
                # containerd closes the stream with the transfer: take the last steps.
                await asyncio.wait({reader}, timeout=LAST_STEPS_S)
            finally:
                await tasks.stop(reader)

    async def _call(
        self, request: pb.TransferRequest, what: str, lease: str, deadline: float
    ) -> None:
        try:
            await self._channel.call(
                self._rpc.Transfer, request, what, lease=lease, deadline=deadline
            )
        except RuntimeUnavailable as error:
            if any(words in error.message for words in BAD_LAYER_WORDS):
                raise InvalidSpec([Problem("image", error.message)]) from error
            raise


async def _follow(stream: Stream, told: Callable[[Progress], None]) -> None:
    """Pass progress on until the stream ends; a broken progress stream breaks no pull."""
    try:
        while (message := await stream.receive()) is not None:
            step = progress_pb2.Progress.FromString(message.value)
            told(Progress(step.event, step.name, int(step.progress), int(step.total)))
    except AgentError:
        return


def _source(reference: ImageRef, digest: str) -> registry_pb2.OCIRegistry:
    resolver = registry_pb2.RegistryResolver(
        default_scheme="http" if plain_http(reference.host) else ""
    )
    return registry_pb2.OCIRegistry(reference=f"{reference.name}@{digest}", resolver=resolver)
