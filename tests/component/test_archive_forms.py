"""Archives as other tools write them, one row per form: which images they hold, or why none.

The forms are those of Docker 19 to 29, containerd, buildah, podman, skopeo, umoci, kaniko, BuildKit
and cosign, made by hand; tests/integration/test_odd_images.py has some of the tools themselves.
"""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from agent.containerd import cpu
from agent.containerd.layout import IMAGE_NAME
from agent.core import oci_image
from tests import oci
from tests.component.archive_house import (
    AMD64,
    APP,
    ARM,
    ARM64,
    DOCKER,
    IMAGE,
    LAYERS,
    OTHER,
    Files,
    artifact,
    blob_of,
    changed,
    dumps,
    entry,
    layout,
    load,
    old_docker,
    refusal,
)


@pytest.fixture(autouse=True)
def level(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every host runs the rows as a CPU of level 3."""
    monkeypatch.setattr(cpu, "level", lambda: 3)


def variant(name: str) -> oci.OciImage:
    """An image for a level of x86-64, which its config says."""
    made = oci.image([oci.layer({name: b"x"})])
    config = json.loads(made.blobs["sha256:" + blob_of(made)[13:]]) | {"variant": name}
    raw = dumps(config)
    found = changed(made, lambda m: m["config"].update(digest=oci.digest(raw), size=len(raw)))
    return oci.OciImage(found.blobs | {oci.digest(raw): raw}, found.manifest)


def docker_25(made: oci.OciImage = DOCKER, tag: str = "app:1") -> Files:
    """`docker save` from 25 on: an OCI layout and manifest.json over the same blobs."""
    full = f"docker.io/library/{tag}"
    notes = {IMAGE_NAME: full, oci.REF_NAME: tag.partition(":")[2]}
    manifest = json.loads(made.blobs[made.digest])
    one = {
        "Config": blob_of(made),
        "RepoTags": [tag],
        "Layers": [f"blobs/sha256/{layer['digest'][7:]}" for layer in manifest["layers"]],
        "LayerSources": {layer["digest"]: layer for layer in manifest["layers"]},
    }
    files = layout(entry(made, annotations=notes), images=(made,))
    return files | {"manifest.json": dumps([one]), "repositories": dumps({"app": {"1": "x"}})}


def docker_29() -> Files:
    """`docker save` over containerd's store: the tag is an index, of which one platform is here."""
    index = oci.index([(ARM, ARM64), (DOCKER, AMD64)], attestation=True)
    files = docker_25()
    notes = {IMAGE_NAME: "docker.io/library/app:1", oci.REF_NAME: "1"}
    files |= layout(entry(index, annotations=notes), images=(index,))
    return {
        name: data
        for name, data in files.items()
        if name.removeprefix("blobs/sha256/") not in {key[7:] for key in ARM.blobs}
    }


def kaniko() -> Files:
    """`--tarPath`: gzipped layers named by digest, a config without suffix, no history."""
    names = [f"{oci.digest(each.blob)[7:]}.tar.gz" for each in LAYERS]
    config = f"sha256:{blob_of(DOCKER)[13:]}"
    files = {name: each.blob for name, each in zip(names, LAYERS, strict=True)}
    files[config] = DOCKER.blobs[config]
    one = {"Config": config, "RepoTags": ["registry.example/team/app:1"], "Layers": names}
    return files | {"manifest.json": dumps([one])}


def referrers() -> Files:
    """`oras copy -r`: a bill of materials that refers to the image."""
    made = changed(
        IMAGE, lambda m: m.update(artifactType="application/spdx+json", subject=IMAGE.manifest)
    )
    return layout(
        entry(made, artifactType="application/spdx+json"),
        entry(IMAGE, "app:1"),
        images=(made, IMAGE),
    )


def types(config: str | None, layers: str | None) -> oci.OciImage:
    """The image with other media types; None: left out."""

    def change(manifest: dict[str, Any]) -> None:
        layered = ((layer, layers) for layer in manifest["layers"])
        for at, kind in ((manifest["config"], config), *layered):
            at.pop("mediaType") if kind is None else at.update(mediaType=kind)

    return changed(IMAGE, change)


UNTYPED = types(None, None)
PLAIN_TYPE = types(oci.OCI_CONFIG, oci_image.OCI_LAYER)
OCTETS = types("application/json", "application/octet-stream")
V1, V2, V3, V4 = (variant(name) for name in ("v1", "v2", "v3", "v4"))


def variants(*names: str) -> Files:
    all_of = {"": IMAGE, "v1": V1, "v2": V2, "v3": V3, "v4": V4}
    index = oci.index([(all_of[n], AMD64 | ({"variant": n} if n else {})) for n in names])
    return layout(entry(index, "app:1"), images=(index,))


TWICE = oci.index([(IMAGE, AMD64), (IMAGE, AMD64)])
NESTED = oci.index([(oci.index([(ARM, ARM64), (IMAGE, AMD64)]), {})])
WINDOWS = oci.index([(OTHER, {"os": "windows", "architecture": "amd64"}), (IMAGE, AMD64)])
ODD = oci.index(
    [
        (OTHER, {"os": "windows", "architecture": "amd64", "os.version": "10.0.1"}),
        (ARM, ARM64 | {"variant": "v8"}),
        (IMAGE, {"os": "Linux", "architecture": "x86_64", "os.features": ["sse4"]}),
    ],
    attestation=True,
)
UNSAID = oci.index([(ARM, {}), (IMAGE, {})])

# What is written, the names it is recorded under, and the image that these stand for (None: one
# that is written anew, with another manifest over the same layers).
FORMS: dict[str, tuple[Files, list[str], oci.OciImage | None]] = {
    "docker save up to 24": (old_docker(), [APP], None),
    "docker save of several tags": (
        old_docker(RepoTags=["app:1", "app:latest", "other.example/app:1"]),
        [APP, "docker.io/library/app:latest", "other.example/app:1"],
        None,
    ),
    "docker save from 25 on": (docker_25(), [APP], DOCKER),
    "docker save from 29 on, of one platform": (docker_29(), [APP], DOCKER),
    "docker save whose index names nothing": (
        docker_25() | {"index.json": dumps({"schemaVersion": 2, "manifests": []})}, [APP], None
    ),
    "kaniko and jib": (kaniko(), ["registry.example/team/app:1"], None),
    "ctr export": (layout(entry(IMAGE, "1", annotations={IMAGE_NAME: APP})), [APP], IMAGE),
    "buildah and podman": (layout(entry(IMAGE, "localhost/app:1")), ["localhost/app:1"], IMAGE),
    "buildkit, with attestations": (
        layout(entry(oci.index([(IMAGE, AMD64)], attestation=True), "app:1"), images=(
            oci.index([(IMAGE, AMD64)], attestation=True),
        )),
        [APP],
        IMAGE,
    ),
    "several tags of one image": (
        layout(entry(IMAGE, "app:1"), entry(IMAGE, "app:2")),
        [APP, "docker.io/library/app:2"],
        IMAGE,
    ),
    "a bill of materials beside": (referrers(), [APP], IMAGE),
    "platforms side by side under one name": (
        layout(entry(ARM, "app:1", platform=ARM64), entry(IMAGE, "app:1", platform=AMD64),
               images=(ARM, IMAGE)),
        [APP],
        IMAGE,
    ),
    "platforms that only the configs say": (
        layout(entry(ARM, "app:1"), entry(IMAGE, "app:1"), images=(ARM, IMAGE)), [APP], IMAGE,
    ),
    "an index of no platforms": (
        layout(entry(UNSAID, "app:1"), images=(UNSAID,)), [APP], IMAGE
    ),
    "an image twice in its index": (layout(entry(TWICE, "app:1"), images=(TWICE,)), [APP], IMAGE),
    "an index in an index": (layout(entry(NESTED, "app:1"), images=(NESTED,)), [APP], IMAGE),
    "windows beside": (layout(entry(WINDOWS, "app:1"), images=(WINDOWS,)), [APP], IMAGE),
    "odd spellings of platforms": (layout(entry(ODD, "app:1"), images=(ODD,)), [APP], IMAGE),
    "a name that is no reference beside one": (
        layout(entry(IMAGE, "App:1", annotations={IMAGE_NAME: APP})), [APP], IMAGE,
    ),
    "no media type in index.json": (layout(entry(IMAGE, "app:1", mediaType="")), [APP], IMAGE),
    "no media types at all": (
        layout(entry(UNTYPED, "app:1", mediaType=""), images=(UNTYPED,)), [APP], None
    ),
    "types that say nothing": (layout(entry(OCTETS, "app:1"), images=(OCTETS,)), [APP], None),
    "gzip that its type denies": (
        layout(entry(PLAIN_TYPE, "app:1"), images=(PLAIN_TYPE,)), [APP], None
    ),
    "variants, of which the highest runs": (variants("", "v2", "v3"), [APP], V3),
    "variants, of which the highest does not": (variants("v1", "v4", "v2"), [APP], V2),
    "a variant for every CPU": (variants("v1"), [APP], V1),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_an_archive_of_this_form_is_read(tmp_path: Path, form: str) -> None:
    files, names, image = FORMS[form]
    found = load(oci.write_tar(tmp_path / "a.tar", files))
    assert list(found) == names
    for one in found.values():
        assert one.config.cmd in {("/a",), ("/bin/sh",)}
        if image is not None:
            assert one.target.digest == image.digest
        else:
            assert [oci.digest(each.tar) for each in LAYERS] == list(one.config.diff_ids)


def sparse() -> Files:
    """`skopeo copy --multi-arch=index-only`-like: the index names what is not in the archive."""
    index = oci.index([(ARM, ARM64), (IMAGE, AMD64)])
    files = layout(entry(index, "app:1"), images=(index,))
    return {key: data for key, data in files.items() if key[13:] != IMAGE.digest[7:]}


ONLY_SIGNATURES = oci.OciImage(*artifact("application/vnd.dev.cosign.simplesigning.v1+json"))
HELM = changed(
    IMAGE, lambda m: m["config"].update(mediaType="application/vnd.cncf.helm.config.v1+json")
)
ENCRYPTED = types(oci.OCI_CONFIG, oci_image.OCI_LAYER + "+gzip+encrypted")
XZ = types(oci.OCI_CONFIG, oci_image.OCI_LAYER + "+xz")

REFUSED: dict[str, tuple[Files, str]] = {
    "only for another platform": (
        layout(entry(ARM, "app:1", platform=ARM64), images=(ARM,)),
        "no linux/amd64 image (it offers linux/arm64)",
    ),
    "only for another platform, as its config says": (
        layout(entry(ARM, "app:1"), images=(ARM,)), "offers linux/arm64"
    ),
    "saved for another platform": (sparse(), "it was saved for another platform"),
    "only for CPUs that can more": (
        variants("v4"),
        "for this CPU (it offers linux/amd64/v4; this CPU runs linux/amd64/v3 at most)",
    ),
    "a config for CPUs that can more": (
        layout(entry(V4, "app:1", platform=AMD64), images=(V4,)),
        "is for linux/amd64/v4; this CPU has the instructions of linux/amd64/v3 at most",
    ),
    "an empty index": (layout(), "no linux/amd64 image (it offers nothing)"),
    "signatures only": (
        layout(
            entry(ONLY_SIGNATURES, annotations={"kind": "dev.cosignproject.cosign/sigs"}),
            images=(ONLY_SIGNATURES,),
        ),
        "offers nothing",
    ),
    "a chart": (layout(entry(HELM, "app:1"), images=(HELM,)), "vnd.cncf.helm.config"),
    "encrypted layers": (
        layout(entry(ENCRYPTED, "app:1"), images=(ENCRYPTED,)), "gzip+encrypted"
    ),
    "layers of xz": (layout(entry(XZ, "app:1"), images=(XZ,)), "tar+xz, which cannot be unpacked"),
    "a tag alone": (layout(entry(IMAGE, "latest")), "(only latest): give it a name (--name REF)"),
    "no name at all": (layout(entry(IMAGE)), "does not say what the image is called"),
    "two images that nothing tells apart": (
        layout(entry(IMAGE), entry(OTHER), images=(IMAGE, OTHER)), "nothing tells them apart"
    ),
    "the format of Docker 1.9": (
        {"repositories": b"{}", "abc/json": b"{}", "abc/layer.tar": b""},
        "neither oci-layout nor manifest.json",
    ),
    "manifest.json of no image": ({"manifest.json": b"[]"}, "names no image"),
    "manifest.json that is no list": ({"manifest.json": b"{}"}, "is no list"),
    "docker save with layers of xz": (
        {**old_docker(Layers=["a", "b"]), "a": lzma.compress(b""), "b": LAYERS[1].tar},
        "diff.tar.xz, which cannot be unpacked",
    ),
    "a layer that is missing": (old_docker(Layers=["x", "y"]), "'x', which is not there"),
}  # fmt: skip


@pytest.mark.parametrize("form", REFUSED)
def test_an_archive_of_this_form_is_refused(tmp_path: Path, form: str) -> None:
    files, words = REFUSED[form]
    assert words in refusal(oci.write_tar(tmp_path / "a.tar", files))


def test_an_archive_of_images_without_end_is_refused(tmp_path: Path) -> None:
    """Each would be read to the config: 101 that exist once in the archive are a lot of reading."""
    many = layout(*(entry(IMAGE, f"app:{n}") for n in range(101)))
    assert "more than 100 images" in refusal(oci.write_tar(tmp_path / "a.tar", many))
    unsaid = oci.index([(IMAGE, {})] * 101)
    files = layout(entry(unsaid, "app:1"), images=(unsaid,))
    assert list(load(oci.write_tar(tmp_path / "b.tar", files))) == [APP]
