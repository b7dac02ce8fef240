"""Imports, views and removes images with the real containerd; refuses broken ones by name."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import sys
from pathlib import Path
from typing import Any

from agent._pb.containerd.services.content.v1 import content_pb2, content_pb2_grpc
from agent.containerd.client import Containerd
from agent.containerd.snapshots import view_key
from agent.errors import AgentError
from tests import oci
from tests.inside.containerd_base import Place, main, soon

NAME = "kindling.local/probe:1"
AMD64 = {"os": "linux", "architecture": "amd64"}
ARM64 = {"os": "linux", "architecture": "arm64"}


def scratch(place: Place) -> Path:
    path = place.dir / "archives"
    path.mkdir(exist_ok=True)
    return path


async def load(ct: Containerd, path: Path, name: str = NAME) -> Any:
    (image,) = await ct.importer.load(path, name=name, scratch=path.parent, deadline=soon())
    layers = await ct.snapshots.image_layers(image.chain_id)
    return {
        "name": image.name,
        "digest": image.digest,
        "chain_id": image.chain_id,
        "cmd": list(image.config.cmd),
        "compressed": image.compressed_bytes,
        "unpacked": image.unpacked_bytes,
        "layers": len(layers),
        "top": sorted(os.listdir(layers[0]))[:20],
    }


async def remove(ct: Containerd, loaded: Any) -> None:
    await ct.snapshots.remove(view_key(loaded["chain_id"]))
    await ct.images.delete(loaded["name"], sync=True)


async def left(ct: Containerd) -> Any:
    return {
        "images": [record.name for record in await ct.images.list()],
        "snapshots": [snapshot.key for snapshot in await ct.snapshots.list()],
        "leases": list(await ct.leases.list()),
        "blobs": await ct.content.count(),
    }


async def formats(ct: Containerd, place: Place) -> Any:
    """The same image through every format, twice, and nothing of it left after removal."""
    at = scratch(place)
    layers = [oci.static_busybox(), oci.layer({"app/hello.txt": b"hello\n"})]
    config = {"Cmd": ["/bin/sh"], "Env": ["A=1"]}
    plain = oci.image(layers, config)
    mixed = oci.index(
        [(oci.image(layers, config, arch="arm64"), ARM64), (plain, AMD64)], attestation=True
    )
    docker = oci.image(layers, config, docker=True)
    paths = {
        "archive": oci.write_tar(at / "a.tar", oci.layout(plain, "probe:1")),
        "zipped": oci.write_tar(at / "a.tar.gz", oci.layout(plain), compress=True),
        "directory": oci.write_directory(at / "dir", oci.layout(plain)),
        "index": oci.write_tar(at / "index.tar", oci.layout(mixed)),
        "docker": oci.write_tar(at / "docker.tar", oci.layout(docker)),
        "docker_save": oci.write_tar(at / "save.tar", oci.docker_save(docker, layers, "probe:2")),
    }
    results: dict[str, Any] = {"expected": plain.digest, "docker_expected": docker.digest}
    for kind, path in paths.items():
        first = await load(ct, path)
        results[kind] = first
        results[f"{kind}_again"] = await load(ct, path) == first
        await remove(ct, first)
    unnamed = await load(ct, paths["archive"], "")
    results["unnamed"] = unnamed["name"]
    await remove(ct, unnamed)
    results["left"] = await left(ct)
    return results


async def survives_collection(ct: Containerd, place: Place) -> Any:
    """An imported image outlives a synchronous garbage collection, its lease being gone."""
    at = scratch(place)
    oci.write_archive(at / "keep.tar", [oci.static_busybox()], name="keep:1")
    oci.write_archive(at / "drop.tar", [oci.layer({"drop": b"x"})], name="drop:1")
    kept = await load(ct, at / "keep.tar", "")
    await remove(ct, await load(ct, at / "drop.tar", ""))
    image = await ct.images.inspect(kept["name"])
    there = await ct.snapshots.exists(image.chain_id)
    await ct.snapshots.remove(view_key(image.chain_id))
    await remove(ct, await load(ct, at / "drop.tar", ""))
    without_view = await ct.snapshots.exists(image.chain_id)
    await ct.images.delete(kept["name"], sync=True)
    return {
        "snapshot_kept": there,
        "kept_without_view": without_view,
        "unpacked": image.unpacked_bytes,
        "left": await left(ct),
    }


async def unlabelled(ct: Containerd, place: Place) -> Any:
    """Layers are let go whatever their tag stands for by now; another image keeps its own."""
    at = scratch(place)
    oci.write_archive(at / "one.tar", [oci.static_busybox()], name="tag:1")
    oci.write_archive(at / "two.tar", [oci.layer({"two": b"x"})], name="tag:1")
    one = await load(ct, at / "one.tar", "")
    await ct.snapshots.remove(view_key(one["chain_id"]))
    kept = await ct.images.get(one["name"])
    await ct.images.put("docker.io/library/same:1", kept.target, {})
    two = await load(ct, at / "two.tar", "")  # the tag has moved
    await ct.snapshots.remove(view_key(two["chain_id"]))
    await ct.images.unlabel(one["chain_id"], ct.snapshots.snapshotter)
    await ct.leases.collect(deadline=asyncio.get_running_loop().time() + 30)
    keys = (one["chain_id"], two["chain_id"])
    there = [await ct.snapshots.exists(key) for key in keys]
    for name in (one["name"], "docker.io/library/same:1"):
        await ct.images.delete(name, sync=True)
    return {"there": there, "left": await left(ct)}


async def deep(ct: Containerd, place: Place) -> Any:
    """Forty layers: the view's directories come out whole and in order."""
    at = scratch(place)
    layers = [oci.static_busybox()]
    layers += [oci.layer({f"layer/{n}": str(n).encode()}) for n in range(39)]
    oci.write_archive(at / "deep.tar", layers, name="deep:1")
    loaded = await load(ct, at / "deep.tar", "")
    lowers = await ct.snapshots.image_layers(loaded["chain_id"])
    loaded["order"] = [sorted(os.listdir(Path(lower) / "layer"))[0] for lower in lowers[:3]]
    loaded["all_there"] = all(Path(lower).is_dir() for lower in lowers)
    await remove(ct, loaded)
    return loaded


async def refused(ct: Containerd, place: Place) -> Any:
    """Each bad input gives one error that names the file, and stores nothing that stays."""
    at = scratch(place)
    busybox = oci.static_busybox()
    good = oci.image([busybox])
    files = oci.layout(good, "bad:1")
    config_file = next(name for name, data in files.items() if b"diff_ids" in data)
    layer_file = max(files, key=lambda name: len(files[name]))
    whole = oci.write_tar(at / "whole.tar", files).read_bytes()
    wrong_config = json.loads(files[config_file]) | {
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "1" * 64]}
    }
    liar = relabel(good, wrong_config)
    (at / "cut.tar").write_bytes(whole[: len(whole) // 2])
    (at / "cut.tar.gz").write_bytes(gzip.compress(whole)[:-2000])
    (at / "noise.tar").write_bytes(os.urandom(4096))
    (at / "empty.tar").write_bytes(b"")
    (at / "zstd.tar").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(100))
    damaged = dict(files)
    middle = len(damaged[layer_file]) // 2
    flipped = bytes([damaged[layer_file][middle] ^ 1])
    damaged[layer_file] = damaged[layer_file][:middle] + flipped + damaged[layer_file][middle + 1 :]
    arm = oci.index([(oci.image([busybox], arch="arm64"), ARM64)], attestation=True)
    paths = {
        "missing": at / "nowhere.tar",
        "cut": at / "cut.tar",
        "cut_gz": at / "cut.tar.gz",
        "noise": at / "noise.tar",
        "empty": at / "empty.tar",
        "zstd": at / "zstd.tar",
        "no_layout": oci.write_tar(at / "x.tar", {"hello": b"x"}),
        "no_blob": oci.write_tar(
            at / "no_blob.tar", {k: v for k, v in files.items() if k != layer_file}
        ),
        "damaged": oci.write_tar(at / "damaged.tar", damaged),
        "bad_json": oci.write_tar(at / "bad_json.tar", files | {"index.json": b"{"}),
        "arm_config": oci.write_tar(
            at / "arm_config.tar", oci.layout(oci.image([busybox], arch="arm64"))
        ),
        "arm_index": oci.write_tar(at / "arm_index.tar", oci.layout(arm)),
        "wrong_diff_id": oci.write_tar(at / "liar.tar", oci.layout(liar)),
        "no_name": oci.write_tar(at / "no_name.tar", oci.layout(good)),
    }
    results: dict[str, Any] = {}
    for kind, path in paths.items():
        name = "" if kind == "no_name" else NAME
        try:
            await load(ct, path, name)
            results[kind] = {"class": None}
        except AgentError as failure:
            results[kind] = {"class": type(failure).__name__, "text": failure.message}
    results["left"] = await left(ct)
    return results


def relabel(image: oci.OciImage, config: Any) -> oci.OciImage:
    """The same layers under another config."""
    data = json.dumps(config).encode()
    manifest = json.loads(image.blobs[image.digest])
    manifest["config"] |= {"digest": oci.digest(data), "size": len(data)}
    raw = json.dumps(manifest).encode()
    at = image.manifest | {"digest": oci.digest(raw), "size": len(raw)}
    return oci.OciImage(image.blobs | {oci.digest(data): data, oci.digest(raw): raw}, at)


async def cut_short(ct: Containerd, place: Place) -> Any:
    """A worker is killed in an import: its lease ends, and what it stored is collected then."""
    archive = scratch(place) / "cut.tar"
    layers = [oci.layer({f"noise/{n}": os.urandom(1 << 20)}) for n in range(2)]
    oci.write_archive(archive, layers, name="cut:1")
    results: dict[str, Any] = {"said": await die_in_an_import(ct, archive)}
    results["at_once"] = await remains(ct)
    await until_nothing_remains(ct)
    return results


async def again_after_a_cut(ct: Containerd, place: Place) -> Any:
    """The next import of the same archive takes over, while that lease still stands."""
    archive = scratch(place) / "again.tar"
    layers = [oci.static_busybox(), oci.layer({"noise": os.urandom(1 << 20)})]
    oci.write_archive(archive, layers, name="again:1")
    said = await die_in_an_import(ct, archive)
    loaded = await load(ct, archive, "")
    await remove(ct, loaded)
    await until_nothing_remains(ct)
    return {"said": said, "loaded": loaded}


# A lease ends a minute after the time it is held for: this one in five seconds.
SOON_OVER_S = -55.0


async def die_in_an_import(ct: Containerd, archive: Path, lease_s: float = SOON_OVER_S) -> str:
    """Have another process begin an import, and kill it when it says how far it is."""
    worker = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-m",
            "tests.inside.half_import",
            ct.channel.socket,
            archive,
            str(lease_s),
        ),
        stdout=asyncio.subprocess.PIPE,
    )
    assert worker.stdout is not None
    said = await worker.stdout.readline()
    worker.kill()
    await worker.wait()
    return said.decode()


async def until_nothing_remains(ct: Containerd) -> None:
    """Leases that ended and what they held go with the next collection, whoever asks for it."""
    async with asyncio.timeout(60):
        while any((await remains(ct)).values()):
            await asyncio.sleep(0.2)
            async with ct.leases.hold("collect", 60) as lease:
                await ct.leases.delete(lease, sync=True)


async def remains(ct: Containerd) -> dict[str, int]:
    """What of an import is in the store."""
    stub = content_pb2_grpc.ContentStub(ct.channel.grpc)
    request = content_pb2.ListStatusesRequest()
    statuses = await ct.channel.call(stub.ListStatuses, request, "list ingests")
    return {
        "blobs": await ct.content.count(),
        "ingests": len(statuses.statuses),
        "leases": len(await ct.leases.list()),
    }


if __name__ == "__main__":
    main(formats, survives_collection, unlabelled, deep, refused, cut_short, again_after_a_cut)
