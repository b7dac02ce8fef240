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
from agent.containerd.archive import Files, open_files
from agent.containerd.channel import Channel
from agent.containerd.decompress import wrong
from agent.containerd.errors import ForeignOwner
from agent.containerd.images import Image, Images
from agent.containerd.layout import Blob, ImageLayout, read_layouts
from agent.containerd.leases import Leases
from agent.containerd.selection import Chosen, choose
from agent.containerd.store_limit import StoreLimit
from agent.containerd.streams import Stream, open_stream
from agent.containerd.transfer import Transfer
from agent.core import oci_image
from agent.errors import InvalidSpec, RuntimeUnavailable

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
        self,
        path: Path,
        *,
        name: str = "",
        everything: bool = False,
        scratch: Path = Path("/var/tmp"),
        deadline: float,
    ) -> tuple[Image, ...]:
        """Import from `path`: the one image there is or `name` says, or `everything` named.

        `path` is an OCI archive, an OCI layout directory, or an archive of `docker save`; `name`
        also is what an only image shall be called, see `selection`. Returns an image per name that
        was recorded. A compressed archive takes its uncompressed size below `scratch` meanwhile.
        Doing it twice changes nothing. Raises InvalidSpec naming the path and what is wrong,
        Overloaded when the disk or the image store's limit does not take it.
        """
        try:
            async with asyncio.timeout_at(deadline), self._turn:
                return await self._load(path, name, everything, scratch, deadline)
        except TimeoutError as error:
            raise RuntimeUnavailable(f"import {path}: not done within the time allowed") from error

    async def _load(
        self, path: Path, name: str, everything: bool, scratch: Path, deadline: float
    ) -> tuple[Image, ...]:
        files = await asyncio.to_thread(open_files, path, scratch)
        try:
            found = await asyncio.to_thread(read_layouts, files)
            chosen = choose(found, name, path, everything=everything)
            left_s = deadline - asyncio.get_running_loop().time()
            async with self._leases.hold("import", max(left_s, 0.0)) as lease:
                for one in chosen:
                    await self._store(files, one, lease, deadline)
                # All or none, and last: room for one is not made by removing another.
                names = {name: one.layout.target for one in chosen for name in one.names}
                for full, target in names.items():
                    await self._images.put(full, target, {}, lease=lease, deadline=deadline)
        finally:
            files.close()
        return tuple([await self._images.inspect(one, deadline=deadline) for one in names])

    async def _store(self, files: Files, chosen: Chosen, lease: str, deadline: float) -> None:
        layout = chosen.layout
        named = f"import image {chosen.names[0]}"
        await self._limit.admit(named, (blob.descriptor for blob in layout.blobs))
        for blob in layout.blobs:
            await self._write(files, blob, lease, deadline)
        what = f"unpack {files.path}"
        try:
            await self._limit.within(
                named, lease, lambda: self._unpack_all(layout, what, lease, deadline)
            )
        except InvalidSpec as error:
            why = error.problems[0].message.removeprefix(f"{what}: ")
            raise wrong(files.path, f"its layers cannot be unpacked ({why})") from error

    async def _write(self, files: Files, blob: Blob, lease: str, deadline: float) -> None:
        size = blob.descriptor.size_bytes
        pieces = _in_thread(blob.pieces(files))
        await self._content.write(
            blob.descriptor.digest, size, pieces, lease=lease, deadline=deadline
        )

    async def _unpack_all(
        self, layout: ImageLayout, what: str, lease: str, deadline: float
    ) -> None:
        """Unpack, with other owners where containerd cannot with those in the layers."""
        try:
            await self._unpack(layout, what, lease, deadline)
        except ForeignOwner as error:
            # Without unpacking containerd labels the blobs all the same.
            await self._unpack(layout, what, lease, deadline, unpack=False)
            await self._transfer.unpack_changed(
                layout.manifest, layout.config, what, lease=lease, deadline=deadline, error=error
            )

    async def _unpack(
        self,
        layout: ImageLayout,
        what: str,
        lease: str,
        deadline: float,
        *,
        unpack: bool = True,
    ) -> None:
        """Let containerd import an index over blobs it has already; no record is made by it."""
        async with open_stream(self._channel, "import", deadline) as stream:
            source = importexport_pb2.ImageImportStream(stream=stream.id, media_type=STREAM_TYPE)
            sender = tasks.spawn("index of an import", _send(stream, _index_archive(layout)))
            try:
                target = self._transfer.store("", unpack=unpack)
                await self._transfer.run(source, target, what, lease=lease, deadline=deadline)
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


async def _in_thread(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Take pieces from a blocking iterator without holding the loop."""
    while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
        yield piece
