"""Imports images of odd forms, and archives that other tools wrote, with the real containerd.

`forms` makes its own; `tools` takes every archive in the directory TOOLS under the name `tool:1`.
Both tell what a container would find of the image.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.containerd import cpu
from agent.containerd.client import Containerd
from agent.containerd.snapshots import view_key
from agent.errors import AgentError
from tests import oci
from tests.inside.containerd_base import Place, main, soon

TAR = "application/vnd.oci.image.layer.v1.tar"
FILE = oci.layer({"app/file": b"here"})


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-qc"], input=data, stdout=subprocess.PIPE, check=True).stdout


def members(data: bytes) -> bytes:
    """As pigz and eStargz write gzip."""
    return gzip.compress(data[:700]) + gzip.compress(data[700:])


def same(data: bytes) -> bytes:
    return data


def headed(flags: int, fields: bytes) -> Callable[[bytes], bytes]:
    """As gzip(1) and others write it, with fields in the header (RFC 1952, 2.3)."""

    def packed(data: bytes) -> bytes:
        plain = gzip.compress(data, mtime=0)
        return plain[:3] + bytes([flags]) + plain[4:10] + fields + plain[10:]

    return packed


def stored(data: bytes) -> bytes:
    return gzip.compress(data, 0)


@dataclass(frozen=True)
class Form:
    """How one layer is packed and typed, and what the config says at its root."""

    pack: Callable[[bytes], bytes] = gzip.compress
    kind: str | None = TAR + "+gzip"
    root: Mapping[str, Any] = field(default_factory=dict)
    config_kind: str | None = oci.OCI_CONFIG
    manifest_kind: str | None = oci.OCI_MANIFEST


FORMS = {
    "gzip": Form(),
    "gzip in members": Form(members),
    "gzip with a member of nothing first": Form(lambda data: gzip.compress(b"") + members(data)),
    "gzip with a member of nothing last": Form(lambda data: members(data) + gzip.compress(b"")),
    "gzip with a name": Form(headed(0x08, b"layer.tar\0")),
    "gzip with a comment": Form(headed(0x10, b"x" * 4000 + b"\0")),
    "gzip with fields of others": Form(headed(0x04, b"\x05\0SG\1\0x")),
    "gzip with all fields": Form(headed(0x1C, b"\x05\0SG\1\0xlayer.tar\0x\0")),
    "gzip of stored blocks": Form(stored),
    "gzip at its best": Form(lambda data: gzip.compress(data, 9)),
    "gzip with zeros after it": Form(lambda data: gzip.compress(data) + bytes(512)),
    "gzip with something after it": Form(lambda data: gzip.compress(data) + b"signed: me"),
    "gzip that its type denies": Form(kind=TAR),
    "zstd": Form(zstd, TAR + "+zstd"),
    "zstd that its type calls gzip": Form(zstd),
    "zstd that its type denies": Form(zstd, TAR),
    "plain": Form(same, TAR),
    "plain that its type calls gzip": Form(same),
    "plain of no type": Form(same, None),
    "gzip of no type": Form(kind=None),
    "not to be distributed": Form(
        kind="application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
    ),
    "foreign": Form(kind="application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
    "no media types anywhere": Form(kind=None, config_kind=None, manifest_kind=None),
    "Docker's layer under an OCI manifest": Form(kind=oci.DOCKER_LAYER),
    "a config that says no platform": Form(root={"os": "", "architecture": ""}),
    "a config of x86_64 and Linux": Form(root={"os": "Linux", "architecture": "x86_64"}),
    "a config of a variant": Form(root={"variant": f"v{cpu.level()}"}),
    "a config with an OS version": Form(root={"os.version": "6.1", "os.features": ["x"]}),
    "a config of nulls": Form(root={"config": None, "history": None, "created": None}),
    "a config of half a mebibyte": Form(root={"comment": "x" * (512 << 10)}),
}


# Ways to be no gzip, or not a whole one.
DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "cut in the middle": lambda packed: packed[: len(packed) // 2],
    "cut in its end": lambda packed: packed[:-3],
    "without its end": lambda packed: packed[:-8],
    "another sum": lambda packed: packed[:-8] + bytes(4) + packed[-4:],
    "another size": lambda packed: packed[:-4] + bytes(4),
    "bytes changed": lambda packed: packed[:40] + bytes(9) + packed[49:],
    "another method": lambda packed: packed[:2] + b"\7" + packed[3:],
    "only a header": lambda packed: packed[:10],
    "a second member cut": lambda packed: packed + packed[:9],
}


def archive(form: Form) -> dict[str, bytes]:
    """Return the files of an OCI layout with one image of this form."""

    def kept(data: bytes, kind: str | None) -> dict[str, Any]:
        key = oci.digest(data)
        files[f"blobs/sha256/{key[7:]}"] = data
        typed = {} if kind is None else {"mediaType": kind}
        return {**typed, "digest": key, "size": len(data)}

    files: dict[str, bytes] = {}
    config: dict[str, Any] = {
        "os": "linux",
        "architecture": "amd64",
        "config": {"Cmd": ["/app/file"]},
        "rootfs": {"type": "layers", "diff_ids": [FILE.diff_id]},
        **form.root,
    }
    manifest = {
        "schemaVersion": 2,
        "config": kept(json.dumps(config).encode(), form.config_kind),
        "layers": [kept(form.pack(FILE.tar), form.kind)],
    }
    at = kept(json.dumps(manifest).encode(), form.manifest_kind)
    files["oci-layout"] = b'{"imageLayoutVersion":"1.0.0"}'
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [at]}).encode()
    return files


async def forms(ct: Containerd, place: Place) -> Any:
    results = {}
    for name, form in FORMS.items():
        path = oci.write_tar(place.dir / "form.tar", archive(form))
        results[name] = await found(ct, path, "form:1", "app/file")
    return results


async def damaged(ct: Containerd, place: Place) -> Any:
    results = {}
    for name, damage in DAMAGED.items():

        def packed(data: bytes, damage: Callable[[bytes], bytes] = damage) -> bytes:
            return damage(gzip.compress(data + os.urandom(4096)))

        path = oci.write_tar(place.dir / "damaged.tar", archive(Form(packed)))
        results[name] = await found(ct, path, "damaged:1", "app/file")
    return results


async def tools(ct: Containerd, _: Place) -> Any:
    paths = sorted(Path(os.environ["TOOLS"]).iterdir())
    return {path.name: await found(ct, path, "tool:1", "app/file") for path in paths}


async def several(ct: Containerd, place: Place) -> Any:
    """Two images in an archive: chosen by name, or all; several tags of one are all recorded."""
    one = oci.image([FILE], {"Cmd": ["/1"]})
    two = oci.image([FILE, oci.layer({"b": b"2"})], {"Cmd": ["/2"]})
    files = oci.layout(one) | oci.layout(two)
    tagged = [(one, "app:1"), (one, "app:latest"), (two, "app:2")]
    entries = [made.manifest | {"annotations": {oci.REF_NAME: name}} for made, name in tagged]
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    path = oci.write_tar(place.dir / "several.tar", files)
    results: dict[str, Any] = {"plain": await found(ct, path, "", "b")}
    for name, everything in (("app:2", False), ("", True)):
        images = await ct.importer.load(
            path, name=name, everything=everything, scratch=path.parent, deadline=soon()
        )
        results[name or "all"] = {image.name: list(image.config.cmd) for image in images}
        for image in images:
            await ct.images.delete(image.name, sync=True)
    results["left"] = [record.name for record in await ct.images.list()]
    return results


async def found(ct: Containerd, path: Path, name: str, file: str) -> Any:
    """Import, look for a file in the layers, remove; an import again gives the same."""
    try:
        (image,) = await ct.importer.load(
            path, name=name, scratch=Path(os.environ["PROBE_DIR"]), deadline=soon()
        )
        (again,) = await ct.importer.load(
            path, name=name, scratch=Path(os.environ["PROBE_DIR"]), deadline=soon()
        )
    except AgentError as failure:
        return {"refused": failure.message}
    layers = await ct.snapshots.image_layers(image.chain_id)
    texts = [(Path(layer) / file).read_text() for layer in layers if (Path(layer) / file).exists()]
    await ct.snapshots.remove(view_key(image.chain_id))
    await ct.images.delete(image.name, sync=True)
    return {
        "text": texts,
        "cmd": list(image.config.cmd),
        "same": image == again,
        "unpacked": image.unpacked_bytes,
        "blobs_left": await ct.content.count(),
    }


if __name__ == "__main__":
    main(forms, damaged, several, tools)
