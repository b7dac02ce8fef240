"""Brings images from registries into the content store and unpacks them.

containerd downloads and unpacks; here the reference is resolved first, so that what cannot run is
refused before download, and exactly the linux/amd64 manifest found then is fetched by its digest.
Everything is under a lease until the image record holds it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

from google.protobuf.message import Message

from agent._pb.containerd.services.transfer.v1 import transfer_pb2 as pb
from agent._pb.containerd.services.transfer.v1 import transfer_pb2_grpc as rpc
from agent._pb.containerd.types import platform_pb2
from agent._pb.containerd.types.transfer import imagestore_pb2, progress_pb2
from agent.aio import tasks
from agent.aio.shared import SharedRuns
from agent.aio.tasks import finish, spawn, stop
from agent.containerd import registry
from agent.containerd.access import Access
from agent.containerd.channel import Channel
from agent.containerd.download import Download, within
from agent.containerd.endpoints import RegistryHosts
from agent.containerd.errors import ForeignOwner, NoFilter, whole_detail
from agent.containerd.images import Image, ImageRecord, Images, image_ref
from agent.containerd.lazy_mount import LazyMounter
from agent.containerd.leases import Leases
from agent.containerd.patience import PATIENCE_S
from agent.containerd.registry import Resolved
from agent.containerd.silence import Listening, Progress, heard_from
from agent.containerd.store_limit import StoreLimit
from agent.containerd.streams import Stream, open_stream, pack
from agent.containerd.unpack import Unpacker
from agent.core.oci_image import MANIFEST_TYPES, ImageConfig, Manifest
from agent.core.unpack_errors import unpack_error
from agent.errors import (
    AgentError,
    FailedPrecondition,
    InvalidSpec,
    NotFound,
    Overloaded,
    Problem,
    RuntimeUnavailable,
)
from agent.model.image_ref import ImageRef

log = logging.getLogger(__name__)

UNDO_S = 30.0
LAST_STEPS_S = 1.0
PLATFORM = platform_pb2.Platform(os="linux", architecture="amd64")


class Transfer:
    """Pulls, and the unpacking that `importer` shares."""

    def __init__(
        self,
        channel: Channel,
        images: Images,
        leases: Leases,
        hosts: RegistryHosts,
        unpacker: Unpacker,
        limit: StoreLimit,
    ) -> None:
        self._channel = channel
        self._hosts = hosts
        self._rpc = rpc.TransferStub(channel.grpc)
        self._images = images
        self._leases = leases
        self._fetches: SharedRuns[Image, Progress] = SharedRuns(lambda step: step.name)
        self._listening = Listening()
        self._unpacker = unpacker
        self._limit = limit
        self._mounter = LazyMounter(channel, images)
        self.snapshotter = images.snapshotter

    async def resolve(self, ref: str, *, deadline: float, access: Access) -> Resolved:
        """Ask the registry what a reference stands for; see `registry.resolve`."""
        reference = image_ref(ref)
        endpoints = await self._hosts.endpoints(reference, access.ca_pem)
        return await registry.resolve(reference, endpoints, deadline=deadline, access=access)

    async def has_referrer(
        self, ref: str, digest: str, artifact_type: str, *, deadline: float, access: Access
    ) -> bool:
        """Say whether a registry has something of that type beside a manifest."""
        reference = image_ref(ref)
        endpoints = await self._hosts.endpoints(reference, access.ca_pem)
        return await registry.has_referrer(
            reference, endpoints, digest, artifact_type, deadline=deadline, access=access
        )

    async def pull(
        self,
        ref: str,
        *,
        deadline: float,
        progress: Callable[[Progress], None] | None = None,
        accept: Callable[[Resolved], None] | None = None,
        access: Access | None = None,
        choose: Callable[[Resolved], Awaitable[str]] | None = None,
    ) -> Image:
        """Fetch and unpack what `ref` stands for now, and return it under its full name.

        `accept` sees the resolved image before download and may refuse it by raising. `choose`
        names the snapshotter of a lazy engine to mount it by, or "" to unpack it. `progress` is
        called on the loop and must not block. What is here already is not fetched again, and
        callers who want the same at the same time, and all may have it, share one fetch.
        `deadline` is the loop's time and bounds all of it; `access` says who asks. Raises as
        `registry.resolve` does, InvalidSpec when the layers cannot be unpacked, Overloaded when
        disk or limit do not take them; no error repeats a secret.
        """
        known = access or Access()
        with known.concealing():
            return await self._pull(image_ref(ref), deadline, known, progress, accept, choose)

    async def _pull(
        self,
        reference: ImageRef,
        deadline: float,
        access: Access,
        progress: Callable[[Progress], None] | None,
        accept: Callable[[Resolved], None] | None,
        choose: Callable[[Resolved], Awaitable[str]] | None,
    ) -> Image:
        began = asyncio.get_running_loop().time()
        endpoints = await self._hosts.endpoints(reference, access.ca_pem)
        soon = min(deadline, began + PATIENCE_S)
        found = await registry.resolve(reference, endpoints, deadline=soon, access=access)
        if accept is not None:
            accept(found)
        _check_served(reference, found)
        name = str(reference)
        here = await self.present(name, found, deadline)
        if here is not None:
            return here

        snapshotter = await choose(found) if choose is not None else ""
        own: list[Download] = []

        async def fetch(told: Callable[[Progress], None]) -> Image:
            own.append(Download(self._channel, self._hosts, reference, endpoints, access))
            with access.concealing():  # whoever joins hears its errors as well
                return await self._fetch(own[-1], name, found, snapshotter, deadline, told)

        key = (name, found.target.digest, snapshotter)
        join = partial(self._fetches.join, key, f"fetch {name}", fetch, progress)
        try:
            async with asyncio.timeout_at(deadline):
                # It has the time and the credentials of who began it: then with one's own. What a
                # registry does not give out in time is tried by one for all the others, no more.
                again = False
                while True:
                    try:
                        return await join()
                    except FailedPrecondition:
                        if own:
                            raise
                    except RuntimeUnavailable:
                        if own or again:
                            raise
                        again = True
        except TimeoutError as error:
            text = f"pull image {name}: not done {within(deadline - began)}"
            raise RuntimeUnavailable(text) from error

    async def _fetch(
        self,
        download: Download,
        name: str,
        found: Resolved,
        snapshotter: str,
        deadline: float,
        told: Callable[[Progress], None],
    ) -> Image:
        """Fetch and unpack for all who want it, going on where an interrupted one was."""
        left_s = deadline - asyncio.get_running_loop().time()
        digest, what = found.target.digest, f"pull image {name}"
        await self._limit.admit(what, (found.manifest.config, *found.manifest.layers))
        async with self._leases.hold("pull", max(left_s, 0.0), resumed_by=digest) as lease:
            hear = partial(self._heard, what=what, lease=lease, deadline=deadline, told=told)

            async def once(source: Message) -> None:
                try:
                    await hear(source, self.store(name, snapshotter))
                except ForeignOwner as error:
                    if snapshotter:
                        raise
                    async with self._taking_back(name, deadline):
                        # What the failed pull left out, then its layers with other owners.
                        await hear(source, self.store(name, unpack=False))
                        image = await self._images.inspect(name, deadline=deadline)
                        changed = partial(self.unpack_changed, image.manifest, image.config, what)
                        await changed(lease=lease, deadline=deadline, error=error)

            async def run(source: Message) -> None:
                # A refusal may come when all is there already, under its name.
                async with self._taking_back(name, deadline):
                    await self._limit.within(what, lease, lambda: once(source))

            mounted = snapshotter and await self._mounter.mount(
                name, found, snapshotter, lease=lease, deadline=deadline
            )
            if not mounted:
                # While containerd still connects: then it asks the registry for layers only.
                known = spawn(f"store manifest of {name}", self._keep_known(found, lease, deadline))
                try:
                    await download.run(found, run, deadline)
                finally:
                    await stop(known)
            return await self._images.inspect(name, deadline=deadline)

    async def _keep_known(self, found: Resolved, lease: str, deadline: float) -> None:
        """Store what was read when the reference was resolved; what fails, containerd fetches."""
        config = (found.manifest.config, found.config_bytes)
        for blob, data in ((found.target, found.manifest_bytes), config):
            with contextlib.suppress(AgentError):
                await self._images.content.store(blob.digest, data, lease=lease, deadline=deadline)

    async def _heard(
        self,
        source: Message,
        target: Message,
        what: str,
        lease: str,
        deadline: float,
        told: Callable[[Progress], None],
    ) -> None:
        """Transfer for as long as something is heard of it."""
        async with heard_from(what, self._listening) as heard:

            def step_told(step: Progress) -> None:
                heard(step)
                told(step)

            await self.run(source, target, what, lease=lease, deadline=deadline, told=step_told)

    async def present(self, name: str, found: Resolved, deadline: float) -> Image | None:
        """Return what is unpacked here under this name, if it is what was found there."""
        try:
            image = await self._images.inspect(name, deadline=deadline)
        except (NotFound, InvalidSpec):
            return None
        same = image.digest == found.target.digest and image.unpacked_bytes is not None
        return image if same else None

    @contextlib.asynccontextmanager
    async def _taking_back(self, name: str, deadline: float) -> AsyncIterator[None]:
        """Have a name stand again for what it stood for before, unless all went well."""
        before: ImageRecord | None = None
        with contextlib.suppress(NotFound):
            before = await self._images.get(name, deadline=deadline)
        whole = False
        try:
            yield
            whole = True
        finally:
            if not whole:
                await finish(f"take back {name}", self._restore(name, before), within_s=UNDO_S)

    async def _restore(self, name: str, before: ImageRecord | None) -> None:
        if before is None:
            with contextlib.suppress(NotFound):  # it got no name yet
                await self._images.delete(name)
        else:
            await self._images.put(name, before.target, before.labels)

    async def unpack_changed(
        self,
        manifest: Manifest,
        config: ImageConfig,
        what: str,
        *,
        lease: str,
        deadline: float,
        error: ForeignOwner,
    ) -> None:
        """Unpack an image that is here after containerd did not for `error`; raises that again."""
        try:
            await self._unpacker.unpack(manifest, config, what, lease=lease, deadline=deadline)
        except NoFilter as again:
            log.warning("%s: owners cannot be changed: %s", what, again)
            raise error from again

    def store(
        self, name: str, snapshotter: str = "", *, unpack: bool = True
    ) -> imagestore_pb2.ImageStore:
        """Return the destination: a record called `name` ("" for none) and unpacked layers."""
        how = imagestore_pb2.UnpackConfiguration(
            platform=PLATFORM, snapshotter=snapshotter or self.snapshotter
        )
        unpacks = [how] if unpack else []
        return imagestore_pb2.ImageStore(name=name, platforms=[PLATFORM], unpacks=unpacks)

    async def run(
        self,
        source: Message,
        target: Message,
        what: str,
        *,
        lease: str,
        deadline: float,
        told: Callable[[Progress], None] | None = None,
    ) -> None:
        """Transfer and wait for the end; `told` hears how far it is.

        Raises InvalidSpec when layers cannot be unpacked, Overloaded when the disk is full.
        """
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
            found = unpack_error(whole_detail(error))
            if found is None:
                raise
            text = f"{what}: {found.text}"
            if found.full:
                raise Overloaded(text, reason="disk") from error
            kind = ForeignOwner if found.owner else InvalidSpec
            raise kind([Problem("image", text)]) from error


def _check_served(reference: ImageRef, found: Resolved) -> None:
    """Refuse what containerd would not take for a manifest: it goes by what the registry says."""
    if found.served_as not in MANIFEST_TYPES:
        raise FailedPrecondition(
            f"image {reference}: the registry {reference.host} serves its manifest as "
            f"{found.served_as or 'nothing'!r}; it must say {found.target.media_type}"
        )


async def _follow(stream: Stream, told: Callable[[Progress], None]) -> None:
    """Pass progress on until the stream ends; a broken progress stream breaks no pull."""
    try:
        while (message := await stream.receive()) is not None:
            step = progress_pb2.Progress.FromString(message.value)
            told(Progress(step.event, step.name, int(step.progress), int(step.total)))
    except AgentError:
        return
