"""Removing images from the node, beside deploys and functions that rely on them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from agent.aio.tasks import spawn
from agent.containerd import scratch
from agent.errors import FailedPrecondition, InvalidSpec, NotFound, Problem, RuntimeUnavailable
from agent.node import images as node_images
from tests.component.image_house import ImageHouse, function

ROOT = Path(__file__).parents[2]
NAME = "docker.io/library/x:1"


@pytest.fixture
async def node(tmp_path):
    house = ImageHouse(tmp_path)
    house.store.add(NAME)
    house.store.view("sha256:c")
    return house


async def test_the_last_name_of_layers_takes_their_view_with_it(node):
    node.store.add("docker.io/library/y:1", digest="sha256:2")
    await node.images.remove("x:1")
    assert "view-sha256:c" in node.store.layers
    await node.images.remove("y:1")
    assert (node.store.here, node.store.layers, node.store.blobs) == ({}, {}, {})
    with pytest.raises(NotFound):
        await node.images.remove("y:1")


async def test_an_image_in_use_is_not_removed(node):
    node.catalog.put(function("f", "sha256:1", "sha256:c"), latest=True)
    with pytest.raises(FailedPrecondition, match="in use by f"):
        await node.images.remove("x:1")
    assert NAME in node.store.here


async def test_layers_of_a_function_stay_when_another_image_of_them_is_removed(node):
    # Its own name was moved to other content meanwhile: only the version knows its layers.
    node.catalog.put(function("f", "sha256:old", "sha256:c"), latest=True)
    await node.images.remove("x:1")
    assert node.store.here == {}
    assert sorted(node.store.layers) == ["sha256:c", "view-sha256:c"]


async def test_an_image_is_not_removed_under_a_deploy(node):
    with (
        node.catalog.image_use.deploying(NAME),
        pytest.raises(FailedPrecondition, match="is being deployed; try again"),
    ):
        await node.images.remove("x:1")
    await node.images.remove("x:1")


async def test_an_image_is_not_deployed_under_its_removal(node):
    node.store.gate = asyncio.Event()
    removal = spawn("r", node.images.remove("x:1"))
    await node.store.at_gate.wait()
    with (
        pytest.raises(FailedPrecondition, match="is being removed; try again"),
        node.catalog.image_use.deploying(NAME),
    ):
        pytest.fail("got in")
    again = spawn("again", node.images.remove("x:1"))
    node.store.gate.set()
    await removal
    with pytest.raises(NotFound):
        await again
    with node.catalog.image_use.deploying(NAME):
        pass


# What a worker does with an archive that never ends; told by a line that it has begun.
WORKER = """
import asyncio, sys
from pathlib import Path
from agent.node.images import NodeImages

async def chunks():
    yield b"x" * (1 << 20)
    print("begun", flush=True)
    await asyncio.Event().wait()

images = NodeImages(None, None, None, None, Path(sys.argv[1]), 60.0)
asyncio.run(images.load(chunks(), "x:1"))
"""


def test_an_import_that_a_crash_cut_short_leaves_no_file(tmp_path):
    place = tmp_path / "import"
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, place], stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    assert worker.stdout is not None
    try:
        assert worker.stdout.readline() == "begun\n"
    finally:
        worker.kill()
        worker.wait()
        worker.stdout.close()
    assert list(place.iterdir()) == []


async def test_a_sweep_takes_what_has_a_name_and_leaves_an_import_under_way(node):
    node.path.mkdir()
    (node.path / "image-left.tar").write_bytes(b"left by a crash")
    (node.path / "directory").mkdir()

    async def chunks():
        yield b"first"
        scratch.sweep(node.path)
        yield b"second"

    (view,) = await node.images.load(chunks(), "x:1")
    assert view.name == NAME
    assert node.store.loaded == b"firstsecond"
    # What an agent never made is not removed, nor does it stop the worker.
    assert [path.name for path in node.path.iterdir()] == ["directory"]


def test_a_sweep_where_nothing_was_imported_yet_is_none(tmp_path):
    scratch.sweep(tmp_path / "import")
    assert list(tmp_path.iterdir()) == []


async def some_chunks():
    for _ in range(3):
        yield bytes(1000)


async def test_an_import_stops_before_the_disk_is_full(node, monkeypatch):
    monkeypatch.setattr(scratch, "RESERVE_BYTES", 1 << 62)
    with pytest.raises(RuntimeUnavailable, match=r"archive cannot be kept in .*MB are free"):
        await node.images.load(some_chunks(), "x:1")
    assert node.store.loaded == b""


async def test_an_archive_larger_than_any_image_is_refused(node, monkeypatch):
    monkeypatch.setattr(node_images, "MAX_BYTES", 2500)
    with pytest.raises(InvalidSpec, match="archive: is larger than 2500 bytes"):
        await node.images.load(some_chunks(), "x:1")
    assert node.store.loaded == b""


async def test_an_upload_that_does_not_go_on_is_given_up(node, monkeypatch):
    monkeypatch.setattr(node_images, "UPLOAD_SILENCE_S", 0.05)

    async def hanging():
        yield b"first"
        await asyncio.Event().wait()

    with pytest.raises(InvalidSpec, match="archive: nothing of it came"):
        await node.images.load(hanging(), "x:1")
    assert node.store.loaded == b""


async def test_errors_speak_of_the_archive_not_of_where_it_was_kept(node):
    async def refuse(path, **_):
        raise InvalidSpec([Problem(str(path), f"{path} is wrong")])

    async def late(path, **_):
        raise RuntimeUnavailable(f"import {path}: not done")

    node.store.load = refuse
    with pytest.raises(InvalidSpec, match=r"^archive: the archive is wrong$"):
        await node.images.load(some_chunks(), "x:1")
    node.store.load = late
    with pytest.raises(RuntimeUnavailable, match=r"^import the archive: not done$"):
        await node.images.load(some_chunks(), "x:1")
