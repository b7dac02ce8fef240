"""Writes OCI image archives: layers from dicts of files, one image per tar, byte for byte stable.

Stdlib only. Names go into the index as `io.containerd.image.name` and
`org.opencontainers.image.ref.name`, so that containerd and others import them by name. Follows the
OCI image specification 1.1. What goes into the layers is decided by `build.py`.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
NAME_KEYS = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
CAPABILITIES = "SCHILY.xattr.security.capability"
CREATED = "1970-01-01T00:00:00Z"


@dataclass(frozen=True)
class File:
    """A regular file; `capabilities` is what setcap(8) would write to it."""

    data: bytes
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    capabilities: bytes = b""


@dataclass(frozen=True)
class Link:
    """A symbolic link."""

    target: str


@dataclass(frozen=True)
class Directory:
    """A directory whose mode or owner is not the usual one, or one that stays empty."""

    mode: int = 0o755
    uid: int = 0
    gid: int = 0


Tree = Mapping[str, File | Link | Directory]
"""Path inside the image, relative to its root, to what lies there. Parents are made as needed."""


@dataclass(frozen=True)
class Layer:
    """A gzipped layer and the digest of what is inside the gzip."""

    blob: bytes
    diff_id: str


def digest(data: bytes) -> str:
    """Return `sha256:<hex>`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def layer(tree: Tree, level: int = 6) -> Layer:
    """Return a layer gzipped at `level`; the order of `tree` does not matter, times are zero."""
    whole: dict[str, File | Link | Directory] = {}
    for path in tree:
        for parent in PurePosixPath(path).parents:
            if str(parent) != ".":
                whole.setdefault(str(parent), Directory())
    whole.update(tree)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(whole):
            _add(tar, path, whole[path])
    raw = buffer.getvalue()
    return Layer(gzip.compress(raw, level, mtime=0), digest(raw))


def archive(name: str, layers: Sequence[Layer], config: Mapping[str, Any]) -> bytes:
    """Return an OCI archive (an uncompressed tar) with one linux/amd64 image.

    `config` is the image's config section: Env, Entrypoint, Cmd, WorkingDir, ExposedPorts …
    """
    blobs: dict[str, bytes] = {}
    image = {
        "created": CREATED,
        "architecture": "amd64",
        "os": "linux",
        "config": dict(config),
        "rootfs": {"type": "layers", "diff_ids": [each.diff_id for each in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": _keep(blobs, _json(image), CONFIG),
        "layers": [_keep(blobs, each.blob, LAYER) for each in layers],
    }
    entry = _keep(blobs, _json(manifest), MANIFEST)
    entry["platform"] = {"architecture": "amd64", "os": "linux"}
    entry["annotations"] = dict.fromkeys(NAME_KEYS, name)
    files = {
        "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
        "index.json": _json({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}),
    }
    files |= {f"blobs/sha256/{key[7:]}": data for key, data in sorted(blobs.items())}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, data in files.items():
            _add(tar, path, File(data))
    return buffer.getvalue()


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that nobody ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_bytes(data)
    part.replace(path)


def _add(tar: tarfile.TarFile, path: str, what: File | Link | Directory) -> None:
    info = tarfile.TarInfo(path)
    if isinstance(what, Directory):
        info.type, info.mode = tarfile.DIRTYPE, what.mode
        info.uid, info.gid = what.uid, what.gid
        tar.addfile(info)
    elif isinstance(what, Link):
        info.type, info.mode, info.linkname = tarfile.SYMTYPE, 0o777, what.target
        tar.addfile(info)
    else:
        info.mode, info.size = what.mode, len(what.data)
        info.uid, info.gid = what.uid, what.gid
        if what.capabilities:
            info.pax_headers = {CAPABILITIES: what.capabilities.decode("latin-1")}
        tar.addfile(info, io.BytesIO(what.data))


def _keep(blobs: dict[str, bytes], data: bytes, media_type: str) -> dict[str, Any]:
    key = digest(data)
    blobs[key] = data
    return {"mediaType": media_type, "digest": key, "size": len(data)}


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
