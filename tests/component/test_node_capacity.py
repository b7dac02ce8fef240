"""The node's capacity: many who watch it, and a disk that is slow to answer."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections import namedtuple
from contextlib import AsyncExitStack, aclosing
from types import SimpleNamespace
from typing import Any

import pytest

from agent.deployments.catalog import Catalog
from agent.node.capacity import LEAST_INTERVAL_S, NodeCapacity
from tests.component.function_house import House

Usage = namedtuple("Usage", "total used free")


class Disk:
    """A file system that answers when it is let, and notes who asks it from where."""

    def __init__(self, monkeypatch):
        self.asked = []
        self.open = threading.Event()
        self.open.set()
        monkeypatch.setattr(shutil, "disk_usage", self.usage)

    def usage(self, path):
        self.asked.append(threading.current_thread())
        assert self.open.wait(20)
        return Usage(10, 10 - len(self.asked), len(self.asked))


@pytest.fixture
async def house(tmp_path):
    async with House(tmp_path) as found:
        found.catalog, found.counted = Catalog(), 0
        yield found


def capacity_of(house):
    def counts():
        house.counted += 1
        return {"slot512": SimpleNamespace(ready=7)}

    parts: Any = SimpleNamespace(
        config=house.config,
        catalog=house.catalog,
        runners=SimpleNamespace(fleet=house.fleet),
        layers=SimpleNamespace(counts=counts),
        containerd=SimpleNamespace(limit=SimpleNamespace(left_bytes=1 << 62)),
        mode=house.mode,
    )
    return NodeCapacity(parts)


async def test_asking_for_the_capacity_asks_the_disk_on_the_loop(house, monkeypatch):
    disk = Disk(monkeypatch)
    view = await capacity_of(house).now()
    assert (view.image_free_bytes, view.free_layers) == (1, {512: 7})
    assert disk.asked
    assert threading.current_thread() not in disk.asked


async def test_every_watcher_asks_the_disk_anew(house, monkeypatch):
    disk, capacity = Disk(monkeypatch), capacity_of(house)
    skipped_s = 0.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: skipped_s)
    await asyncio.gather(*(capacity.now() for _ in range(50)))
    assert len(disk.asked) == 1
    skipped_s = 2.0
    views = await asyncio.gather(*(capacity.now() for _ in range(50)))
    assert len(disk.asked) == 2
    assert {view.image_free_bytes for view in views} == {2}


async def test_a_disk_that_does_not_answer_holds_the_watchers_up(house, monkeypatch):
    disk, capacity = Disk(monkeypatch), capacity_of(house)
    monkeypatch.setattr("agent.node.capacity.FREE_BYTES_S", 0.01)
    await capacity.now()
    disk.open.clear()
    try:
        async with asyncio.timeout(10), aclosing(capacity.watch(0.0)) as views:
            assert (await anext(views)).image_free_bytes == 1
            house.mode.drain()
            assert (await anext(views)).draining
        assert len(disk.asked) <= 2  # who is asked already is not asked again
    finally:
        disk.open.set()


async def test_watchers_each_count_everything(house, monkeypatch):
    Disk(monkeypatch)
    capacity = capacity_of(house)
    async with asyncio.timeout(20), AsyncExitStack() as stack:
        watchers = [
            await stack.enter_async_context(aclosing(capacity.watch(0.0))) for _ in range(20)
        ]
        for watcher in watchers:
            assert not (await anext(watcher)).draining
        house.counted = 0
        began = asyncio.get_running_loop().time()
        house.mode.drain()
        views = await asyncio.gather(*(anext(watcher) for watcher in watchers))
        steps = (asyncio.get_running_loop().time() - began) / LEAST_INTERVAL_S
        assert all(view.draining for view in views)
        assert house.counted <= steps + 1
