"""Prepared images: layers are kept, what an image says about itself is its own."""

from __future__ import annotations

import os
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from agent.config import NodeConfig
from agent.core.oci import ShownCgroups, merged_env
from agent.model.records import FunctionVersion, ImageFacts
from agent.model.spec_parse import parse_spec
from agent.sandbox.blueprint import blueprint_of
from agent.sandbox.prepared_images import PreparedImage, PreparedImages

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
    spec = parse_spec({"name": "f", "image": "x:1", "contract": "fc", "kind": "http"})
    version = FunctionVersion(
        name="f", version=1, spec=spec, image=image.facts, state="Ready", created_ns=1
    )
    blueprint = blueprint_of(version, image, NodeConfig(), {}, ShownCgroups(()))
    assert merged_env(blueprint.env, {}, {})["HOME"] == home
