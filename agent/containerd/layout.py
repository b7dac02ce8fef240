"""Makes out the one linux/amd64 image in an OCI layout or in what `docker save` writes.

It reads manifests and configs, checks that every blob is there in its size, and says which file
holds which blob; `importer` stores them. Docker's old format names layers by files, so their
digests are computed here and a manifest is written for them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from agent.containerd.archive import MAX_BYTES, Files, read_all, wrong
from agent.core import oci_image
from agent.core.oci_image import Descriptor, ImageConfig, Manifest
from agent.errors import InvalidSpec

MAX_DEPTH = 4
REF_NAME = "org.opencontainers.image.ref.name"
# containerd's and docker's own annotation, with the whole name; ref.name often is a tag only.
IMAGE_NAME = "io.containerd.image.name"
MAX_TAGS = 100


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob to store, from a file of the archive or made here."""

    descriptor: Descriptor
    file: str = ""
    data: bytes = b""

    def pieces(self, files: Files) -> Iterator[bytes]:
        """Yield its bytes, and refuse it at the end when they do not have its digest."""
        if not self.file:
            yield self.data
            return
        digest = hashlib.sha256()
        for piece in files.pieces(self.file):
            digest.update(piece)
            yield piece
        if "sha256:" + digest.hexdigest() != self.descriptor.digest:
            raise wrong(files.path, f"its {self.file} is damaged: its bytes have another digest")


@dataclass(frozen=True, slots=True)
class ImageLayout:
    """One image in an archive. `blobs` ends with config and manifest; `names` are as written."""

    target: Descriptor
    manifest: Manifest
    config: ImageConfig
    blobs: tuple[Blob, ...]
    names: tuple[str, ...]


def read_layout(files: Files) -> ImageLayout:
    """Return the image in the files. Raises InvalidSpec naming the path and what is wrong."""
    if files.size_bytes("oci-layout") is not None:
        return _read_oci(files)
    if files.size_bytes("manifest.json") is not None:
        return _read_docker(files)
    raise wrong(files.path, "has neither oci-layout nor manifest.json: not a container image")


def _read_oci(files: Files) -> ImageLayout:
    where = str(files.path)
    version = _json(files, "oci-layout")
    if not isinstance(version, dict) or version.get("imageLayoutVersion") != "1.0.0":
        raise wrong(files.path, "its oci-layout is not of version 1.0.0")
    raw = read_all(files, "index.json", oci_image.MAX_JSON_BYTES)
    entry = oci_image.choose(oci_image.parse_index(raw, where), where)
    names = _names(entry) + _docker_tags(files)
    for _ in range(MAX_DEPTH):
        data = _read_blob(files, entry)
        kind = oci_image.sniff_type(data, entry.media_type, where)
        entry = Descriptor(kind, entry.digest, entry.size_bytes, entry.platform)
        oci_image.check_runnable(entry, where)
        if kind in oci_image.MANIFEST_TYPES:
            return _picture(files, entry, data, names)
        entry = oci_image.choose(oci_image.parse_index(data, where), where)
    raise wrong(files.path, f"its indexes are nested more than {MAX_DEPTH} deep")


def _picture(files: Files, entry: Descriptor, data: bytes, names: tuple[str, ...]) -> ImageLayout:
    where = str(files.path)
    manifest = oci_image.parse_manifest(data, entry.media_type, where)
    config = oci_image.parse_config(_read_blob(files, manifest.config), where)
    oci_image.check_layers(manifest, config, where)
    for layer in manifest.layers:
        _check_size(files, layer)
    stored = (*manifest.layers, manifest.config, entry)
    blobs = {each.digest: Blob(each, _file_of(each)) for each in stored}
    return ImageLayout(entry, manifest, config, tuple(blobs.values()), names)


def _read_docker(files: Files) -> ImageLayout:
    where = str(files.path)
    images = _json(files, "manifest.json")
    if not isinstance(images, list) or len(images) != 1 or not isinstance(images[0], dict):
        raise wrong(files.path, "its manifest.json does not name exactly one image")
    image = images[0]
    config_file, layer_files = image.get("Config"), image.get("Layers")
    if not isinstance(config_file, str) or not isinstance(layer_files, list):
        raise wrong(files.path, "its manifest.json names no config or no layers")
    config_data = read_all(files, config_file, oci_image.MAX_JSON_BYTES)
    config = oci_image.parse_config(config_data, where)
    if len(layer_files) > oci_image.MAX_LAYERS:
        most = f"the kernel's overlay takes {oci_image.MAX_LAYERS}"
        raise wrong(files.path, f"has {len(layer_files)} layers; {most}")
    at = Descriptor(oci_image.DOCKER_CONFIG, oci_image.digest_of(config_data), len(config_data))
    blobs = _docker_layers(files, layer_files)
    layers = tuple(blob.descriptor for blob in blobs)
    manifest = Manifest(oci_image.DOCKER_MANIFEST, at, layers)
    oci_image.check_layers(manifest, config, where)
    data = _write_manifest(manifest)
    target = Descriptor(oci_image.DOCKER_MANIFEST, oci_image.digest_of(data), len(data))
    blobs += [Blob(at, data=config_data), Blob(target, data=data)]
    unique = {blob.descriptor.digest: blob for blob in blobs}
    return ImageLayout(target, manifest, config, tuple(unique.values()), _docker_tags(files))


def _docker_layers(files: Files, names: list[object]) -> list[Blob]:
    """Return the layers; a file is read once, however often it is named, all of them bounded."""
    found: dict[str, Blob] = {}
    left = MAX_BYTES
    for name in names:
        size = files.size_bytes(name) if isinstance(name, str) else None
        if not isinstance(name, str) or size is None:
            text = f"its manifest.json names the layer {name!r}, which is not there"
            raise wrong(files.path, text)
        if name not in found:
            left -= size
            if left < 0:
                raise wrong(files.path, f"its layers take more than {MAX_BYTES} bytes")
            found[name] = _docker_layer(files, name)
    return [found[str(name)] for name in names]


def _docker_layer(files: Files, name: str) -> Blob:
    digest = hashlib.sha256()
    size = 0
    zipped = False
    for piece in files.pieces(name):
        zipped = zipped or (size == 0 and piece.startswith(b"\x1f\x8b"))
        digest.update(piece)
        size += len(piece)
    kind = oci_image.DOCKER_LAYER + (".gzip" if zipped else "")
    return Blob(Descriptor(kind, "sha256:" + digest.hexdigest(), size), file=name)


def _write_manifest(manifest: Manifest) -> bytes:
    def shown(each: Descriptor) -> dict[str, Any]:
        return {"mediaType": each.media_type, "size": each.size_bytes, "digest": each.digest}

    document = {
        "schemaVersion": 2,
        "mediaType": manifest.media_type,
        "config": shown(manifest.config),
        "layers": [shown(layer) for layer in manifest.layers],
    }
    return json.dumps(document, separators=(",", ":")).encode()


def _names(entry: Descriptor) -> tuple[str, ...]:
    found = [entry.annotations.get(key, "") for key in (IMAGE_NAME, REF_NAME)]
    return tuple(name for name in found if name)


def _docker_tags(files: Files) -> tuple[str, ...]:
    """Return the tags in manifest.json, which newer docker writes beside an OCI layout."""
    if files.size_bytes("manifest.json") is None:
        return ()
    images = _json(files, "manifest.json")
    if not isinstance(images, list) or len(images) != 1 or not isinstance(images[0], dict):
        return ()
    tags = images[0].get("RepoTags") or []
    if not isinstance(tags, list):
        return ()
    return tuple(tag for tag in tags[:MAX_TAGS] if isinstance(tag, str) and tag)


def _file_of(blob: Descriptor) -> str:
    return f"blobs/sha256/{blob.digest.removeprefix('sha256:')}"


def _check_size(files: Files, blob: Descriptor) -> None:
    name, said = _file_of(blob), blob.size_bytes
    size = files.size_bytes(name)
    if size is None:
        raise wrong(files.path, f"has no file {name}, which its manifest names")
    if size != said:
        raise wrong(files.path, f"its {name} has {size} bytes, its manifest says {said}")


def _read_blob(files: Files, blob: Descriptor) -> bytes:
    _check_size(files, blob)
    data = read_all(files, _file_of(blob), oci_image.MAX_JSON_BYTES)
    if oci_image.digest_of(data) != blob.digest:
        raise wrong(files.path, f"its {_file_of(blob)} is damaged: its bytes have another digest")
    return data


def _json(files: Files, name: str) -> object:
    try:
        return json.loads(read_all(files, name, oci_image.MAX_JSON_BYTES))
    except InvalidSpec:
        raise
    except (ValueError, RecursionError) as error:
        raise wrong(files.path, f"its {name} is not JSON ({error})") from error
