"""Removals that take long: joined, hastened and left alone while calls and jobs end."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from agent.aio.tasks import spawn
from agent.errors import NotFound, RuntimeUnavailable
from tests.component.deploy_house import Town
from tests.component.function_house import call, turns, until


@pytest.fixture
async def town(tmp_path):
    async with Town(tmp_path) as found:
        yield found


async def job(town):
    """Deploy a job, start it, and return its run."""
    await town.deploy("j", contract="fc2", kind="job", port=None)
    target = town.catalog.find("j", "")
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


@pytest.fixture
def at_once(monkeypatch):
    """Removals are late as soon as they have to wait."""
    monkeypatch.setattr("agent.deployments.deploy._longest_end_s", lambda version: 0.0)
    monkeypatch.setattr("agent.deployments.deploy.REMOVE_SLACK_S", 0.05)


async def test_remove_answers_success_while_instances_still_drain(town, at_once):
    run = await job(town)
    id = run.instance.id
    with pytest.raises(RuntimeUnavailable, match=f"but {id} did not end .* removal goes on"):
        await town.deployer.remove("j", force=False)
    assert run.record.state == "Running"
    # It goes on: who asks again joins it, and hears the same as long as it is not over.
    with pytest.raises(RuntimeUnavailable, match="goes on"):
        await town.deployer.remove("j", force=False)
    # Nobody gets between: what comes after is another function.
    after = spawn("deploy", town.deploy("j"))
    await turns()
    assert not after.done()
    run.instance.container.die(0)
    async with asyncio.timeout(20):
        assert (await after).version.version == 1
    assert run.record.state == "Succeeded"
    assert town.deployed() == await town.stored() == {"j": (1, [1])}


async def test_a_late_removal_can_be_forced(town, at_once):
    await town.deploy("j")
    target = town.catalog.find("j", "")
    lease = await town.lease(target)
    with pytest.raises(RuntimeUnavailable, match=lease.endpoint.id):
        await town.deployer.remove("j", force=False)
    assert town.held() != {}
    with contextlib.suppress(RuntimeUnavailable):  # a kill takes a moment as well
        await town.deployer.remove("j", force=True)
    await until(lambda: not town.deployer._removals)
    assert ("kill", lease.endpoint.id) in town.did
    target.release(lease, call())
    assert town.held() == {}
