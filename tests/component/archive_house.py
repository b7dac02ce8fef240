"""Images and archives for tests of what an import reads: as tools write them, by name and path."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.containerd import archive
from agent.containerd.layout import ImageLayout, read_layouts
from agent.containerd.selection import choose
from agent.errors import InvalidSpec
from tests import oci

AMD64 = {"os": "linux", "architecture": "amd64"}
ARM64 = {"os": "linux", "architecture": "arm64"}
LAYERS = [oci.layer({"a": b"1"}), oci.layer({"b": b"2"})]
IMAGE = oci.image(LAYERS, {"Cmd": ["/a"]})
OTHER = oci.image([oci.layer({"c": b"3"})], {"Cmd": ["/c"]})
ARM = oci.image([oci.layer({"d": b"4"})], arch="arm64")
DOCKER = oci.image(LAYERS, {"Cmd": ["/a"]}, docker=True)

Files = dict[str, bytes]
APP = "docker.io/library/app:1"


def load(path: Path, name: str = "", *, everything: bool = False) -> dict[str, ImageLayout]:
    """Read an archive as an import would; returns its chosen images by name."""
    files = archive.open_files(path, path.parent)
    try:
        chosen = choose(read_layouts(files), name, path, everything=everything)
        for one in chosen:
            for blob in one.layout.blobs:
                assert oci.digest(b"".join(blob.pieces(files))) == blob.descriptor.digest
        return {name: one.layout for one in chosen for name in one.names}
    finally:
        files.close()


def refusal(path: Path, name: str = "", *, everything: bool = False) -> str:
    with pytest.raises(InvalidSpec) as caught:
        load(path, name, everything=everything)
    assert str(path) in caught.value.message
    return caught.value.message


def dumps(value: object) -> bytes:
    return json.dumps(value).encode()


def entry(made: oci.OciImage, name: str = "", **more: Any) -> dict[str, Any]:
    """An entry of index.json; `name` goes into ref.name, as most tools have it."""
    notes = {oci.REF_NAME: name} if name else {}
    return {**made.manifest, "annotations": {**notes, **more.pop("annotations", {})}, **more}


def layout(*entries: dict[str, Any], images: tuple[oci.OciImage, ...] = (IMAGE,)) -> Files:
    files = {
        "oci-layout": dumps({"imageLayoutVersion": "1.0.0"}),
        "index.json": dumps({"schemaVersion": 2, "manifests": list(entries)}),
    }
    for made in images:
        files |= {f"blobs/sha256/{key[7:]}": data for key, data in made.blobs.items()}
    return files


def blob_of(made: oci.OciImage, kind: str = "config") -> str:
    manifest = json.loads(made.blobs[made.digest])
    return f"blobs/sha256/{manifest[kind]['digest'][7:]}"


def changed(made: oci.OciImage, change: Callable[[dict[str, Any]], object]) -> oci.OciImage:
    """The image with another manifest."""
    manifest = json.loads(made.blobs[made.digest])
    change(manifest)
    raw = dumps(manifest)
    blobs = {key: data for key, data in made.blobs.items() if key != made.digest}
    at = made.manifest | {"digest": oci.digest(raw), "size": len(raw)}
    return oci.OciImage(blobs | {oci.digest(raw): raw}, at)


def old_docker(**change: Any) -> Files:
    files = oci.docker_save(DOCKER, LAYERS, "app:1")
    (one,) = json.loads(files["manifest.json"])
    return files | {"manifest.json": dumps([{**one, **change}])}


def cosign() -> Files:
    """`cosign save`: the image, its signature and its attestation side by side."""
    signed = oci.OciImage(*artifact("application/vnd.dev.cosign.simplesigning.v1+json"))
    kind = "dev.cosignproject.cosign"
    return layout(
        entry(signed, kind="x", annotations={"kind": f"{kind}/sigs"}),
        entry(IMAGE, annotations={"kind": f"{kind}/image"}),
        entry(signed, annotations={"kind": f"{kind}/atts"}),
        images=(signed, IMAGE),
    )


def artifact(layer_type: str) -> tuple[dict[str, bytes], dict[str, Any]]:
    made = changed(IMAGE, lambda m: m["layers"][0].update(mediaType=layer_type))
    return made.blobs, made.manifest
