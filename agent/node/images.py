"""Images on this node, as the scheduler's door asks for them: list, pull, import, remove.

The work is `agent/containerd`'s; which functions use an image is the catalog's to know. A removed
image takes its View with it when no other name has the same layers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agent.aio.tasks import spawn, stop
from agent.containerd.archive import MAX_BYTES
from agent.containerd.scratch import ScratchFile
from agent.control.node import ImageStep, ImageView
from agent.errors import (
    AgentError,
    FailedPrecondition,
    InvalidSpec,
    NotFound,
    Problem,
    RuntimeUnavailable,
)
from agent.model.image_ref import parse_image_ref

if TYPE_CHECKING:
    from agent.containerd.client import Containerd
    from agent.containerd.images import Image, ImageRecord
    from agent.containerd.silence import Progress
    from agent.deployments.catalog import Catalog
    from agent.model.spec import RegistrySpec
    from agent.sandbox.prepared_images import PreparedImages

IMPORTS = "import"  # below the agent's data
IMPORT_S = 600.0
PULL_S = 600.0
MAX_STEPS = 1000  # progress of a pull that its reader has not taken yet


class NodeImages:
    """The images of one node; below `scratch` archives are kept while they are imported."""

    def __init__(
        self, containerd: Containerd, prepared: PreparedImages, catalog: Catalog, scratch: Path
    ) -> None:
        self._containerd = containerd
        self._prepared = prepared
        self._catalog = catalog
        self._scratch = scratch

    async def list(self) -> Sequence[ImageView]:
        """Return every image by name."""
        return [await self._view(record) for record in await self._containerd.images.list()]

    async def _view(self, record: ImageRecord) -> ImageView:
        image = await self._inspected(record.name)
        digest = image.digest if image is not None else record.target.digest
        size = image.compressed_bytes if image is not None else 0
        used_by = tuple(self._catalog.using(digest))
        return ImageView(record.name, digest, size, record.created_ns, used_by)

    async def _inspected(self, name: str) -> Image | None:
        """Return what an image is, None for one that this node cannot run."""
        try:
            return await self._containerd.images.inspect(name)
        except (NotFound, InvalidSpec):
            return None

    async def pull(self, ref: str, registry: RegistrySpec) -> AsyncIterator[ImageStep]:
        """Pull an image and yield its progress, the image itself last."""
        name = parse_image_ref(ref).full
        access = self._containerd.keyring.access(parse_image_ref(ref).host, registry)
        # One place more than `told` uses: the end must always find room.
        steps: asyncio.Queue[ImageStep | None] = asyncio.Queue(MAX_STEPS + 1)

        def told(progress: Progress) -> None:
            if steps.qsize() < MAX_STEPS:
                what, done, total = progress.event, progress.done_bytes, progress.total_bytes
                steps.put_nowait(ImageStep(what, progress.name, done, total))

        async def work() -> Image | AgentError:
            deadline = asyncio.get_running_loop().time() + PULL_S
            try:
                return await self._containerd.transfer.pull(
                    name, deadline=deadline, progress=told, access=access
                )
            except AgentError as error:  # the reader's to hear, not the log's
                return error

        pull = spawn(f"pull {name}", work())
        pull.add_done_callback(lambda _: steps.put_nowait(None))
        try:
            while (step := await steps.get()) is not None:
                yield step
            image = pull.result()
            if isinstance(image, AgentError):
                raise image
            done = await self._view(await self._containerd.images.get(image.name))
            yield ImageStep("done", done=done)
        finally:
            await stop(pull)

    async def load(self, chunks: AsyncIterator[bytes], name: str) -> Sequence[ImageView]:
        """Import an archive that comes in pieces; `name` is for one without a name of its own."""
        full = parse_image_ref(name).full if name else ""
        scratch = self._scratch
        scratch.mkdir(mode=0o700, exist_ok=True)
        spool = await asyncio.to_thread(ScratchFile, scratch, "archive", MAX_BYTES)
        try:
            async for chunk in chunks:
                await asyncio.to_thread(spool.write, chunk)
            deadline = asyncio.get_running_loop().time() + IMPORT_S
            image = await self._containerd.importer.load(
                spool.path, name=full, scratch=scratch, deadline=deadline
            )
        except (InvalidSpec, RuntimeUnavailable) as error:
            raise _as_streamed(error, str(spool.path)) from error
        finally:
            await asyncio.to_thread(spool.close)
        return [await self._view(await self._containerd.images.get(image.name))]

    async def remove(self, name: str) -> None:
        """Remove a name.

        Raises NotFound, FailedPrecondition when a function uses the image or is being deployed
        with it.
        """
        full = parse_image_ref(name).full
        with self._catalog.image_use.removing(full):
            await self._remove(full)

    async def _remove(self, full: str) -> None:
        door = self._containerd.images
        record = await door.get(full)
        image = await self._inspected(full)
        if image is None:
            await door.delete(full)
            return
        users = self._catalog.using(image.digest)
        if users:
            raise FailedPrecondition(
                f"image {full} is in use by {', '.join(users)}; remove the function first"
            )
        await door.delete(record.name)
        others = [await self._inspected(other.name) for other in await door.list()]
        named = any(other is not None and other.chain_id == image.chain_id for other in others)
        if not named and not self._catalog.holds_layers(image.chain_id):
            await self._prepared.forget(image.chain_id)


def _as_streamed(error: InvalidSpec | RuntimeUnavailable, path: str) -> AgentError:
    """Return an import's error for the archive's sender, who knows it as a file of his own."""
    if isinstance(error, RuntimeUnavailable):
        return RuntimeUnavailable(error.message.replace(path, "the archive"))
    return InvalidSpec(
        [Problem("archive", p.message.replace(path, "the archive")) for p in error.problems]
    )
