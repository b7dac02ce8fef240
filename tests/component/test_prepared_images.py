"""Prepared images: layers are kept, what an image says about itself is its own."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import tracemalloc
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from agent.aio.apart import Apart
from agent.aio.tasks import spawn
from agent.config import NodeConfig
from agent.containerd.lazy import LazySource
from agent.containerd.snapshots import SnapshotMount
from agent.core.oci import ShownCgroups, merged_env
from agent.errors import InvalidSpec, NotFound, RuntimeUnavailable
from agent.linux import mountinfo
from agent.linux.process import Identity
from agent.model.records import FunctionVersion, ImageFacts
from agent.model.spec_parse import parse_spec
from agent.sandbox.blueprint import accounts, blueprint_of
from agent.sandbox.image_files import ImageFiles
from agent.sandbox.prepared_images import PreparedImage, PreparedImages
from tests.component.function_house import turns

ONE = ImageFacts("x:1", "sha256:1", "sha256:c", 1, entrypoint=("/one",), env=("A=1",))
TWO = ImageFacts("x:2", "sha256:2", "sha256:c", 1, entrypoint=("/two",), env=("A=2",), user="7")


class FakeSnapshots:
    def __init__(self, directory):
        self.directory = directory
        self.asked = []
        self.removed = []
        self.gate = None
        self.at_gate = asyncio.Event()

    async def mounts(self, key):
        return (SnapshotMount("bind", str(self.directory)),)

    async def remove(self, key):
        if self.gate is not None:
            self.at_gate.set()
            await self.gate.wait()
        self.removed.append(key)
        return True

    async def image_layers(self, chain_id, *, deadline):
        self.asked.append(chain_id)
        return (str(self.directory),)

    async def exists(self, chain_id, *, deadline):
        return True


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


@pytest.mark.parametrize(
    ("files", "passwd"),
    [
        ({"etc/passwd": "x"}, b"x"),
        ({"etc/passwd": "-> ../usr/lib/passwd", "usr/lib/passwd": "x"}, b"x"),
        ({"etc": "-> /config", "config/passwd": "x"}, b"x"),
        ({"etc/passwd": "-> ../../../../outside", "outside": "x"}, b"x"),
        ({"etc/passwd": "-> ../../../../outside"}, b""),
        ({"etc/passwd": "-> /nowhere"}, b""),
        ({"etc/passwd": "-> passwd"}, b""),
        ({"etc/passwd/inside": "x"}, b""),
        ({"etc/passwd": "fifo"}, b""),
        ({"etc": "x"}, b""),
        ({}, b""),
    ],
)
def test_accounts_are_found_inside_the_image_only(tmp_path, files, passwd):
    (tmp_path / "outside").write_text("the host's")
    layer = tmp_path / "images" / "layer"
    layer.mkdir(parents=True)
    for name, content in files.items():
        place = layer / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if content.startswith("-> "):
            place.symlink_to(content.removeprefix("-> "))
        elif content == "fifo":
            os.mkfifo(place)
        else:
            place.write_text(content)
    assert accounts(ImageFiles((layer,))) == (passwd, b"")


async def test_nothing_is_kept_of_accounts_however_large(tmp_path, images, snapshots):
    """A worker lives for months, and every image it has seen may bring megabytes of them."""
    (tmp_path / "etc").mkdir()
    app = "app:x:1000:1000::/home/app:\n"
    many = app + "".join(f"u{n}:x:{n % 60000}:0::/home/u{n}:\n" for n in range(170_000))
    assert len(many) > 5 << 20
    (tmp_path / "etc" / "passwd").write_text(many)
    (tmp_path / "etc" / "group").write_text("g:x:7:app\n" + "x" * (5 << 20))
    blueprint_for((await images.prepare(ONE, deadline=0))[0])  # what is kept of the first of all
    kept = []
    tracemalloc.start()
    try:
        for number in range(5):
            facts = replace(ONE, chain_id=f"sha256:{number}", user="app")
            image, _ = await images.prepare(facts, deadline=0)
            kept.append(blueprint_for(image))
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept[0].program.uid == 1000
    assert kept[0].program.groups == (7,)
    assert held_bytes < 1 << 20


@pytest.mark.parametrize(
    ("user", "env", "home"),
    [
        ("", (), "/root"),
        ("app", (), "/home/app"),
        ("4000", (), "/"),
        ("app", ("HOME=/opt",), "/opt"),
        ("app", ("HOME=",), "/home/app"),
    ],
)
def test_home_is_the_users_own_unless_the_image_has_another(tmp_path, user, env, home):
    (tmp_path / "etc").mkdir()
    passwd = "root:x:0:0::/root:\napp:x:1000:1000::/home/app:\n"
    (tmp_path / "etc" / "passwd").write_text(passwd)
    image = PreparedImage(replace(ONE, user=user, env=env), (tmp_path,))
    assert merged_env(blueprint_for(image).env, {}, {})["HOME"] == home


def blueprint_for(image):
    spec = parse_spec({"name": "f", "image": "x:1", "contract": "fc", "kind": "http"})
    version = FunctionVersion(
        name="f", version=1, spec=spec, image=image.facts, state="Ready", created_ns=1
    )
    return blueprint_of(version, image, NodeConfig(), {}, ShownCgroups(()))


@pytest.mark.parametrize(
    ("env", "told"),
    [
        (["BIG=" + "x" * (128 << 10)], "env.BIG: takes 131077 bytes"),
        ([f"V{number}=" + "x" * 1000 for number in range(3000)], "Linux takes at most"),
    ],
)
def test_an_environment_of_an_image_that_linux_cannot_take_is_told_at_deploy(tmp_path, env, told):
    image = PreparedImage(replace(ONE, env=tuple(env)), (tmp_path,))
    with pytest.raises(InvalidSpec, match=told):
        blueprint_for(image)


def mounted(*layers):
    options = ("rw", f"lowerdir={':'.join(map(str, layers))}", "upperdir=/u")
    return [mountinfo.Mounted("/run/rootfs/f-1", "overlay", options, False)]


@pytest.mark.parametrize(
    ("needed", "over", "goes"),
    [
        ((), [], True),
        (("sha256:c",), [], False),
        (("sha256:other",), [], True),
        ((), ["/elsewhere/snapshots/7/fs"], True),
        ((), ["/elsewhere/snapshots/6/fs", "{here}"], False),
        ((), ["12/fs", "7/fs", "{relative}"], False),
    ],
)
async def test_a_view_goes_unless_it_is_needed_or_a_root_lies_over_it(
    images, snapshots, monkeypatch, needed, over, goes
):
    await images.prepare(ONE, deadline=0)
    here = str(snapshots.directory)
    relative = "/".join(here.split("/")[-2:])
    over = [one.format(here=here, relative=relative) for one in over]
    monkeypatch.setattr(mountinfo, "parse", lambda _: mounted(*over))
    assert await images.forget("sha256:c", lambda: needed) is goes
    assert snapshots.removed == (["view-sha256:c"] if goes else [])
    _, cached = await images.prepare(ONE, deadline=0)
    assert cached is not goes


async def test_an_image_deployed_while_its_view_is_removed_gets_a_new_one(images, snapshots):
    snapshots.gate = asyncio.Event()
    forgetting = spawn("forget", images.forget("sha256:c", tuple))
    await snapshots.at_gate.wait()
    preparing = spawn("prepare", images.prepare(ONE, deadline=0))
    await turns()
    assert snapshots.asked == []
    snapshots.gate.set()
    assert await forgetting
    await preparing
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
    async def exists(self, chain_id, *, deadline):
        return False

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
def lazily(engine):
    containerd: Any = SimpleNamespace(snapshots=Nothing(), lazy=Engines(engine))
    return PreparedImages(containerd)


async def test_a_mounted_image_is_prepared_with_the_process_that_serves_it(lazily, own):
    image, _ = await lazily.prepare(ONE, deadline=await soon())
    assert image.source == str(own)
    assert lazily.is_current(image)


async def test_what_a_dead_process_served_is_prepared_anew(lazily, engine, own):
    engine.process = LazySource("soci", Identity(own.process.pid, own.process.start - 1))
    image, _ = await lazily.prepare(ONE, deadline=await soon())
    assert not lazily.is_current(image)
    engine.process = own
    again, cached = await lazily.prepare(ONE, deadline=await soon())
    assert (again.source, cached) == (str(own), False)
    assert lazily.is_current(again)


async def test_a_complete_image_is_prepared_from_its_unpacked_layers(lazily, engine, snapshots):
    image, _ = await lazily.prepare(ONE, deadline=await soon())
    lazily._containerd.snapshots = snapshots
    lazily.completed(ONE.chain_id)
    assert not lazily.is_current(image)
    again, _ = await lazily.prepare(ONE, deadline=await soon())
    assert again.source == ""


async def test_an_image_unpacked_by_whomever_is_not_started_from_its_mount(lazily, snapshots, own):
    image, _ = await lazily.prepare(ONE, deadline=await soon())
    again, cached = await lazily.prepare(ONE, deadline=await soon())
    assert (again.source, cached) == (str(own), True)
    lazily._containerd.snapshots = snapshots  # by a pull, or another deploy
    again, cached = await lazily.prepare(ONE, deadline=await soon())
    assert (again.source, cached) == ("", False)
    assert not lazily.is_current(image)
    assert await lazily.prepare(ONE, deadline=await soon()) == (again, True)


async def test_an_engine_that_is_away_is_told_instead_of_a_missing_image(lazily, engine):
    engine.process = None
    with pytest.raises(RuntimeUnavailable, match="soci does not answer"):
        await lazily.prepare(ONE, deadline=await soon())
    engine.has_run = False
    with pytest.raises(NotFound):
        await lazily.prepare(ONE, deadline=await soon())


async def test_files_that_hang_cost_a_start_its_deadline_and_nothing_else(lazily, engine):
    image, _ = await lazily.prepare(ONE, deadline=await soon())
    gate = threading.Event()
    try:
        with pytest.raises(RuntimeUnavailable, match="not in time"):
            await lazily.look(image, gate.wait, deadline=await soon())
        async with asyncio.timeout(5):
            assert await asyncio.to_thread(lambda: "free") == "free"
    finally:
        gate.set()
    engine.hangs = True
    with pytest.raises(RuntimeUnavailable, match="hangs"):
        await lazily.reachable(image)


@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.EIO, errno.ESTALE])
async def test_files_that_are_away_are_no_missing_files(lazily, number, monkeypatch):
    image, _ = await lazily.prepare(ONE, deadline=await soon() + 10)

    def gone(self):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(type(image.layers[0]), "lstat", gone)
    find = partial(ImageFiles(image.layers).find, "/bin/app")
    with pytest.raises(RuntimeUnavailable, match=os.strerror(number)):
        await lazily.look(image, find, deadline=await soon() + 10)


async def test_a_disk_that_does_not_give_an_images_files_is_the_platforms_fault(images):
    image, _ = await images.prepare(ONE, deadline=await soon())

    def broken():
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(RuntimeUnavailable, match="x:1 cannot be read: Input/output error"):
        await images.look(image, broken, deadline=await soon())


@pytest.mark.parametrize("end", ["completed", "unmounted"])
async def test_what_is_let_go_while_it_is_prepared_is_not_started_from(
    lazily, engine, snapshots, end
):
    """A deploy looks at a mounted image at the moment when that is complete."""
    at_gate, gate = asyncio.Event(), asyncio.Event()
    layers = engine.snapshots.image_layers

    async def slow(chain_id, *, deadline):
        at_gate.set()
        await gate.wait()
        return await layers(chain_id, deadline=deadline)

    engine.snapshots.image_layers = slow
    preparing = spawn("prepare", lazily.prepare(ONE, deadline=await soon()))
    await at_gate.wait()
    lazily._containerd.snapshots = snapshots
    getattr(lazily, end)(ONE.chain_id)
    gate.set()
    image, _ = await preparing
    assert (image.source, lazily.is_current(image)) == ("", True)
