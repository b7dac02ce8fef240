"""Removing images from the node, beside deploys and functions that rely on them."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from agent.aio.tasks import spawn
from agent.core.oci_image import Descriptor
from agent.errors import FailedPrecondition, NotFound
from agent.functions.registry import Registry
from agent.node_images import NodeImages

NAME = "docker.io/library/x:1"


class Store:
    """What containerd and the prepared images do when a name is removed."""

    def __init__(self):
        self.here = {}
        self.forgotten = []
        self.gate = None
        self.at_gate = asyncio.Event()

    def add(self, name, digest="sha256:1", chain_id="sha256:c"):
        self.here[name] = SimpleNamespace(name=name, digest=digest, chain_id=chain_id)

    async def get(self, name):
        if name not in self.here:
            raise NotFound(name)
        return SimpleNamespace(name=name, target=Descriptor("m", self.here[name].digest, 1))

    async def inspect(self, name):
        return self.here[name]

    async def list(self):
        return [await self.get(name) for name in self.here]

    async def delete(self, name):
        if self.gate is not None:
            self.at_gate.set()
            await self.gate.wait()
        del self.here[name]

    async def forget(self, chain_id):
        self.forgotten.append(chain_id)


def function(name, digest, chain_id):
    image = SimpleNamespace(digest=digest, chain_id=chain_id)
    return SimpleNamespace(version=SimpleNamespace(key=(name, 1), image=image))


@pytest.fixture
async def node(tmp_path):
    store, registry = Store(), Registry()
    store.add(NAME)
    images = NodeImages(SimpleNamespace(images=store), store, registry, tmp_path)
    return SimpleNamespace(store=store, registry=registry, images=images)


async def test_the_last_name_of_layers_takes_their_view_with_it(node):
    node.store.add("docker.io/library/y:1", digest="sha256:2")
    await node.images.remove("x:1")
    assert node.store.forgotten == []
    await node.images.remove("y:1")
    assert (node.store.here, node.store.forgotten) == ({}, ["sha256:c"])
    with pytest.raises(NotFound):
        await node.images.remove("y:1")


async def test_an_image_in_use_is_not_removed(node):
    node.registry.put(function("f", "sha256:1", "sha256:c"), latest=True)
    with pytest.raises(FailedPrecondition, match="in use by f"):
        await node.images.remove("x:1")
    assert NAME in node.store.here


async def test_layers_of_a_function_stay_when_another_image_of_them_is_removed(node):
    # Its own name was moved to other content meanwhile: only the version knows its layers.
    node.registry.put(function("f", "sha256:old", "sha256:c"), latest=True)
    await node.images.remove("x:1")
    assert (node.store.here, node.store.forgotten) == ({}, [])


async def test_an_image_is_not_removed_under_a_deploy(node):
    with (
        node.registry.image_use.deploying(NAME),
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
        node.registry.image_use.deploying(NAME),
    ):
        pytest.fail("got in")
    with pytest.raises(FailedPrecondition, match="removed already"):
        await node.images.remove("x:1")
    node.store.gate.set()
    await removal
    with node.registry.image_use.deploying(NAME):
        pass
