"""Images as strangers make them: a sample image with further files and another configuration.

Files may have any owner, mode, attribute, link or type, which `tests/oci.py` has no words for.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.oci import OCI_CONFIG, OCI_MANIFEST, REF_NAME

BUSYBOX = Path("/bin/busybox")
LAYER = "application/vnd.oci.image.layer.v1.tar"


@dataclass(frozen=True)
class Entry:
    """One member of a layer. `kind` is a tar type; `target` is a link's; `pax` further headers."""

    path: str
    data: bytes = b""
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    kind: bytes = tarfile.REGTYPE
    target: str = ""
    device: tuple[int, int] = (0, 0)
    pax: Mapping[str, str] = field(default_factory=dict)


def shell(path: str = "bin/sh") -> Entry:
    """Return a static busybox that is called by this name."""
    return Entry(path, BUSYBOX.read_bytes())


def script(path: str, text: str) -> Entry:
    """Return an executable shell script."""
    return Entry(path, f"#!/bin/sh\n{text}\n".encode())


def directory(path: str, mode: int = 0o755, uid: int = 0) -> Entry:
    """Return a directory."""
    return Entry(path, mode=mode, uid=uid, kind=tarfile.DIRTYPE)


def link(path: str, target: str) -> Entry:
    """Return a symbolic link."""
    return Entry(path, kind=tarfile.SYMTYPE, target=target)


def layer_of(entries: Sequence[Entry]) -> bytes:
    """Return an uncompressed layer."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry in entries:
            info = tarfile.TarInfo(entry.path)
            info.type, info.mode, info.mtime = entry.kind, entry.mode, 1_700_000_000
            info.uid, info.gid, info.linkname = entry.uid, entry.gid, entry.target
            info.devmajor, info.devminor = entry.device
            info.pax_headers = dict(entry.pax)
            info.size = len(entry.data)
            tar.addfile(info, io.BytesIO(entry.data))
    return buffer.getvalue()


@dataclass(frozen=True)
class Base:
    """An image in an OCI archive to build upon: its config, its layers lowest first."""

    config: dict[str, Any]
    layers: tuple[tuple[dict[str, Any], bytes], ...]

    @classmethod
    def read(cls, archive: str | Path) -> Base:
        """Read the only image of an OCI archive."""
        with tarfile.open(archive) as tar:

            def blob(digest: str) -> bytes:
                file = tar.extractfile(f"blobs/sha256/{digest.removeprefix('sha256:')}")
                assert file is not None
                return file.read()

            index = tar.extractfile("index.json")
            assert index is not None
            manifest = json.loads(blob(json.load(index)["manifests"][0]["digest"]))
            layers = tuple((each, blob(each["digest"])) for each in manifest["layers"])
            return cls(json.loads(blob(manifest["config"]["digest"])), layers)

    def file(self, ending: str) -> bytes:
        """Return a regular file of the layers whose path ends as the expression says."""
        for _, data in self.layers:
            plain = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
            with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
                for member in tar:
                    if member.isfile() and re.search(f"(?:{ending})$", member.name):
                        file = tar.extractfile(member)
                        assert file is not None
                        return file.read()
        raise AssertionError(f"no file {ending}")


SCRATCH = Base({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers"}}, ())


def write(
    path: Path,
    name: str,
    base: Base,
    entries: Sequence[Entry] = (),
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write an OCI archive of `base` with a further layer and `config` over its own section."""
    layers = [each for each, _ in base.layers]
    blobs = {each["digest"]: data for each, data in base.layers}
    diff_ids = list(base.config["rootfs"].get("diff_ids", ()))
    if entries:
        data = layer_of(entries)
        layers.append(_keep(blobs, data, LAYER))
        diff_ids.append(layers[-1]["digest"])
    document = {
        **base.config,
        "config": {**base.config.get("config", {}), **(config or {})},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    document.pop("history", None)
    at = _keep(blobs, json.dumps(document).encode(), OCI_CONFIG)
    manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": at, "layers": layers}
    entry = _keep(blobs, json.dumps(manifest).encode(), OCI_MANIFEST)
    entry["annotations"] = {REF_NAME: name}
    files = {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        "index.json": json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode(),
    }
    files |= {f"blobs/sha256/{digest[7:]}": data for digest, data in blobs.items()}
    with tarfile.open(path, "w") as tar:
        for member, data in files.items():
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def _keep(blobs: dict[str, bytes], data: bytes, media_type: str) -> dict[str, Any]:
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    blobs[digest] = data
    return {"mediaType": media_type, "digest": digest, "size": len(data)}
