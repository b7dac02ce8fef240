"""Odd layers, odd forms of images and other tools' archives, imported for real into containerd.

The rows stand in tests/inside/odd_layers.py and odd_images.py, with what a container must see.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests import oci
from tests.inside.containerd_rig import rig
from tests.inside.odd_images import DAMAGED, FORMS
from tests.inside.odd_layers import ROWS
from tests.integration.probes import Facts, begun, facts_of, probed

pytestmark = pytest.mark.integration

TOOLS = (
    "skopeo-docker-archive.tar",
    "skopeo-docker-archive.tar.zst",
    "skopeo-oci",
    "skopeo-oci-archive.tar",
    "skopeo-oci-archive.tar.gz",
    "skopeo-oci-zstd",
    "umoci",
    "umoci.tar",
)


def images_probe() -> Facts:
    """Everything of odd_images, with archives that skopeo and umoci write before."""
    with rig("odd-images") as place:
        tools = place.run_dir / "tools"
        tools.mkdir()
        write_with_tools(tools)
        return facts_of(place, "odd_images", TOOLS=str(tools))


@pytest.fixture(scope="module")
def facts(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Facts]]:
    with begun(request, {"layers": partial(probed, "odd_layers"), "images": images_probe}) as found:
        yield found


@pytest.fixture(scope="module")
def layers(facts: Callable[[str], Facts]) -> Facts:
    found: Facts = facts("layers")["rows"]
    return found


@pytest.fixture(scope="module")
def images(facts: Callable[[str], Facts]) -> Facts:
    return facts("images")


@pytest.mark.parametrize("row", ROWS)
def test_a_layer_is_seen_as_elsewhere(layers: Facts, row: str) -> None:
    asked, told = ROWS[row], layers[row]
    if asked.refused:
        assert asked.refused in told["refused"]
    else:
        assert told == {"seen": dict(asked.seen)}


@pytest.mark.parametrize("form", FORMS)
def test_an_image_of_this_form_is_unpacked(images: Facts, form: str) -> None:
    told = images["forms"][form]
    assert told.get("refused") is None
    assert (told["text"], told["same"], told["blobs_left"]) == (["here"], True, 0)
    assert told["unpacked"] > 0


@pytest.mark.parametrize("way", DAMAGED)
def test_a_damaged_layer_is_told_as_one(images: Facts, way: str) -> None:
    refused = images["damaged"][way]["refused"]
    assert "a layer is damaged" in refused
    assert "build or save it again" in refused


@pytest.mark.parametrize("tool", TOOLS)
def test_an_archive_of_this_tool_is_taken(images: Facts, tool: str) -> None:
    told = images["tools"][tool]
    assert told.get("refused") is None
    assert (told["text"], told["cmd"], told["same"]) == (["here"], ["/app/file"], True)


def test_of_several_images_the_one_named_is_taken_or_all(images: Facts) -> None:
    told = images["several"]
    assert "holds 2 images (app:1, app:2): name the one you mean" in told["plain"]["refused"]
    assert told["app:2"] == {"docker.io/library/app:2": ["/2"]}
    assert told["all"] == {
        "docker.io/library/app:1": ["/1"],
        "docker.io/library/app:latest": ["/1"],
        "docker.io/library/app:2": ["/2"],
    }
    assert told["left"] == []


def write_with_tools(at: Path) -> None:
    """Write one image in every form that skopeo and umoci know."""
    source = at / "source"
    made = oci.image([oci.layer({"app/file": b"here"})], {"Cmd": ["/app/file"]})
    oci.write_directory(source, oci.layout(made, "1"))
    skopeo = ("skopeo", "--insecure-policy", "--tmpdir", at, "copy", "-q")

    def copied(target: str, name: str, *options: str) -> Path:
        subprocess.run(
            [*skopeo, *options, f"oci:{source}:1", f"{target}:{at / name}:app:1"], check=True
        )
        return at / name

    subprocess.run(["zstd", "-q", "--rm", copied("docker-archive", "skopeo-d.tar")], check=True)
    (at / "skopeo-d.tar.zst").rename(at / "skopeo-docker-archive.tar.zst")
    copied("docker-archive", "skopeo-docker-archive.tar")
    packed = copied("oci-archive", "skopeo-oci-archive.tar")
    subprocess.run(["gzip", "-k", packed], check=True)
    copied("oci", "skopeo-oci")
    copied("oci", "skopeo-oci-zstd", "--dest-compress-format", "zstd")
    with_umoci(at)
    shutil.rmtree(source)
    for path in at.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    at.chmod(0o755)


def with_umoci(at: Path) -> None:
    """Make an image by umoci alone: a layout whose only name is a tag."""
    layout, file = at / "umoci", at / "file"
    file.write_bytes(b"here")
    for words in (
        ("init", "--layout", layout),
        ("new", "--image", f"{layout}:v1"),
        ("insert", "--image", f"{layout}:v1", file, "/app/file"),
        ("config", "--image", f"{layout}:v1", "--config.cmd", "/app/file"),
        ("gc", "--layout", layout),
    ):
        subprocess.run(["umoci", *words], check=True)
    file.unlink()
    subprocess.run(["tar", "-C", layout, "-cf", at / "umoci.tar", "."], check=True)
