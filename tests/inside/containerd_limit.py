"""Images that would fill the store: stopped at its limit or at the disk's end, and cleaned up."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
import threading
import time
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from agent.aio.tasks import spawn
from agent.containerd.client import Containerd
from agent.containerd.store_limit import StoreBounds
from agent.containerd.store_use import file_system
from agent.core.image_gc import Amount
from agent.errors import AgentError
from agent.recovery.orphans import Orphans
from agent.sandbox.prepared_images import PreparedImages
from tests import oci
from tests.inside.containerd_base import Place, main, soon
from tests.inside.containerd_images import (
    die_in_an_import,
    left,
    load,
    remains,
    remove,
    scratch,
)
from tests.inside.half_import import WORKER

MB = 1 << 20
DATA = Path(os.environ.get("PROBE_DATA", "/nowhere"))


class Collector:
    """Stands for who gives room back; removes the images it is told to."""

    def __init__(self, ct: Containerd, *names: str) -> None:
        self.ct = ct
        self.names = list(names)
        self.asked = 0

    async def __call__(self, excess: Amount) -> bool:
        self.asked += 1
        names, self.names = self.names, []
        for name in names:
            await self.ct.images.delete(name, sync=True)
        return bool(names)


def zeros(size_bytes: int) -> Iterator[bytes]:
    """A layer of one file of zeros, as tar."""
    info = tarfile.TarInfo("zeros")
    info.size = size_bytes
    yield info.tobuf()
    for _ in range(size_bytes // MB):
        yield bytes(MB)
    yield bytes(10240)


def many(files: int) -> Iterator[bytes]:
    """A layer of empty files, as tar; the header is made once: a name's bytes change its sum."""
    head = tarfile.TarInfo("").tobuf(tarfile.USTAR_FORMAT)
    blank = int(head[148:154], 8)
    for number in range(files):
        name = f"{number % 100}-{number}".encode()
        yield name + head[len(name) : 148] + b"%06o\0 " % (blank + sum(name)) + head[156:]
    yield bytes(10240)


class Packed(oci.Layer):
    """A layer that is never held unpacked."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        super().__init__(b"")
        digest, packed = hashlib.sha256(), io.BytesIO()
        with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0, compresslevel=1) as file:
            for piece in pieces:
                digest.update(piece)
                file.write(piece)
        self.__dict__.update(diff_id="sha256:" + digest.hexdigest(), blob=packed.getvalue())


@cache
def bomb() -> Packed:
    """What unpacks to far more than any limit here; packing it takes seconds."""
    return Packed(zeros(1500 * MB))


async def refusal(ct: Containerd, path: Path, name: str, *, everything: bool = False) -> Any:
    try:
        await ct.importer.load(
            path, name=name, everything=everything, scratch=path.parent, deadline=soon(100)
        )
    except AgentError as failure:
        told = {"class": type(failure).__name__, "text": failure.message}
        return told | {"reason": getattr(failure, "reason", "")}
    return {"class": None}


async def outcome(ct: Containerd, path: Path, name: str, *, everything: bool = False) -> Any:
    """Import, and see that a refusal gives back what it took."""
    used = (await ct.limit.use.look()).used
    told = await refusal(ct, path, name, everything=everything)
    if told["class"] is None:
        return told
    after = await settled(ct, used)
    return told | {"back": after - used == Amount()}


async def settled(ct: Containerd, wanted: Amount) -> Amount:
    """What is used once containerd has taken back what a cancelled transfer unpacked."""
    until = time.monotonic() + 5
    found = (await ct.limit.use.look()).used
    while found != wanted and time.monotonic() < until:
        await asyncio.sleep(0.1)
        found = (await ct.limit.use.look()).used
    return found


def bounded(ct: Containerd, collector: Collector, **most: int) -> None:
    ct.limit.hold_to(StoreBounds(Amount(**most), DATA), collector)


async def bombs(ct: Containerd, place: Place) -> Any:
    """A few bytes unpack to many, or to many files: stopped, named, nothing of it stays."""
    at = scratch(place)
    layers: Mapping[str, oci.Layer] = {
        "bytes": bomb(),
        "files": Packed(many(100_000)),
    }
    limits = {"bytes": {"bytes": 100 * MB}, "files": {"files": 5000}}
    results: dict[str, Any] = {}
    for kind, layer in layers.items():
        archive = at / f"{kind}.tar"
        made = oci.write_archive(archive, [oci.static_busybox(), layer], name=f"{kind}:1")
        collector = Collector(ct)
        bounded(ct, collector, **limits[kind])
        results[kind] = await outcome(ct, archive, f"{kind}:1") | {
            "asked": collector.asked,
            "packed": sum(len(blob) for blob in made.blobs.values()),
        }
        archive.unlink()
    return results | {"left": await left(ct)}


async def known_before(ct: Containerd, place: Place) -> Any:
    """What the archive itself is too large by is refused before a byte is stored."""
    at = scratch(place)
    oci.write_archive(at / "large.tar", [oci.layer({"noise": os.urandom(8 * MB)})], name="large:1")
    collector = Collector(ct)
    bounded(ct, collector, bytes=4 * MB)
    told = await outcome(ct, at / "large.tar", "large:1")
    return told | {"asked": collector.asked, "left": await left(ct)}


async def second_try(ct: Containerd, place: Place) -> Any:
    """What does not fit does once somebody has given room back."""
    at = scratch(place)
    for name in ("old", "new"):
        layers = [Packed(zeros(60 * MB)), oci.layer({name: b"x"}), oci.static_busybox()]
        if name == "new":
            layers[0] = Packed(zeros(61 * MB))
        oci.write_archive(at / f"{name}.tar", layers, name=f"{name}:1")
    bounded(ct, Collector(ct), bytes=1000 * MB)
    (old,) = await ct.importer.load(at / "old.tar", name="old:1", scratch=at, deadline=soon())
    collector = Collector(ct, old.name)
    bounded(ct, collector, bytes=100 * MB)
    told = await outcome(ct, at / "new.tar", "new:1")
    names = [record.name for record in await ct.images.list()]
    for name in names:
        await ct.images.delete(name, sync=True)
    return told | {"asked": collector.asked, "names": names, "left": await left(ct)}


class Everything(Collector):
    """Removes whatever has a name."""

    async def __call__(self, excess: Amount) -> bool:
        self.names = [record.name for record in await self.ct.images.list()]
        return await super().__call__(excess)


async def whole_archive(ct: Containerd, place: Place) -> Any:
    """What an import of several images has stored is not given up for the rest of it."""
    at = scratch(place)
    files: dict[str, bytes] = {}
    entries = []
    for name in ("one", "two"):
        made = oci.image([oci.layer({name: os.urandom(4 * MB)})])
        files |= oci.layout(made)
        entries.append(made.manifest | {"annotations": {oci.REF_NAME: f"{name}:1"}})
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    oci.write_tar(at / "both.tar", files)
    collector = Everything(ct)
    results: dict[str, Any] = {}
    for kind, most in (("too_large", 12 * MB), ("fits", 100 * MB)):
        bounded(ct, collector, bytes=most)
        results[kind] = await outcome(ct, at / "both.tar", "", everything=True)
        results[kind]["names"] = sorted(record.name for record in await ct.images.list())
    await collector(Amount())
    return results | {"left": await left(ct)}


async def side_by_side(ct: Containerd, place: Place) -> Any:
    """Of two at once the one that grows without end is stopped, the other goes on."""
    at = scratch(place)
    oci.write_archive(at / "bomb.tar", [bomb()], name="bomb:1")
    oci.write_archive(at / "good.tar", [oci.static_busybox()], name="good:1")
    bounded(ct, Collector(ct), bytes=200 * MB)
    used = (await ct.limit.use.look()).used

    async def good() -> Any:
        while not await ct.leases.list():  # noqa: ASYNC110 - containerd has no event for it
            await asyncio.sleep(0.005)
        return await load(ct, at / "good.tar", "good:1")

    # Imports take turns, pulls do not: two imports stand for them here.
    turn = ct.importer._turn
    ct.importer._turn = asyncio.Semaphore(2)  # type: ignore[assignment]
    stopped, other = await asyncio.gather(refusal(ct, at / "bomb.tar", "bomb:1"), good())
    ct.importer._turn = turn
    await remove(ct, other)
    await settled(ct, used)
    return {"bomb": stopped, "good": other["name"], "left": await left(ct)}


async def changing(ct: Containerd, place: Place) -> Any:
    """A layer is measured while files of it come and go, as they do while it is unpacked."""
    async with ct.leases.hold("test", 60.0) as lease:
        mounts = await ct.snapshots.prepare("changing", "", {}, lease=lease, deadline=soon())
        upper, over = Path(mounts[0].source), threading.Event()

        def change() -> None:
            while not over.is_set():
                for number in range(100):
                    (upper / f"{number}").mkdir()
                for number in range(100):
                    (upper / f"{number}").rmdir()

        changed = spawn("changes", asyncio.to_thread(change))
        failures = []
        try:
            for _ in range(300):
                try:
                    await ct.limit.use.look()
                except AgentError as error:
                    failures.append(str(error))
        finally:
            over.set()
            await changed
        await ct.snapshots.remove("changing")
    return {"failures": failures, "left": await left(ct)}


async def dead_worker(ct: Containerd, place: Place) -> Any:
    """What a worker that was killed in an import left goes at the next one's first look."""
    archive = scratch(place) / "dead.tar"
    layers = [oci.layer({f"noise/{n}": os.urandom(MB)}) for n in range(2)]
    oci.write_archive(archive, layers, name="dead:1")
    said = await die_in_an_import(ct, archive, 60.0)
    ct.leases.worker = WORKER + 1
    prepared = PreparedImages(ct)
    results: dict[str, Any] = {"said": said}
    living = {WORKER}
    orphans = Orphans(ct, prepared, lambda: living)
    for when in ("while_it_lives", "when_it_is_dead"):
        found = await orphans.find(await ct.limit.use.look(), set())
        gone = await orphans.remove(found, set)
        await ct.leases.collect(deadline=soon())
        results[when] = [one.kind for one in gone]
        results[f"{when}_left"] = await remains(ct)
        living.clear()
    return results


async def disk_full(ct: Containerd, place: Place) -> Any:
    """On a small file system of its own: an image that does not fit says so and leaves nothing."""
    at = scratch(place)
    free = file_system(DATA).free.bytes
    collector = Collector(ct)
    bounded(ct, collector)
    noise = [oci.static_busybox(), Packed(zeros(free + 50 * MB))]
    oci.write_archive(at / "full.tar", noise, name="full:1")
    told = await outcome(ct, at / "full.tar", "full:1")
    # Others have filled it to the last byte: containerd itself cannot write any more.
    with (DATA / "others").open("wb") as file:
        try:
            while True:
                file.write(bytes(MB))
        except OSError:
            pass
    oci.write_archive(at / "small.tar", [oci.static_busybox()], name="small:1")
    admitted = await outcome(ct, at / "small.tar", "small:1")
    ct.limit._bounds = None
    late = await outcome(ct, at / "small.tar", "small:1")
    (DATA / "others").unlink()
    again = await load(ct, at / "small.tar", "small:1")
    await remove(ct, again)
    gone = shutil.disk_usage(DATA).free >= free - 4 * MB
    return {
        "unpack": told,
        "admitted": admitted,
        "late": late,
        "again": again["name"],
        "space_is_back": gone,
        "left": await left(ct),
    }


if __name__ == "__main__":
    main(
        bombs,
        known_before,
        second_try,
        whole_archive,
        changing,
        side_by_side,
        dead_worker,
        disk_full,
    )
