"""Of several images in an archive one is chosen by name, or all are taken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import oci
from tests.component.archive_house import (
    APP,
    ARM,
    DOCKER,
    IMAGE,
    LAYERS,
    OTHER,
    Files,
    cosign,
    dumps,
    entry,
    layout,
    load,
    old_docker,
    refusal,
)


def two_docker() -> Files:
    first, second = oci.docker_save(DOCKER, LAYERS, "app:1"), oci.docker_save(
        oci.image(LAYERS[:1], {"Cmd": ["/b"]}, docker=True), LAYERS[:1], "app:2"
    )  # fmt: skip
    entries = [*json.loads(first["manifest.json"]), *json.loads(second["manifest.json"])]
    return {**first, **second, "manifest.json": dumps(entries)}


TWO = layout(entry(IMAGE, "app:1"), entry(OTHER, "other.example/x:2"), images=(IMAGE, OTHER))
TWO_TAGS = layout(entry(IMAGE, "v1"), entry(OTHER, "v2"), images=(IMAGE, OTHER))
ONE_ARM = layout(entry(IMAGE, "app:1"), entry(ARM, "arm:1"), images=(IMAGE, ARM))


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (TWO, ("app:1", "other.example/x:2")),
        (two_docker(), ("app:1", "app:2")),
        (TWO_TAGS, ("v1", "v2")),
        (ONE_ARM, ("app:1", "arm:1")),
    ],
)
@pytest.mark.parametrize("asked", ["", "elsewhere.example/nothing:3"])
def test_several_images_are_refused_by_their_names(
    tmp_path: Path, files: Files, names: tuple[str, str], asked: str
) -> None:
    text = refusal(oci.write_tar(tmp_path / "a.tar", files), asked)
    assert f"holds 2 images ({names[0]}, {names[1]})" in text
    assert ("--name REF" in text) != bool(asked)


@pytest.mark.parametrize(
    ("files", "name", "command"),
    [
        (TWO, "app:1", "/a"),
        (TWO, "docker.io/library/app:1", "/a"),
        (TWO, "other.example/x:2", "/c"),
        (two_docker(), "app:2", "/b"),
        (TWO_TAGS, "kindling.local/mine:v2", "/c"),  # as `skopeo copy oci:DIR:v2` chooses
        (ONE_ARM, "app:1", "/a"),
    ],
)
def test_a_name_chooses_among_several(
    tmp_path: Path, files: Files, name: str, command: str
) -> None:
    found = load(oci.write_tar(tmp_path / "a.tar", files), name)
    assert [one.config.cmd for one in found.values()] == [(command,)]
    assert [key.endswith(name) for key in found] == [True]


def test_a_name_that_chooses_what_cannot_run_says_why(tmp_path: Path) -> None:
    path = oci.write_tar(tmp_path / "a.tar", ONE_ARM)
    assert "it offers linux/arm64" in refusal(path, "arm:1")
    assert "it offers linux/arm64" in refusal(path, everything=True)


def test_all_images_are_imported_under_their_names(tmp_path: Path) -> None:
    found = load(oci.write_tar(tmp_path / "a.tar", TWO), everything=True)
    assert {name: one.config.cmd for name, one in found.items()} == {
        APP: ("/a",),
        "other.example/x:2": ("/c",),
    }
    path = oci.write_tar(tmp_path / "b.tar", TWO)
    assert "leave it out" in refusal(path, "app:1", everything=True)


def test_an_only_image_is_called_as_asked(tmp_path: Path) -> None:
    path = oci.write_tar(tmp_path / "a.tar", old_docker(RepoTags=["app:1", "app:2"]))
    assert list(load(path, "kindling.local/mine:9")) == ["kindling.local/mine:9"]
    assert list(load(oci.write_tar(tmp_path / "b.tar", cosign()), "mine:9")) == [
        "docker.io/library/mine:9"
    ]
