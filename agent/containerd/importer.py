"""Takes an image from a file or directory into the content store and unpacks it.

The image is read and checked here first (`archive`, `layout`): what cannot run is refused before a
byte is stored. Its blobs are then written under a lease, and containerd is handed an archive of a
single index over them, which makes it unpack the layers and label the blobs as after a pull.
"""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TypeVar

from agent._pb.containerd.types.transfer import importexport_pb2, streaming_pb2
from agent.aio import tasks
from agent.containerd.archive import Files, open_files, wrong
from agent.containerd.channel import Channel
from agent.containerd.images import Image, Images, image_ref
from agent.containerd.layout import Blob, ImageLayout, read_layout
from agent.containerd.leases import Leases
from agent.containerd.store_limit import StoreLimit
from agent.containerd.streams import Stream, open_stream
from agent.containerd.transfer import Transfer
from agent.core import oci_image
from agent.errors import InvalidSpec, Problem, RuntimeUnavailable

T = TypeVar("T")

# Tells containerd that the stream is a plain tar, not to be looked at for compression.
STREAM_TYPE = "application/vnd.oci.image.layout.v1+tar"


class Importer:
    """Imports, one at a time: they are bound by the disk anyway."""

    def __init__(
        self,
        channel: Channel,
        images: Images,
        leases: Leases,
        transfer: Transfer,
        limit: StoreLimit,
    ) -> None:
        self._channel = channel
        self._content = images.content
        self._images = images
        self._leases = leases
        self._transfer = transfer
        self._limit = limit
        self._turn = asyncio.Lock()

    async def load(
        self, path: Path, *, name: str = "", scratch: Path = Path("/var/tmp"), deadline: float
    ) -> Image:
        """Import the linux/amd64 image at `path` and return it.

        `path` is an OCI archive (tar, tar.gz), an OCI layout directory, or an archive of
        `docker save`. The image is recorded as `name`, else as the archive says. A gzipped archive
        takes its uncompressed size below `scratch` meanwhile. Doing it twice changes nothing.
        Raises InvalidSpec naming the path and what is wrong with it, Overloaded when the disk or
        the image store's limit does not take it.
        """
        try:
            async with asyncio.timeout_at(deadline), self._turn:
                return await self._load(path, name, scratch, deadline)
        except TimeoutError as error:
            raise RuntimeUnavailable(f"import {path}: not done within the time allowed") from error

    async def _load(self, path: Path, name: str, scratch: Path, deadline: float) -> Image:
        files = await asyncio.to_thread(open_files, path, scratch)
        try:
            layout = await asyncio.to_thread(read_layout, files)
            full_name = _name(name, layout, path)
            await self._store(files, layout, full_name, deadline)
        finally:
            files.close()
        return await self._images.inspect(full_name, deadline=deadline)

    async def _store(self, files: Files, layout: ImageLayout, name: str, deadline: float) -> None:
        left_s = deadline - asyncio.get_running_loop().time()
        named = f"import image {name}"
        await self._limit.admit(named, (blob.descriptor for blob in layout.blobs))
        async with self._leases.hold("import", max(left_s, 0.0)) as lease:
            for blob in layout.blobs:
                await self._write(files, blob, lease, deadline)
            what = f"unpack {files.path}"
            try:
                await self._limit.within(
                    named, lease, lambda: self._unpack(layout, what, lease, deadline)
                )
            except InvalidSpec as error:
                why = error.problems[0].message.removeprefix(f"{what}: ")
                raise wrong(files.path, f"its layers cannot be unpacked ({why})") from error
            await self._images.put(name, layout.target, {}, lease=lease, deadline=deadline)

    async def _write(self, files: Files, blob: Blob, lease: str, deadline: float) -> None:
        size = blob.descriptor.size_bytes
        pieces = _in_thread(blob.pieces(files))
        await self._content.write(
            blob.descriptor.digest, size, pieces, lease=lease, deadline=deadline
        )

    async def _unpack(self, layout: ImageLayout, what: str, lease: str, deadline: float) -> None:
        """Let containerd import an index over blobs it has already; no record is made by it."""
        async with open_stream(self._channel, "import", deadline) as stream:
            source = importexport_pb2.ImageImportStream(stream=stream.id, media_type=STREAM_TYPE)
            sender = tasks.spawn("index of an import", _send(stream, _index_archive(layout)))
            try:
                await self._transfer.run(
                    source, self._transfer.store(""), what, lease=lease, deadline=deadline
                )
            finally:
                await tasks.stop(sender)


async def _send(stream: Stream, data: bytes) -> None:
    """Send a few kilobytes: they fit into the first window containerd opens."""
    if await stream.receive() is None:
        raise RuntimeUnavailable("containerd closed the stream of an import")
    await stream.send(streaming_pb2.Data(data=data))
    await stream.done()


def _index_archive(layout: ImageLayout) -> bytes:
    target = layout.target
    entry = {
        "mediaType": target.media_type,
        "digest": target.digest,
        "size": target.size_bytes,
        "platform": {"os": "linux", "architecture": "amd64"},
    }
    index = {"schemaVersion": 2, "mediaType": oci_image.OCI_INDEX, "manifests": [entry]}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, value in (("oci-layout", {"imageLayoutVersion": "1.0.0"}), ("index.json", index)):
            data = json.dumps(value).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _name(given: str, layout: ImageLayout, path: Path) -> str:
    """Return the record's full name: the one given, else the first the archive offers in full."""
    if given:
        return image_ref(given).full
    for offered in layout.names:
        # A bare tag such as "latest" or "v1" is no name.
        if "/" in offered or ":" in offered:
            return image_ref(offered).full
    why = "does not say what the image is called: give it a name (--name REF)"
    raise InvalidSpec([Problem(str(path), why)])


async def _in_thread(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Take pieces from a blocking iterator without holding the loop."""
    while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
        yield piece
