"""The verbs for images: all that `kindling image` does, and collecting what nothing needs.

An import passes the archive's bytes on as they come; it is never held whole.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import cast, get_args

from agent._pb.worker.v1 import worker_pb2 as pb
from agent.control.convert_watch import (
    garbage_to_proto,
    image_detail_to_proto,
    image_to_proto,
    step_to_proto,
)
from agent.control.credentials import registry_from_proto
from agent.control.deploying import named
from agent.control.node import ImageStep
from agent.control.verbs import Verbs
from agent.core.acceleration import Acceleration
from agent.errors import InvalidSpec, Problem
from agent.model.image_ref import parse_image_ref
from agent.model.spec import RegistrySpec

CHUNK_BYTES = 1 << 20


class ImageVerbs(Verbs):
    """What there is to start from."""

    async def prepare_image(
        self, request: pb.PrepareImageRequest
    ) -> AsyncGenerator[pb.ImageProgress, None]:
        """Pull an image."""
        if request.acceleration not in ("", *get_args(Acceleration)):
            text = f"must be one of {', '.join(get_args(Acceleration))}"
            raise InvalidSpec([Problem("acceleration", text)])
        registry = registry_from_proto(request.registry)
        steps = self.node.pull_image(
            reference(request.image, "image"), registry, lazily=request.acceleration == "lazy"
        )
        async with aclosing(cast("AsyncGenerator[ImageStep, None]", steps)):
            async for step in steps:
                yield step_to_proto(step)

    async def import_image(
        self, request: AsyncIterator[pb.ImportImageRequest]
    ) -> pb.ImportImageResponse:
        """Import an archive."""
        first = await anext(request, None)
        if first is None or first.WhichOneof("part") != "header":
            raise InvalidSpec([Problem("header", "must be the first message")])
        if first.header.name:
            reference(first.header.name, "header.name")
            if first.header.all:
                text = "chooses one image: leave it out to import all of them"
                raise InvalidSpec([Problem("header.name", text)])
        chunks = _chunks(request, first.header.size_bytes)
        async with aclosing(chunks):
            views = await self.node.import_image(
                chunks, first.header.name, everything=first.header.all
            )
        return pb.ImportImageResponse(images=[image_to_proto(view) for view in views])

    async def list_images(self, request: pb.ListImagesRequest) -> pb.ListImagesResponse:
        """List images by name."""
        views = sorted(await self.node.images(), key=lambda view: view.name)
        return pb.ListImagesResponse(images=[image_to_proto(view) for view in views])

    async def inspect_image(self, request: pb.InspectImageRequest) -> pb.ImageDetail:
        """Show an image."""
        return image_detail_to_proto(await self.node.image(reference(request.name, "name")))

    async def collect_garbage(self, request: pb.CollectGarbageRequest) -> pb.CollectGarbageResponse:
        """Collect what nothing needs."""
        return garbage_to_proto(await self.node.collect_garbage(dry_run=request.dry_run))

    async def remove_image(self, request: pb.RemoveImageRequest) -> pb.RemoveImageResponse:
        """Remove an image's name."""
        await self.node.remove_image(reference(request.name, "name"))
        return pb.RemoveImageResponse()

    async def accelerate_image(
        self, request: pb.AccelerateImageRequest
    ) -> pb.AccelerateImageResponse:
        """Index an image and push the index."""
        given = request.registry
        registry = RegistrySpec(
            username=given.username,
            password=given.password,
            identity_token=given.identity_token,
            ca_pem=given.ca_pem,
        )
        name = reference(request.image, "image")
        digest, engine = await self.node.accelerate_image(name, registry)
        return pb.AccelerateImageResponse(index_digest=digest, engine=engine)


def reference(text: str, field: str) -> str:
    """Return an image's reference as it was given; raises InvalidSpec when it is none."""
    try:
        parse_image_ref(named(text, field))
    except ValueError as error:
        raise InvalidSpec([Problem(field, str(error))]) from error
    return text


async def _chunks(
    messages: AsyncIterator[pb.ImportImageRequest], promised_bytes: int
) -> AsyncGenerator[bytes, None]:
    """Yield the archive's bytes; raises InvalidSpec when they are not what the header promised."""
    came = 0
    async for message in messages:
        if message.WhichOneof("part") != "chunk":
            raise InvalidSpec([Problem("part", "must be a chunk after the header")])
        if len(message.chunk) > CHUNK_BYTES:
            raise InvalidSpec([Problem("chunk", f"has over {CHUNK_BYTES} bytes")])
        came += len(message.chunk)
        yield message.chunk
    if promised_bytes and came != promised_bytes:
        text = f"says {promised_bytes}, but {came} came: send the whole archive"
        raise InvalidSpec([Problem("header.size_bytes", text)])
