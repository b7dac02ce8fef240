"""Prepared images: layers are kept, what an image says about itself is its own."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from agent.aio.apart import Apart
from agent.containerd.lazy import LazySource
from agent.errors import NotFound, RuntimeUnavailable
from agent.linux.process import Identity
from agent.model.records import ImageFacts
from agent.sandbox.prepared_images import PreparedImages, find_executable

ONE = ImageFacts("x:1", "sha256:1", "sha256:c", 1, entrypoint=("/one",), env=("A=1",))
TWO = ImageFacts("x:2", "sha256:2", "sha256:c", 1, entrypoint=("/two",), env=("A=2",), user="7")


class FakeSnapshots:
    def __init__(self, directory):
        self.directory = directory
        self.asked = []

    async def image_layers(self, chain_id, *, deadline):
        self.asked.append(chain_id)
        return (str(self.directory),)


@pytest.fixture
def snapshots(tmp_path):
    return FakeSnapshots(tmp_path)


@pytest.fixture
def images(snapshots):
    containerd: Any = SimpleNamespace(snapshots=snapshots)
    return PreparedImages(containerd)


async def test_images_of_the_same_layers_keep_their_own_configuration(images, snapshots):
    first, cached = await images.prepare(ONE, deadline=0)
    assert (first.facts, cached) == (ONE, False)
    second, cached = await images.prepare(TWO, deadline=0)
    assert (second.facts, cached) == (TWO, True)
    again, _ = await images.prepare(ONE, deadline=0)
    assert again.facts == ONE
    assert snapshots.asked == ["sha256:c"]


# -- images that an engine has mounted


class FakeEngine:
    """Has mounted every image from `directory`, by the process `source`."""

    name = "soci"
    has_run = True

    def __init__(self, directory, source):
        self.snapshots = FakeSnapshots(directory)
        self.process = source
        self.hangs = False

    def source(self):
        return self.process

    async def up(self, deadline):
        raise RuntimeUnavailable("soci does not answer")

    async def answers(self):
        return not self.hangs


class Nothing:
    async def image_layers(self, chain_id, *, deadline):
        raise NotFound(chain_id)


class Engines(list[Any]):
    def __init__(self, *engines):
        super().__init__(engines)
        self.files = Apart(1)

    def get(self, name):
        return next((engine for engine in self if engine.name == name), None)


async def soon():
    return asyncio.get_running_loop().time() + 0.2


@pytest.fixture
def own():
    return LazySource("soci", Identity.of(os.getpid()))


@pytest.fixture
def engine(tmp_path, own):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")
    return FakeEngine(tmp_path, own)


@pytest.fixture
def mounted(engine):
    containerd: Any = SimpleNamespace(snapshots=Nothing(), lazy=Engines(engine))
    return PreparedImages(containerd)


async def test_a_mounted_image_is_prepared_with_the_process_that_serves_it(mounted, own):
    image, _ = await mounted.prepare(ONE, deadline=await soon())
    assert (image.source, image.passwd) == (str(own), b"root:x:0:0::/:/bin/sh\n")
    assert mounted.is_current(image)


async def test_what_a_dead_process_served_is_prepared_anew(mounted, engine, own):
    engine.process = LazySource("soci", Identity(own.process.pid, own.process.start - 1))
    image, _ = await mounted.prepare(ONE, deadline=await soon())
    assert not mounted.is_current(image)
    engine.process = own
    again, cached = await mounted.prepare(ONE, deadline=await soon())
    assert (again.source, cached) == (str(own), False)
    assert mounted.is_current(again)


async def test_a_complete_image_is_prepared_from_its_unpacked_layers(mounted, engine, snapshots):
    image, _ = await mounted.prepare(ONE, deadline=await soon())
    mounted._containerd.snapshots = snapshots
    mounted.completed(ONE.chain_id)
    assert not mounted.is_current(image)
    again, _ = await mounted.prepare(ONE, deadline=await soon())
    assert again.source == ""


async def test_an_engine_that_is_away_is_told_instead_of_a_missing_image(mounted, engine):
    engine.process = None
    with pytest.raises(RuntimeUnavailable, match="soci does not answer"):
        await mounted.prepare(ONE, deadline=await soon())
    engine.has_run = False
    with pytest.raises(NotFound):
        await mounted.prepare(ONE, deadline=await soon())


async def test_files_that_hang_cost_a_start_its_deadline_and_nothing_else(mounted, engine):
    image, _ = await mounted.prepare(ONE, deadline=await soon())
    gate = threading.Event()
    try:
        with pytest.raises(RuntimeUnavailable, match="not in time"):
            await mounted.look(image, gate.wait, deadline=await soon())
        async with asyncio.timeout(5):
            assert await asyncio.to_thread(lambda: "free") == "free"
    finally:
        gate.set()
    engine.hangs = True
    with pytest.raises(RuntimeUnavailable, match="hangs"):
        await mounted.reachable(image)


@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.EIO, errno.ESTALE])
async def test_files_that_are_away_are_no_missing_files(mounted, number, monkeypatch):
    image, _ = await mounted.prepare(ONE, deadline=await soon())

    def gone(self):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(type(image.layers[0]), "lstat", gone)
    find = partial(find_executable, image.layers[0], "/bin/app", "", "/")
    with pytest.raises(RuntimeUnavailable, match="do not come from their registry"):
        await mounted.look(image, find, deadline=await soon())
