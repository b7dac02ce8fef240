"""Images on this node, as the scheduler's door asks for them: list, show, pull, import, remove.

The work is `agent/containerd`'s; which functions use an image is the catalog's to know, what a
removal gives back `image_collector.py`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from agent.containerd.archive import MAX_BYTES
from agent.containerd.scratch import ScratchFile
from agent.control.node import ImageDetail, ImageStep, ImageView, LayerView
from agent.core.oci_image import MAX_JSON_BYTES, chain_ids
from agent.deployments.asking import Ahead
from agent.errors import (
    AgentError,
    InvalidSpec,
    NotFound,
    Overloaded,
    Problem,
    RuntimeUnavailable,
)
from agent.model.image_ref import parse_image_ref
from agent.node.image_pull import PullFollower

if TYPE_CHECKING:
    from agent.containerd.client import Containerd
    from agent.containerd.images import Image, ImageRecord
    from agent.containerd.registry import Resolved
    from agent.containerd.silence import Progress
    from agent.deployments.catalog import Catalog
    from agent.deployments.lazy_image import LazyImages
    from agent.model.spec import RegistrySpec
    from agent.node.image_collector import ImageCollector

IMPORTS = "import"  # below the agent's data
IMPORT_S = 600.0
UPLOAD_SILENCE_S = 300.0  # who packs an archive while sending it may take a while to begin


class NodeImages:
    """The images of one node; below `scratch` archives are kept while they are imported."""

    def __init__(
        self,
        containerd: Containerd,
        collector: ImageCollector,
        catalog: Catalog,
        lazy: LazyImages,
        scratch: Path,
        pull_s: float,
    ) -> None:
        """`pull_s` is the longest that a pull may take."""
        self._containerd = containerd
        self._collector = collector
        self._catalog = catalog
        self._lazy = lazy
        self._scratch = scratch
        self._pull_s = pull_s

    async def list(self) -> Sequence[ImageView]:
        """Return every image by name."""
        look = await self._look()
        return [await self._view(one, look) for one in await self._containerd.images.list()]

    async def _named(self, name: str) -> ImageView:
        record = await self._containerd.images.get(name)
        return await self._view(record, await self._look())

    async def _look(self) -> _Seen:
        blobs, mounted = await self._containerd.content.sizes(), await self._lazy.mounted()
        return _Seen(blobs, mounted, self._catalog.users())

    async def _view(self, record: ImageRecord, look: _Seen) -> ImageView:
        image = await self._inspected(record.name)
        digest = image.digest if image is not None else record.target.digest
        last_ns = self._catalog.image_use.last_ns.get(digest, 0)
        return ImageView(
            name=record.name,
            digest=digest,
            size_bytes=image.compressed_bytes if image is not None else 0,
            created_ns=record.created_ns,
            used_by=tuple(look.users.get(digest, ())),
            unpacked_bytes=(image.unpacked_bytes or 0) if image is not None else 0,
            form=_form(image, look) if image is not None else "",
            used_ns=max(last_ns, record.created_ns),
        )

    async def detail(self, name: str) -> ImageDetail:
        """Return one image with its config and layers. Raises NotFound, InvalidSpec."""
        full = parse_image_ref(name).full
        door = self._containerd
        image = await door.images.inspect(full)
        raw = await door.content.read(image.manifest.config.digest, MAX_JSON_BYTES)
        keys = chain_ids(image.config.diff_ids)
        return ImageDetail(
            image=await self._named(full),
            media_type=image.manifest.media_type,
            config_digest=image.manifest.config.digest,
            config=raw.decode("utf-8", "replace"),
            layers=tuple(
                [
                    LayerView(
                        layer.digest, layer.media_type, layer.size_bytes, await self._unpacked(key)
                    )
                    for layer, key in zip(image.manifest.layers, keys, strict=True)
                ]
            ),
        )

    async def _unpacked(self, key: str) -> int:
        with contextlib.suppress(NotFound):
            return (await self._containerd.snapshots.usage([key])).size_bytes
        return 0

    async def _inspected(self, name: str) -> Image | None:
        """Return what an image is, None for one that this node cannot run."""
        try:
            return await self._containerd.images.inspect(name)
        except (NotFound, InvalidSpec):
            return None

    async def pull(
        self, ref: str, registry: RegistrySpec, *, lazily: bool = False
    ) -> AsyncIterator[ImageStep]:
        """Pull an image and yield its progress, the image itself last, with what to warn of."""
        name = parse_image_ref(ref).full
        warnings: list[str] = []
        door, use = self._containerd, self._catalog.image_use
        access = door.keyring.access(parse_image_ref(ref).host, registry)
        begun = use.under_way.begin(await door.content.sizes(), time.monotonic())
        deadline = asyncio.get_running_loop().time() + self._pull_s

        async def mount(
            *, accept: Callable[[Resolved], None], progress: Callable[[Progress], None]
        ) -> Image:
            ahead = self._lazy.pull_ahead(
                Ahead(name, registry), deadline=deadline, accept=accept, progress=progress
            )
            image, said = await ahead
            warnings.extend(said)
            return image

        whole = partial(door.transfer.pull, name, deadline=deadline, access=access)
        follower = PullFollower(name, mount if lazily else whole)
        with use.deploying(name):
            async with aclosing(cast("AsyncGenerator[ImageStep, None]", follower.steps())) as steps:
                async for step in steps:
                    yield step
        if (image := follower.image) is not None:
            after, ended = await door.content.sizes(), time.monotonic()
            if (took := use.under_way.end(begun, image.blobs(), after, ended)) is not None:
                use.totals.add(took)
            use.touch(image.digest)
        yield ImageStep("done", done=await self._named(name), warnings=tuple(warnings))

    async def load(
        self, chunks: AsyncIterator[bytes], name: str, *, everything: bool = False
    ) -> Sequence[ImageView]:
        """Import an archive that comes in pieces.

        `name` chooses one image of several, or names the only one; `everything` imports all.
        """
        full = parse_image_ref(name).full if name else ""
        scratch = self._scratch
        scratch.mkdir(mode=0o700, exist_ok=True)
        spool = await asyncio.to_thread(ScratchFile, scratch, "archive", MAX_BYTES)
        try:
            async for chunk in _going_on(chunks):
                await asyncio.to_thread(spool.write, chunk)
            deadline = asyncio.get_running_loop().time() + IMPORT_S
            images = await self._containerd.importer.load(
                spool.path, name=full, everything=everything, scratch=scratch, deadline=deadline
            )
        except (InvalidSpec, Overloaded, RuntimeUnavailable) as error:
            raise _as_streamed(error, str(spool.path)) from error
        finally:
            await asyncio.to_thread(spool.close)
        for one in images:
            self._catalog.image_use.touch(one.digest)
        return [await self._named(one.name) for one in images]

    async def remove(self, name: str) -> None:
        """Remove a name.

        Raises NotFound, FailedPrecondition when a function uses the image or is being deployed
        with it.
        """
        await self._collector.remove(parse_image_ref(name).full)


async def _going_on(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Pass on an archive's pieces; raises InvalidSpec when for long none comes."""
    while True:
        try:
            async with asyncio.timeout(UPLOAD_SILENCE_S):
                chunk = await anext(chunks, None)
        except TimeoutError as error:
            text = f"nothing of it came for {UPLOAD_SILENCE_S:g} s: send it again"
            raise InvalidSpec([Problem("archive", text)]) from error
        if chunk is None:
            return
        yield chunk


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is here by blobs, by layers that engines have mounted, and by digests in use."""

    blobs: Mapping[str, int]
    mounted: Collection[str]
    users: Mapping[str, Sequence[str]]


def _form(image: Image, look: _Seen) -> str:
    """Say in which form an image is here; see `ImageView`."""
    if image.unpacked_bytes is None:
        return "lazy" if image.chain_id in look.mounted else "packed"
    whole = all(layer.digest in look.blobs for layer in image.manifest.layers)
    return "unpacked" if whole else "lazy"


def _as_streamed(error: InvalidSpec | Overloaded | RuntimeUnavailable, path: str) -> AgentError:
    """Return an import's error for the archive's sender, who knows it as a file of his own."""
    if isinstance(error, Overloaded):
        return error.reworded(error.message.replace(path, "the archive"))
    if isinstance(error, RuntimeUnavailable):
        return RuntimeUnavailable(error.message.replace(path, "the archive"))
    return InvalidSpec(
        [Problem("archive", p.message.replace(path, "the archive")) for p in error.problems]
    )
