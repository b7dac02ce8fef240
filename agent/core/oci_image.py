"""Manifests, indexes and configs of container images: checked and turned into plain values.

Pure: bytes in, values out. It picks linux/amd64 from an index, refuses everything the node cannot
run by its name, and computes the chain id under which containerd keeps the unpacked layers. It
never fetches or stores anything; `agent/containerd` reads the bytes and acts on the values.
Shapes follow the OCI image specification 1.1 and Docker's "Image Manifest V 2, Schema 2".
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agent.core import bounded_json
from agent.core import platform as platforms
from agent.errors import InvalidSpec, Problem

# A manifest or config larger than this is not one (registries bound manifests at 4 MiB).
MAX_JSON_BYTES = 4 << 20
# overlayfs takes at most 500 lower layers.
MAX_LAYERS = 500
MAX_ENTRIES = 1000
MAX_VOLUMES = 1000  # as many directories as a start makes at most
MAX_WHY = 1000
MAX_PATH = 4096  # the kernel's PATH_MAX

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1"

INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFEST_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIG_TYPES = frozenset({OCI_CONFIG, DOCKER_CONFIG})
LAYER_TYPES = frozenset(
    {
        OCI_LAYER,
        OCI_LAYER + "+gzip",
        OCI_LAYER + "+zstd",
        # Not to be pushed elsewhere, which is nothing to whoever runs them.
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        DOCKER_LAYER,
        DOCKER_LAYER + ".gzip",
        DOCKER_LAYER + ".zstd",
    }
)

# Types that say nothing: what a blob is shows in its bytes.
VAGUE_TYPES = frozenset({"", "application/json", "application/octet-stream", "text/plain"})
_LOOKED_INTO = INDEX_TYPES | MANIFEST_TYPES | VAGUE_TYPES
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ": "xz", b"BZh": "bzip2"}

PLATFORM = platforms.HERE
# What `cosign save` keeps beside an image, by the annotation "kind": what was signed about it.
SIGNED = ("dev.cosignproject.cosign/sigs", "dev.cosignproject.cosign/atts")

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
# NUL bytes, and halves of surrogate pairs.
_UNFIT = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A typed reference to a blob. `platform` is "os/arch[/variant]", or "" where none is given."""

    media_type: str
    digest: str
    size_bytes: int
    platform: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    artifact_type: str = ""

    @property
    def is_attestation(self) -> bool:
        """Whether it is a build attestation beside the image (BuildKit), never runnable."""
        return (
            self.platform == "unknown/unknown"
            or self.annotations.get("vnd.docker.reference.type") == "attestation-manifest"
        )

    @property
    def may_run(self) -> bool:
        """Whether it may be an image: no attestation, signature, bill of materials or other blob.

        What says no type is looked into later; an artifact for a platform is an image of that kind.
        """
        return not (
            self.is_attestation
            or not (self.media_type in _LOOKED_INTO or self.media_type.startswith(SCHEMA_1))
            or (self.artifact_type and not self.platform)
            or self.annotations.get("kind", "") in SIGNED
        )


@dataclass(frozen=True, slots=True)
class Manifest:
    """One runnable image: its config and its layers, lowest first."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]

    @property
    def compressed_bytes(self) -> int:
        """Bytes a pull of config and layers transfers when nothing is there yet."""
        return self.config.size_bytes + sum(layer.size_bytes for layer in self.layers)


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """What the image says about running it; `diff_ids` name its layers uncompressed."""

    diff_ids: tuple[str, ...]
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    workdir: str = "/"
    user: str = ""
    stop_signal: str = "SIGTERM"
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def chain_id(self) -> str:
        """The key of the committed snapshot that holds all layers."""
        return chain_id(self.diff_ids)


def chain_id(diff_ids: Sequence[str]) -> str:
    """Return the chain id of layers given lowest first (OCI image specification, "ChainID")."""
    if not diff_ids:
        raise InvalidSpec([Problem("image", "has no layers: nothing to run")])
    chain = diff_ids[0]
    for diff_id in diff_ids[1:]:
        chain = digest_of(f"{chain} {diff_id}".encode())
    return chain


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """Return the chain id of every prefix of the layers, lowest first."""
    chains: list[str] = []
    for diff_id in diff_ids:
        chains.append(digest_of(f"{chains[-1]} {diff_id}".encode()) if chains else diff_id)
    return chains


def digest_of(data: bytes) -> str:
    """Return the sha256 digest of data as it is written in descriptors."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def valid_digest(text: str) -> bool:
    """Tell whether the text is a sha256 digest, the only algorithm accepted here."""
    return _DIGEST.fullmatch(text) is not None


def artifact_types(data: bytes) -> set[str]:
    """Return the artifact types of an index's entries, none for what is no index."""
    try:
        index = bounded_json.loads(data)
    except (ValueError, RecursionError):
        return set()
    entries = index.get("manifests") if isinstance(index, dict) else None
    listed = entries if isinstance(entries, list) else []
    found = [one.get("artifactType") for one in listed if isinstance(one, dict)]
    return {kind for kind in found if isinstance(kind, str)}


def parse_index(data: bytes, where: str) -> tuple[Descriptor, ...]:
    """Return the entries of an OCI index or a Docker manifest list.

    `where` names the image or file in errors. Raises InvalidSpec.
    """
    root = _root(data, where)
    entries = root.get("manifests")
    if not isinstance(entries, list) or len(entries) > MAX_ENTRIES:
        raise refusal(where, "its index has no list of manifests (or one beyond 1000)")
    return tuple(_descriptor(entry, where, "manifests") for entry in entries)


def choose(
    entries: Sequence[Descriptor], where: str, level: int = platforms.BASELINE
) -> Descriptor:
    """Return the entry of an index to follow on a CPU of this level of x86-64.

    Attestations, signatures and other artifacts are ignored. The highest level that runs wins, of
    equals the first; else a single one without any platform is followed (its config decides
    later). Raises InvalidSpec naming what is offered.
    """
    images = [entry for entry in entries if entry.may_run]
    best = max(images, key=lambda entry: platforms.rank(entry.platform, level), default=None)
    if best is not None and platforms.rank(best.platform, level):
        return best
    unsaid = [entry for entry in images if not entry.platform]
    if len({entry.digest for entry in unsaid}) == 1:
        return unsaid[0]
    if unsaid:
        names = ", ".join(sorted({_name_of(entry) for entry in unsaid}))
        raise refusal(where, f"holds several images ({names}) and none says {PLATFORM}")
    offered = ", ".join(sorted({entry.platform for entry in images})) or _artifacts(entries)
    if any(entry.platform.startswith(f"{PLATFORM}/") for entry in images):
        here = f"this CPU runs {PLATFORM}/v{level} at most"
        raise refusal(where, f"has no image for this CPU (it offers {offered}; {here})")
    raise refusal(where, f"has no {PLATFORM} image (it offers {offered}); build it for {PLATFORM}")


def check_runnable(entry: Descriptor, where: str) -> None:
    """Refuse a descriptor that is neither an index nor a manifest of the two known formats."""
    if entry.media_type not in INDEX_TYPES | MANIFEST_TYPES:
        shown = entry.media_type or "no media type"
        hint = ""
        if shown.startswith(SCHEMA_1):
            hint = " (Docker schema 1 is obsolete: push the image again with a current tool)"
        raise refusal(where, f"is of type {shown}, which is not a container image{hint}")


def sniff_type(data: bytes, claimed: str, where: str) -> str:
    """Return the media type of manifest bytes: the one claimed, else the one their shape shows."""
    if claimed in INDEX_TYPES | MANIFEST_TYPES:
        return claimed
    root = _root(data, where)
    written = root.get("mediaType")
    if isinstance(written, str) and written:
        return written
    if "manifests" in root:
        return OCI_INDEX
    if "config" in root and "layers" in root:
        return OCI_MANIFEST
    return claimed


def parse_manifest(data: bytes, media_type: str, where: str, *, checked: bool = True) -> Manifest:
    """Return a manifest whose config and layers are of known types. Raises InvalidSpec by name.

    Not `checked` means that the types may still be wrong: who can see the blobs mends them.
    """
    root = _root(data, where)
    config = _descriptor(root.get("config"), where, "config")
    layers = root.get("layers")
    if not isinstance(layers, list) or not layers:
        raise refusal(where, "its manifest has no layers: nothing to run")
    if len(layers) > MAX_LAYERS:
        raise refusal(where, f"has {len(layers)} layers; the kernel's overlay takes {MAX_LAYERS}")
    parsed = tuple(_descriptor(layer, where, f"layers[{i}]") for i, layer in enumerate(layers))
    found = Manifest(media_type, config, parsed)
    return check_manifest(found, where) if checked else found


def check_manifest(manifest: Manifest, where: str) -> Manifest:
    """Return a manifest if its config and layers are of known types. Raises InvalidSpec by name."""
    kind = manifest.config.media_type
    if kind not in CONFIG_TYPES:
        raise refusal(where, f"its config is of type {kind}: not a container image")
    for layer in manifest.layers:
        if layer.media_type not in LAYER_TYPES:
            raise refusal(
                where, f"has a layer of type {layer.media_type}, which cannot be unpacked"
            )
    return manifest


def compression(head: bytes) -> str:
    """Return how a blob is compressed, by its first bytes: gzip, zstd, xz, bzip2 or ""."""
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), "")


def is_plain_layer(media_type: str) -> bool:
    """Tell whether a layer's type says that it is not compressed, so that nobody would look."""
    return media_type in LAYER_TYPES and media_type.endswith(".tar")


def config_platform(data: bytes, where: str) -> str:
    """Return the platform that an image's config is for; one that says nothing is for this one."""
    return _platform_of(_lowered(_root(data, where)))


def _platform_of(config: Mapping[str, Any]) -> str:
    said = (str(config.get(key) or "") for key in ("os", "architecture", "variant"))
    return platforms.named(*said) or PLATFORM


def parse_config(data: bytes, where: str, level: int = platforms.BASELINE) -> ImageConfig:
    """Return what an image's config says, refusing what does not run on a CPU of this level.

    Names are matched without regard to case, a text is taken for a list of one where Docker does
    so, and null is the default everywhere, as Docker reads configs.
    """
    root = _lowered(_root(data, where))
    asked = _platform_of(root)
    if not platforms.rank(asked, level):
        raise refusal(where, platforms.why_not(asked, level))
    rootfs = root.get("rootfs")
    diff_ids = _lowered(rootfs).get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(diff_ids, list) or not diff_ids:
        raise refusal(where, "its config lists no layers (rootfs.diff_ids)")
    for diff_id in diff_ids:
        if not isinstance(diff_id, str) or not valid_digest(diff_id):
            raise refusal(
                where, f"its config names a layer by {diff_id!r}, which is no sha256 digest"
            )
    section = root.get("config") or {}
    if not isinstance(section, dict):
        raise refusal(where, "its config section is not an object")
    run = _lowered(section)
    entrypoint = _words(run, "Entrypoint", where)
    return ImageConfig(
        diff_ids=tuple(diff_ids),
        # ENTRYPOINT [""] is how Dockerfiles take back that of their base.
        entrypoint=entrypoint if entrypoint != ("",) else (),
        cmd=_words(run, "Cmd", where),
        env=_strings(run, "Env", where),
        workdir=_working_directory(run, where),
        user=_string(run, "User", where),
        stop_signal=_string(run, "StopSignal", where) or "SIGTERM",
        exposed_ports=tuple(sorted(_mapping(run, "ExposedPorts", where))),
        volumes=_volumes(run, where),
        labels={
            key: "" if value is None else str(value)
            for key, value in _mapping(run, "Labels", where).items()
        },
    )


def check_layers(manifest: Manifest, config: ImageConfig, where: str) -> None:
    """Refuse an image whose manifest and config disagree about the number of layers."""
    have, said = len(manifest.layers), len(config.diff_ids)
    if have != said:
        raise refusal(where, f"its manifest has {have} layers but its config lists {said}")


def _lowered(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return a section with its names in lower case: Docker's decoder takes "cmd" for Cmd."""
    return {key.lower(): value for key, value in section.items()}


def _workdir(text: str) -> str:
    """Return it absolute: one that is not is below the root, as podman has it."""
    return posixpath.normpath(f"/{text}").replace("//", "/")


def _artifacts(entries: Sequence[Descriptor]) -> str:
    """Name what an index has that is no image."""
    kinds = {each.artifact_type or each.media_type for each in entries if not each.is_attestation}
    return "nothing but " + ", ".join(sorted(kinds)) if kinds else "nothing"


def _name_of(entry: Descriptor) -> str:
    return entry.annotations.get("org.opencontainers.image.ref.name") or entry.digest[:19]


def _root(data: bytes, where: str) -> dict[str, Any]:
    if len(data) > MAX_JSON_BYTES:
        raise refusal(where, f"its manifest or config is larger than {MAX_JSON_BYTES} bytes")
    try:
        root = bounded_json.loads(data)
    except (ValueError, RecursionError) as error:
        raise refusal(where, f"its manifest or config is not JSON ({error})") from error
    if not isinstance(root, dict):
        raise refusal(where, "its manifest or config is not a JSON object")
    return root


def _descriptor(value: object, where: str, at: str) -> Descriptor:
    if not isinstance(value, dict):
        raise refusal(where, f"its {at} is not a descriptor")
    digest, size, kind = value.get("digest"), value.get("size"), value.get("mediaType")
    if not isinstance(digest, str) or not valid_digest(digest):
        raise refusal(
            where, f"its {at} has the digest {digest!r}; only sha256 digests are accepted"
        )
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise refusal(where, f"its {at} has the size {size!r}")
    annotations = value.get("annotations") or {}
    if not isinstance(annotations, dict):
        raise refusal(where, f"its {at} has annotations that are not an object")
    return Descriptor(
        media_type=kind if isinstance(kind, str) else "",
        digest=digest,
        size_bytes=size,
        platform=_platform(value.get("platform")),
        annotations={str(k): str(v) for k, v in annotations.items()},
        artifact_type=str(value.get("artifactType") or ""),
    )


def _platform(value: object) -> str:
    if not isinstance(value, dict):
        return ""
    return platforms.named(
        *(str(value.get(key) or "") for key in ("os", "architecture", "variant"))
    )


def _volumes(section: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Return where the image wants volumes."""
    found = _mapping(section, "Volumes", where)
    if len(found) > MAX_VOLUMES:
        raise refusal(where, f"its config has {len(found)} Volumes; {MAX_VOLUMES} are the most")
    for path in found:
        _check_text(path, "Volumes", where)
        _check_path(path, "Volumes", where)
    return tuple(sorted({_workdir(path) for path in found}))


def _words(section: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    """Return a command line; a text is a single word of it, as in Docker's strslice."""
    value = section.get(key.lower())
    return _strings({key.lower(): [value] if isinstance(value, str) else value}, key, where)


def _strings(section: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = section.get(key.lower()) or []
    if isinstance(value, list):
        value = ["" if item is None else item for item in value]
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise refusal(where, f"its config's {key} is not a list of strings")
    for item in value:
        _check_text(item, key, where)
    return tuple(value)


def _string(section: Mapping[str, Any], key: str, where: str) -> str:
    value = section.get(key.lower()) or ""
    if not isinstance(value, str):
        raise refusal(where, f"its config's {key} is not a string")
    _check_text(value, key, where)
    return value


def _check_text(text: str, key: str, where: str) -> None:
    """Refuse what no path, variable or argument can hold: NUL bytes, halves of surrogate pairs."""
    if _UNFIT.search(text):
        raise refusal(where, f"its config's {key} holds {text[:80]!r}, which no program can get")


def _working_directory(section: Mapping[str, Any], where: str) -> str:
    found = _string(section, "WorkingDir", where)
    _check_path(found, "WorkingDir", where)
    return _workdir(found)


def _check_path(text: str, key: str, where: str) -> None:
    if len(text) >= MAX_PATH:
        raise refusal(where, f"its config's {key} is longer than any path may be ({MAX_PATH})")


def _mapping(section: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    value = section.get(key.lower()) or {}
    if not isinstance(value, dict):
        raise refusal(where, f"its config's {key} is not an object")
    return value


def refusal(where: str, why: str) -> InvalidSpec:
    """Return the refusal of an image: its name or file, and what is wrong with it."""
    shown = why if len(why) <= MAX_WHY else f"{why[:MAX_WHY]}…"
    return InvalidSpec([Problem("image", f"{where}: {shown}")])
