"""The agent as one object: what it asks of several rooms at once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.calls.job import JobRunner
from agent.config import ImagesSettings, NodeConfig, PathsSettings
from agent.control.health import Health
from agent.core.mode import NodeMode
from agent.deployments.catalog import Catalog
from agent.errors import AlreadyExists, RuntimeUnavailable
from agent.node.local import LocalNode
from agent.rootless import outcome
from agent.store.calls import CallStore
from tests.component.function_house import House


@pytest.fixture
async def house(tmp_path):
    async with House(tmp_path) as found:
        found.calls = await CallStore.open(tmp_path / "calls.db", kept=10)
        found.jobs = JobRunner(found.fleet, found.calls.save)
        found.catalog = Catalog()
        yield found
        await found.calls.close()


def node_of(house):
    parts: Any = SimpleNamespace(
        config=NodeConfig(paths=PathsSettings(data=Path("/nowhere"))),
        lazy=None,
        containerd=None,
        collector=None,
        catalog=house.catalog,
        runners=SimpleNamespace(jobs=house.jobs, fleet=house.fleet),
        calls=house.calls,
    )
    return LocalNode(parts, Health())


async def test_the_id_of_a_job_names_one_run_also_after_its_end(house):
    house.catalog.put(house.target("j", contract="scf-job", kind="job"), latest=True)
    house.on_start = lambda container: container.die(3)
    node = node_of(house)
    async with asyncio.timeout(10):
        first = await node.run_job("j", "", b"{}", wait=True, request_id="mine")
    with pytest.raises(AlreadyExists, match="call mine of j"):
        await node.run_job("j", "", b"{}", wait=True, request_id="mine")
    assert await house.calls.get("mine") == first
    house.on_start = lambda container: None
    await node.run_job("j", "", b"{}", wait=False, request_id="other")
    with pytest.raises(AlreadyExists, match="call other"):
        await node.run_job("j", "", b"{}", wait=False, request_id="other")
    await house.jobs.stop_all(grace_s=0.0)
    assert house.held() == {}


class Supervised:
    """A node with a run directory, that counts how often its supervisor was asked."""

    def __init__(self, run):
        self.mode = NodeMode()
        self.asked = 0
        paths = SimpleNamespace(data=Path("/nowhere"), run=run)
        parts: Any = SimpleNamespace(
            config=SimpleNamespace(paths=paths, images=ImagesSettings()),
            lazy=None,
            containerd=None,
            collector=None,
            catalog=None,
            mode=self.mode,
            reload=self._ask,
        )
        self.node = LocalNode(parts, Health())

    def _ask(self):
        self.asked += 1


async def test_a_reload_asked_for_gets_the_number_after_the_last_even_beside_a_running_one(
    tmp_path,
):
    supervised = Supervised(tmp_path)
    assert await supervised.node.reload() == 1
    assert outcome.begin(tmp_path) == 1
    assert await supervised.node.reload() == 2
    outcome.end(tmp_path, 1)
    assert await supervised.node.reload() == 2
    assert supervised.asked == 3


@pytest.mark.parametrize("end", ["stop", "hand_over"])
async def test_a_worker_that_goes_asks_nobody_for_a_reload(tmp_path, end):
    supervised = Supervised(tmp_path)
    getattr(supervised.mode, end)()
    with pytest.raises(RuntimeUnavailable, match="ask again in a moment"):
        await supervised.node.reload()
    assert supervised.asked == 0
