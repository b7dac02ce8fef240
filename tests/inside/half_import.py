"""A worker in the middle of an import: one blob stored, half of another sent; killed from outside.

Takes containerd's socket, an archive whose layers it stores, and for how many seconds it may hold
them; says "half" and waits.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from agent.containerd.archive import open_files
from agent.containerd.client import Containerd
from agent.containerd.layout import read_layouts

WORKER = 3  # its generation


async def main(socket: Path, archive: Path, lease_s: float) -> None:
    files = open_files(archive, archive.parent)
    whole, cut = read_layouts(files).images[0].blobs[:2]
    ct = Containerd(socket)
    ct.leases.worker = WORKER
    deadline = asyncio.get_running_loop().time() + 60

    async def pieces(data: bytes, *, all_of_it: bool) -> AsyncIterator[bytes]:
        if all_of_it:
            yield data
            return
        yield data[: len(data) // 2]
        print("half", flush=True)
        await asyncio.Event().wait()

    async with ct.leases.hold("import", lease_s) as lease:
        for blob in (whole, cut):
            data = b"".join(blob.pieces(files))
            await ct.content.write(
                blob.descriptor.digest,
                len(data),
                pieces(data, all_of_it=blob is whole),
                lease=lease,
                deadline=deadline,
            )


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])))
