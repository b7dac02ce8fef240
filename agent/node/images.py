"""Images on this node, as the scheduler's door asks for them: list, pull, import, remove.

The work is `agent/containerd`'s; which functions use an image is the catalog's to know. A removed
image takes its View with it when no other name has the same layers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

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
from agent.node.image_pull import PullFollower

if TYPE_CHECKING:
    from agent.containerd.client import Containerd
    from agent.containerd.images import Image, ImageRecord
    from agent.deployments.catalog import Catalog
    from agent.model.spec import RegistrySpec
    from agent.sandbox.prepared_images import PreparedImages

IMPORTS = "import"  # below the agent's data
IMPORT_S = 600.0
PULL_S = 600.0


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
        deadline = asyncio.get_running_loop().time() + PULL_S
        pull = partial(self._containerd.transfer.pull, name, deadline=deadline, access=access)
        follower = PullFollower(name, pull)
        async with aclosing(cast("AsyncGenerator[ImageStep, None]", follower.steps())) as steps:
            async for step in steps:
                yield step
        done = await self._view(await self._containerd.images.get(name))
        yield ImageStep("done", done=done)

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
            async for chunk in chunks:
                await asyncio.to_thread(spool.write, chunk)
            deadline = asyncio.get_running_loop().time() + IMPORT_S
            images = await self._containerd.importer.load(
                spool.path, name=full, everything=everything, scratch=scratch, deadline=deadline
            )
        except (InvalidSpec, RuntimeUnavailable) as error:
            raise _as_streamed(error, str(spool.path)) from error
        finally:
            await asyncio.to_thread(spool.close)
        return [await self._view(await self._containerd.images.get(one.name)) for one in images]

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
