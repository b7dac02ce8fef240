"""Prepared images: layers are kept, what an image says about itself is its own."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from agent.aio.tasks import spawn
from agent.config import NodeConfig
from agent.containerd.snapshots import SnapshotMount
from agent.core.oci import ShownCgroups, merged_env
from agent.errors import InvalidSpec
from agent.linux import mountinfo
from agent.model.records import FunctionVersion, ImageFacts
from agent.model.spec_parse import parse_spec
from agent.sandbox.blueprint import blueprint_of
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
async def test_accounts_are_found_inside_the_image_only(tmp_path, images, snapshots, files, passwd):
    (tmp_path / "outside").write_text("the host's")
    snapshots.directory = tmp_path / "images" / "layer"
    snapshots.directory.mkdir(parents=True)
    for name, content in files.items():
        place = snapshots.directory / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if content.startswith("-> "):
            place.symlink_to(content.removeprefix("-> "))
        elif content == "fifo":
            os.mkfifo(place)
        else:
            place.write_text(content)
    prepared, _ = await images.prepare(ONE, deadline=0)
    assert prepared.passwd == passwd


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
    passwd = b"root:x:0:0::/root:\napp:x:1000:1000::/home/app:\n"
    image = PreparedImage(replace(ONE, user=user, env=env), (tmp_path,), passwd, b"")
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
    image = PreparedImage(replace(ONE, env=tuple(env)), (tmp_path,), b"", b"")
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
