"""Makes out the images in an OCI layout or in what `docker save` writes.

It reads manifests and configs, checks that every blob is there in its size, and says which file
holds which blob; `importer` stores them, and `select` says which of several is meant. What a
manifest has to say anew (layers named by files, types that are missing or wrong) is written here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from agent.containerd import cpu
from agent.containerd.archive import MAX_BYTES, Files, read_all, read_head
from agent.containerd.decompress import wrong
from agent.core import bounded_json, oci_image, platform
from agent.core.oci_image import Descriptor, ImageConfig, Manifest
from agent.errors import InvalidSpec

MAX_DEPTH = 4
# An image has more names than this only in an archive that means harm.
MAX_NAMES = 100
MAX_IMAGES = 100
REF_NAME = "org.opencontainers.image.ref.name"
# containerd's and docker's own annotation, with the whole name; ref.name often is a tag only.
IMAGE_NAME = "io.containerd.image.name"

Tags = dict[str, tuple[str, ...]]
"""The tags that manifest.json gives, by the file of an image's config."""


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


@dataclass(frozen=True, slots=True)
class Layouts:
    """What an archive has: images that run here, and by name why others do not."""

    images: tuple[ImageLayout, ...]
    refused: Mapping[str, InvalidSpec]


@dataclass(frozen=True, slots=True)
class Offer:
    """Entries of an archive under one name, "" for none; images of several platforms are one."""

    name: str
    entries: tuple[Descriptor, ...]


def read_layouts(files: Files) -> Layouts:
    """Return the images in the files that run here, each once with all of its names.

    Raises InvalidSpec naming the path and what is wrong when there is none and none is named.
    """
    docker = files.size_bytes("manifest.json") is not None
    if files.size_bytes("oci-layout") is not None:
        try:
            return _read_oci(files)
        except InvalidSpec:
            # The other half of docker's archives may be whole, and is all that older ones have.
            with contextlib.suppress(InvalidSpec):
                if docker:
                    return _read_docker(files)
            raise
    if docker:
        return _read_docker(files)
    raise wrong(files.path, "has neither oci-layout nor manifest.json: not a container image")


# -- OCI layouts


def _read_oci(files: Files) -> Layouts:
    version = _json(files, "oci-layout")
    if not isinstance(version, dict) or version.get("imageLayoutVersion") != "1.0.0":
        raise wrong(files.path, "its oci-layout is not of version 1.0.0")
    raw = read_all(files, "index.json", oci_image.MAX_JSON_BYTES)
    entries = oci_image.parse_index(raw, str(files.path))
    tags = {} if files.size_bytes("manifest.json") is None else _docker_tags(files)
    found: list[ImageLayout] = []
    refused: dict[str, InvalidSpec] = {}
    offers = _offers(entries)
    if len(offers) > MAX_IMAGES:
        raise wrong(files.path, f"holds more than {MAX_IMAGES} images")
    for offer in offers:
        try:
            found.append(_resolved(files, offer, tags))
        except InvalidSpec as failure:
            refused[offer.name] = failure
    unnamed = refused.pop("", None)
    if not found and not refused:
        raise unnamed or _nothing(files, entries)
    return Layouts(_merged(found), refused)


def _nothing(files: Files, entries: Sequence[Descriptor]) -> InvalidSpec:
    """Say what there is instead: attestations, signatures and the like."""
    try:
        oci_image.choose(entries, str(files.path), cpu.level())
    except InvalidSpec as refusal:
        return refusal
    return wrong(files.path, "holds no image")


def _offers(entries: Sequence[Descriptor]) -> list[Offer]:
    """Return the entries that may be images by their name; of those without one all together."""
    groups: dict[str, list[Descriptor]] = {}
    for entry in entries:
        if entry.may_run:
            groups.setdefault(next(iter(_names(entry)), ""), []).append(entry)
    return [Offer(name, tuple(group)) for name, group in groups.items()]


def _resolved(files: Files, offer: Offer, tags: Tags) -> ImageLayout:
    """Follow indexes to the image that runs here."""
    where = str(files.path)
    names = tuple(name for entry in offer.entries for name in _names(entry))
    entries = _with_platforms(files, offer.entries)
    _refuse_equals(entries, where)
    for _ in range(MAX_DEPTH):
        entry = _pick(files, entries)
        data = _read_blob(files, entry)
        kind = oci_image.sniff_type(data, entry.media_type, where)
        entry = replace(entry, media_type=kind)
        oci_image.check_runnable(entry, where)
        if kind in oci_image.MANIFEST_TYPES:
            return _picture(files, entry, data, names, tags)
        entries = _with_platforms(files, oci_image.parse_index(data, where))
    raise wrong(files.path, f"its indexes are nested more than {MAX_DEPTH} deep")


def _pick(files: Files, entries: Sequence[Descriptor]) -> Descriptor:
    """Choose among what the archive has whole; an index names more than a partial one holds."""
    here = [one for one in entries if files.size_bytes(_file_of(one)) is not None]
    try:
        return oci_image.choose(here, str(files.path), cpu.level())
    except InvalidSpec:
        chosen = oci_image.choose(entries, str(files.path), cpu.level())
    shown = chosen.platform or "an image"
    raise wrong(
        files.path,
        f"names {shown}, but has no file {_file_of(chosen)}: it was saved for another platform",
    )


def _with_platforms(files: Files, entries: Sequence[Descriptor]) -> Sequence[Descriptor]:
    """Return entries with the platforms of their configs, unless there are too many to look at."""
    unsaid = [entry for entry in entries if not entry.platform]
    if len(unsaid) > MAX_IMAGES:
        return entries
    return [_with_platform(files, entry) for entry in entries]


def _with_platform(files: Files, entry: Descriptor) -> Descriptor:
    """Return an entry of no platform with its config's, where that can be read."""
    if entry.platform or not entry.may_run or files.size_bytes(_file_of(entry)) is None:
        return entry
    where = str(files.path)
    try:
        data = _read_blob(files, entry)
        if oci_image.sniff_type(data, entry.media_type, where) in oci_image.INDEX_TYPES:
            return entry
        config = _read_blob(files, _manifest(data, entry.media_type, where).config)
        return replace(entry, platform=oci_image.config_platform(config, where))
    except InvalidSpec:
        return entry  # what is wrong with it is told if it is chosen


def _refuse_equals(entries: Sequence[Descriptor], where: str) -> None:
    """Refuse several images under one name, or under none, that nothing tells apart."""
    ranks = {one.digest: platform.rank(one.platform, cpu.level()) for one in entries}
    best = max(ranks.values(), default=0)
    equal = [digest for digest, rank in ranks.items() if rank == best and rank]
    if len(equal) > 1:
        shown = ", ".join(digest[:19] for digest in equal)
        text = f"holds several images of one name or none ({shown}): nothing tells them apart"
        raise oci_image.refusal(where, f"{text}; export the one you mean with a name")


def _picture(
    files: Files, entry: Descriptor, data: bytes, names: tuple[str, ...], tags: Tags
) -> ImageLayout:
    where = str(files.path)
    written = _manifest(data, entry.media_type, where)
    for layer in written.layers:
        _check_size(files, layer)
    typed = replace(
        written,
        config=replace(written.config, media_type=_config_type(written.config.media_type)),
        layers=tuple(_typed(files, layer) for layer in written.layers),
    )
    manifest = oci_image.check_manifest(typed, where)
    config_data = _read_blob(files, manifest.config)
    config = oci_image.parse_config(config_data, where, cpu.level())
    oci_image.check_layers(manifest, config, where)
    stored = [Blob(each, _file_of(each)) for each in (*manifest.layers, manifest.config)]
    target = Blob(entry, _file_of(entry)) if manifest == written else _manifest_blob(manifest)
    names += tags.get(_file_of(manifest.config), ())
    return _layout(target, manifest, config, stored, names)


def _manifest(data: bytes, media_type: str, where: str) -> Manifest:
    return oci_image.parse_manifest(data, media_type, where, checked=False)


def _config_type(said: str) -> str:
    """Return a config's type; one that says nothing is what it must be to have got here."""
    return oci_image.OCI_CONFIG if said in oci_image.VAGUE_TYPES else said


def _typed(files: Files, layer: Descriptor) -> Descriptor:
    """Return a layer with the type that its bytes show, where its own says nothing or less."""
    said = layer.media_type
    packed = oci_image.compression(read_head(files, _file_of(layer)))
    if said in oci_image.VAGUE_TYPES or (packed and oci_image.is_plain_layer(said)):
        return replace(layer, media_type=oci_image.OCI_LAYER + (f"+{packed}" if packed else ""))
    return layer


# -- docker save


def _read_docker(files: Files) -> Layouts:
    images = _docker_images(files)
    if not images:
        raise wrong(files.path, "its manifest.json names no image")
    left = _Left()
    found: list[ImageLayout] = []
    refused: dict[str, InvalidSpec] = {}
    for image in images:
        try:
            found.append(_docker_picture(files, image, left))
        except InvalidSpec as failure:
            tags = _repo_tags(image)
            if len(images) == 1 or not tags:
                raise
            refused |= dict.fromkeys(tags, failure)
    return Layouts(_merged(found), refused)


class _Left:
    """How many bytes of layers may still be read, and the layers that were: each file once."""

    def __init__(self) -> None:
        self.bytes = MAX_BYTES
        self.found: dict[str, Blob] = {}


def _docker_images(files: Files) -> list[dict[str, Any]]:
    images = _json(files, "manifest.json")
    if not isinstance(images, list) or len(images) > MAX_IMAGES:
        raise wrong(files.path, f"its manifest.json is no list of up to {MAX_IMAGES} images")
    if not all(isinstance(image, dict) for image in images):
        raise wrong(files.path, "its manifest.json holds something that is no image")
    return images


def _docker_tags(files: Files) -> Tags:
    """Return the tags in manifest.json, which newer docker writes beside an OCI layout."""
    found: Tags = {}
    for image in _docker_images(files):
        config = image.get("Config")
        if isinstance(config, str):
            found[config] = found.get(config, ()) + _repo_tags(image)
    return found


def _repo_tags(image: dict[str, Any]) -> tuple[str, ...]:
    tags = image.get("RepoTags") or []
    if not isinstance(tags, list):
        return ()
    return tuple(tag for tag in tags[:MAX_NAMES] if isinstance(tag, str) and tag)


def _docker_picture(files: Files, image: dict[str, Any], left: _Left) -> ImageLayout:
    where = str(files.path)
    config_file, layer_files = image.get("Config"), image.get("Layers")
    if not isinstance(config_file, str) or not isinstance(layer_files, list):
        raise wrong(files.path, "its manifest.json names no config or no layers")
    config_data = read_all(files, config_file, oci_image.MAX_JSON_BYTES)
    config = oci_image.parse_config(config_data, where, cpu.level())
    if len(layer_files) > oci_image.MAX_LAYERS:
        most = f"the kernel's overlay takes {oci_image.MAX_LAYERS}"
        raise wrong(files.path, f"has {len(layer_files)} layers; {most}")
    at = Descriptor(oci_image.DOCKER_CONFIG, oci_image.digest_of(config_data), len(config_data))
    blobs = [_docker_layer(files, name, left) for name in layer_files]
    layers = tuple(blob.descriptor for blob in blobs)
    manifest = oci_image.check_manifest(Manifest(oci_image.DOCKER_MANIFEST, at, layers), where)
    oci_image.check_layers(manifest, config, where)
    stored = [*blobs, Blob(at, data=config_data)]
    return _layout(_manifest_blob(manifest), manifest, config, stored, _repo_tags(image))


def _docker_layer(files: Files, name: object, left: _Left) -> Blob:
    """Return a layer by its file, all of them bounded."""
    size = files.size_bytes(name) if isinstance(name, str) else None
    if not isinstance(name, str) or size is None:
        text = f"its manifest.json names the layer {name!r}, which is not there"
        raise wrong(files.path, text)
    if name not in left.found:
        left.bytes -= size
        if left.bytes < 0:
            raise wrong(files.path, f"its layers take more than {MAX_BYTES} bytes")
        digest = hashlib.sha256()
        for piece in files.pieces(name):
            digest.update(piece)
        packed = oci_image.compression(read_head(files, name))
        kind = oci_image.DOCKER_LAYER + (f".{packed}" if packed else "")
        descriptor = Descriptor(kind, "sha256:" + digest.hexdigest(), size)
        left.found[name] = Blob(descriptor, file=name)
    return left.found[name]


# -- both


def _layout(
    target: Blob,
    manifest: Manifest,
    config: ImageConfig,
    stored: list[Blob],
    names: tuple[str, ...],
) -> ImageLayout:
    unique = {blob.descriptor.digest: blob for blob in (*stored, target)}
    named = tuple(dict.fromkeys(names))[:MAX_NAMES]
    return ImageLayout(target.descriptor, manifest, config, tuple(unique.values()), named)


def _merged(found: list[ImageLayout]) -> tuple[ImageLayout, ...]:
    """Return every image once, with the names of all places where it is."""
    merged: dict[str, ImageLayout] = {}
    for one in found:
        before = merged.get(one.target.digest)
        names = (before.names if before is not None else ()) + one.names
        merged[one.target.digest] = replace(one, names=tuple(dict.fromkeys(names))[:MAX_NAMES])
    return tuple(merged.values())


def _manifest_blob(manifest: Manifest) -> Blob:
    """Write a manifest: of Docker's old format, or with the types that its blobs really have."""

    def shown(each: Descriptor) -> dict[str, Any]:
        return {"mediaType": each.media_type, "size": each.size_bytes, "digest": each.digest}

    document = {
        "schemaVersion": 2,
        "mediaType": manifest.media_type,
        "config": shown(manifest.config),
        "layers": [shown(layer) for layer in manifest.layers],
    }
    data = json.dumps(document, separators=(",", ":")).encode()
    return Blob(Descriptor(manifest.media_type, oci_image.digest_of(data), len(data)), data=data)


def _names(entry: Descriptor) -> tuple[str, ...]:
    found = [entry.annotations.get(key, "") for key in (IMAGE_NAME, REF_NAME)]
    return tuple(name for name in found if name)


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
        return bounded_json.loads(read_all(files, name, oci_image.MAX_JSON_BYTES))
    except InvalidSpec:
        raise
    except (ValueError, RecursionError) as error:
        raise wrong(files.path, f"its {name} is not JSON ({error})") from error
