"""Prepared images: layers are kept, what an image says about itself is its own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from agent.model.records import ImageFacts
from agent.sandbox.prepared_images import PreparedImages

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
