"""The agent as one object: what it asks of several rooms at once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

from agent.calls.job import JobRunner
from agent.control.health import Health
from agent.deployments.catalog import Catalog
from agent.errors import AlreadyExists
from agent.node.local import LocalNode
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
    return LocalNode(
        SimpleNamespace(
            config=SimpleNamespace(paths=SimpleNamespace(data=Path("/nowhere"))),
            containerd=None,
            images=None,
            catalog=house.catalog,
            runners=SimpleNamespace(jobs=house.jobs, fleet=house.fleet),
            calls=house.calls,
        ),
        Health(),
    )


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
