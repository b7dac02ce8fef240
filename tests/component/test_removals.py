"""Removals that take long: joined, hastened and left alone while calls and jobs end."""

from __future__ import annotations

import asyncio

import pytest

from agent.aio.tasks import spawn
from agent.errors import NotFound, RuntimeUnavailable
from tests.component.function_house import call, turns
from tests.component.test_deployer import Town


@pytest.fixture
async def town(tmp_path):
    async with Town(tmp_path) as found:
        yield found


async def job(town):
    """Deploy a job, start it, and return its run."""
    await town.deploy("j", contract="fc2", kind="job", port=None)
    target = town.registry.find("j", "")
    run = await town.jobs.run(target, call(), b"")
    await run.started
    return run


async def removal(town, *, force=False):
    """Begin to remove the job and return when calls no longer find it."""
    task = spawn("remove", town.deployer.remove("j", force=force))
    async with asyncio.timeout(20):
        while "j" in town.deployed():
            await turns()
    return task


async def test_force_ends_what_an_earlier_removal_waits_for(town):
    run = await job(town)
    patient = await removal(town)
    assert not patient.done()
    async with asyncio.timeout(20):
        await town.deployer.remove("j", force=True)
        await patient
    assert run.record.state == "Stopped"
    assert town.held() == {}
    assert await town.stored() == {}


async def test_a_removal_goes_on_when_its_caller_has_gone_and_can_be_joined(town):
    run = await job(town)
    patient = await removal(town)
    patient.cancel()
    await turns()
    joined = spawn("join", town.deployer.remove("j", force=False))
    await turns()
    assert not joined.done()
    run.instance.container.die(0)
    async with asyncio.timeout(20):
        await joined
    assert run.record.state == "Succeeded"
    assert town.held() == {}
    with pytest.raises(NotFound):
        await town.deployer.remove("j", force=True)


async def test_who_joined_a_removal_that_failed_tries_again(town):
    run = await job(town)
    gate = town.points.hang["remove"] = asyncio.Event()
    town.points.fail["remove"] = RuntimeUnavailable("disk full")
    first = spawn("remove", town.deployer.remove("j", force=False))
    await town.points.reached("remove")
    second = spawn("join", town.deployer.remove("j", force=True))
    await turns()
    gate.set()
    with pytest.raises(RuntimeUnavailable):
        await first
    # Nothing was ended for a removal that did not come about.
    assert run.record.state == "Running"
    await second
    assert run.record.state == "Stopped"
    assert town.deployed() == await town.stored() == town.held() == {}
