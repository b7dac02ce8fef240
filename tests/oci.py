"""Makes small OCI images for tests: layers from dicts of files, archives, layouts, indexes.

Everything is deterministic: the same input gives the same digests. `static_busybox` is a layer with
Debian's static busybox and links for the applets tests use.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
REF_NAME = "org.opencontainers.image.ref.name"

BUSYBOX = Path("/bin/busybox")
APPLETS = ("sh", "cat", "echo", "sleep", "true", "false", "ls", "kill", "id", "env", "dd", "httpd")

# A file is bytes (mode 0644), (bytes, mode), or "-> target" for a symlink.
File = bytes | tuple[bytes, int] | str


@dataclass(frozen=True)
class Layer:
    """An uncompressed layer tar and its gzipped form."""

    tar: bytes

    @cached_property
    def diff_id(self) -> str:
        return digest(self.tar)

    @cached_property
    def blob(self) -> bytes:
        return gzip.compress(self.tar, 1, mtime=0)  # the smallest would take seconds


@dataclass
class OciImage:
    """One image: its blobs by digest, and the descriptor of its manifest."""

    blobs: dict[str, bytes]
    manifest: dict[str, Any]
    chain: tuple[str, ...] = field(default=())

    @property
    def digest(self) -> str:
        return str(self.manifest["digest"])


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def layer(files: Mapping[str, File], owners: Mapping[str, tuple[int, int]] | None = None) -> Layer:
    """Make a layer; parent directories are added by themselves. All is root's but `owners`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        made: set[str] = set()
        for name, content in files.items():
            for parent in reversed(Path(name).parents[:-1]):
                _directory(tar, str(parent), made)
            if name.endswith("/"):
                _directory(tar, name.rstrip("/"), made)
                continue
            _add(tar, name, content, (owners or {}).get(name, (0, 0)))
    return Layer(buffer.getvalue())


def static_busybox() -> Layer:
    """A layer with a working shell and little else."""
    files: dict[str, File] = {"bin/busybox": (BUSYBOX.read_bytes(), 0o755)}
    files |= {f"bin/{applet}": "-> busybox" for applet in APPLETS}
    files |= {"tmp/": b"", "etc/passwd": b"root:x:0:0:root:/:/bin/sh\napp:x:1000:1000::/:/bin/sh\n"}
    files |= {"etc/group": b"root:x:0:\napp:x:1000:\n", "proc/": b"", "sys/": b"", "dev/": b""}
    return layer(files)


def image(
    layers: Sequence[Layer],
    config: Mapping[str, Any] | None = None,
    *,
    arch: str = "amd64",
    docker: bool = False,
) -> OciImage:
    """Make an image; `config` is its config section (Cmd, Env …)."""
    document = {
        "architecture": arch,
        "os": "linux",
        "config": dict(config or {"Cmd": ["/bin/sh"]}),
        "rootfs": {"type": "layers", "diff_ids": [each.diff_id for each in layers]},
    }
    blobs: dict[str, bytes] = {}
    config_at = _keep(blobs, _json(document), DOCKER_CONFIG if docker else OCI_CONFIG)
    kind = DOCKER_LAYER if docker else OCI_LAYER
    manifest = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST if docker else OCI_MANIFEST,
        "config": config_at,
        "layers": [_keep(blobs, each.blob, kind) for each in layers],
    }
    at = _keep(blobs, _json(manifest), str(manifest["mediaType"]))
    return OciImage(blobs, at)


def index(
    entries: Sequence[tuple[OciImage, Mapping[str, Any]]], *, attestation: bool = False
) -> OciImage:
    """Make an index of images with their platforms, with an attestation entry beside if asked."""
    blobs: dict[str, bytes] = {}
    manifests: list[dict[str, Any]] = []
    if attestation:
        proof = _keep(blobs, _json({"schemaVersion": 2, "config": {}, "layers": []}), OCI_MANIFEST)
        manifests.append(
            proof
            | {
                "platform": {"os": "unknown", "architecture": "unknown"},
                "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
            }
        )
    for each, platform in entries:
        blobs |= each.blobs
        manifests.append(each.manifest | {"platform": dict(platform)})
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}
    return OciImage(blobs, _keep(blobs, _json(document), OCI_INDEX))


def layout(made: OciImage, name: str = "") -> dict[str, bytes]:
    """Return the files of an OCI layout with this one image in it."""
    entry = dict(made.manifest)
    if name:
        entry["annotations"] = {REF_NAME: name}
    files = {
        "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
        "index.json": _json({"schemaVersion": 2, "manifests": [entry]}),
    }
    return files | {f"blobs/sha256/{key[7:]}": data for key, data in made.blobs.items()}


def docker_save(made: OciImage, layers: Sequence[Layer], tag: str) -> dict[str, bytes]:
    """Return the files `docker save` used to write for this image."""
    config_digest = json.loads(made.blobs[made.digest])["config"]["digest"]
    config_name = f"{config_digest[7:]}.json"
    names = [f"{each.diff_id[7:19]}/layer.tar" for each in layers]
    files = {config_name: made.blobs[config_digest]}
    files |= {name: each.tar for name, each in zip(names, layers, strict=True)}
    entry = {"Config": config_name, "RepoTags": [tag], "Layers": names}
    return files | {"manifest.json": _json([entry])}


def write_directory(path: Path, files: Mapping[str, bytes]) -> Path:
    """Write files below `path`."""
    for name, data in files.items():
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return path


def write_tar(path: Path, files: Mapping[str, bytes], *, compress: bool = False) -> Path:
    """Write files as a tar, gzipped if asked."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            _add(tar, name, data)
    data = buffer.getvalue()
    path.write_bytes(gzip.compress(data, mtime=0) if compress else data)
    return path


def write_archive(
    path: Path,
    layers: Sequence[Layer],
    config: Mapping[str, Any] | None = None,
    *,
    name: str = "",
    arch: str = "amd64",
    compress: bool = False,
) -> OciImage:
    """Write an OCI archive with one image and return that image."""
    made = image(layers, config, arch=arch)
    write_tar(path, layout(made, name), compress=compress)
    return made


def _keep(blobs: dict[str, bytes], data: bytes, media_type: str) -> dict[str, Any]:
    key = digest(data)
    blobs[key] = data
    return {"mediaType": media_type, "digest": key, "size": len(data)}


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _directory(tar: tarfile.TarFile, name: str, made: set[str]) -> None:
    if name not in made:
        made.add(name)
        info = tarfile.TarInfo(name)
        info.type, info.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(info)


def _add(tar: tarfile.TarFile, name: str, content: File, owner: tuple[int, int] = (0, 0)) -> None:
    info = tarfile.TarInfo(name)
    info.uid, info.gid = owner
    if isinstance(content, str):
        info.type, info.linkname = tarfile.SYMTYPE, content.removeprefix("-> ")
        tar.addfile(info)
        return
    data, info.mode = content if isinstance(content, tuple) else (content, 0o644)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
