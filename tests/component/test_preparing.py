"""Versions deployed before their image is here: Preparing, then Ready or Failed."""

from __future__ import annotations

import asyncio
import sqlite3
from dataclasses import replace

import pytest

from agent.aio.tasks import spawn
from agent.deployments import preparing
from agent.errors import FunctionFailed, NotFound, RuntimeUnavailable
from agent.model.failure import FailureKind
from tests.component.deploy_house import Town, record
from tests.component.function_house import IMAGE, Caller, call, until

NAME = "docker.io/library/x:1"
SECOND = "docker.io/library/y:1"


@pytest.fixture
async def town(tmp_path):
    async with Town(tmp_path) as found:
        found.far = {NAME: IMAGE, SECOND: replace(IMAGE, digest="sha256:9")}
        found.images[SECOND] = found.far[SECOND]
        found.gate = found.points.hang["pull"] = asyncio.Event()
        yield found
        found.gate.set()
        await found.deployer.leave()


def target(town, number=1):
    return town.catalog.get("f").versions[number]


def state(town, number=1):
    return target(town, number).version.state


async def settled(town, number=1):
    await until(lambda: state(town, number) != "Preparing")
    return state(town, number)


async def test_a_deploy_that_does_not_wait_answers_before_the_image_is_here(town):
    done = await town.deploy()
    assert (done.created, done.version.state) == (True, "Preparing")
    assert done.version.image.digest == IMAGE.digest
    assert town.deployed() == await town.stored() == {"f": (1, [1])}
    town.gate.set()
    assert await settled(town) == "Ready"
    (stored,) = await town.store.load()
    assert [version.state for version in stored.versions] == ["Ready"]


async def test_what_is_here_already_is_ready_at_once(town):
    town.gate.set()
    await town.deploy("g", wait=True)
    assert (await town.deploy()).version.state == "Ready"


async def test_a_call_waits_for_the_image(town):
    await town.deploy()
    caller = Caller()
    assert target(town).acquire(caller) is None
    town.gate.set()
    lease = await caller.answer()
    target(town).release(lease, call())


async def test_a_call_that_is_not_to_wait_is_refused(town):
    await town.deploy(wait_for_image=False)
    with pytest.raises(FunctionFailed) as refused:
        target(town).acquire(Caller())
    assert refused.value.failure.kind is FailureKind.IMAGE_UNAVAILABLE
    assert refused.value.failure.retry_after_s > 0
    town.gate.set()
    assert await settled(town) == "Ready"
    assert target(town).acquire(Caller()) is None


async def test_an_image_that_does_not_come_fails_the_version_and_who_waits(town):
    await town.deploy()
    caller = Caller()
    target(town).acquire(caller)
    town.points.fail["pull"] = NotFound("the registry has lost it")
    town.gate.set()
    assert await caller.answer() is FailureKind.IMAGE_UNAVAILABLE
    assert (await settled(town), target(town).version.reason) == (
        "Failed",
        "the registry has lost it",
    )
    (stored,) = await town.store.load()
    assert [version.reason for version in stored.versions] == ["the registry has lost it"]
    with pytest.raises(FunctionFailed, match="the registry has lost it"):
        target(town).acquire(Caller())


async def test_a_failed_version_is_tried_again_by_an_equal_deploy(town):
    await town.deploy()
    town.points.fail["pull"] = NotFound("the registry has lost it")
    town.gate.set()
    assert await settled(town) == "Failed"
    again = await town.deploy()
    assert (again.created, again.version.version) == (False, 1)
    assert await settled(town) == "Ready"


async def test_a_deploy_right_after_a_failure_is_not_lost(town):
    await town.deploy()
    caller = Caller()
    target(town).acquire(caller)
    town.points.fail["pull"] = NotFound("the registry has lost it")
    town.gate.set()
    assert await caller.answer() is FailureKind.IMAGE_UNAVAILABLE
    assert "prepare f 1" in {task.get_name() for task in asyncio.all_tasks()}  # not ended
    await town.deploy()
    assert await settled(town) == "Ready"


async def test_an_equal_deploy_joins_what_is_under_way(town):
    await town.deploy()
    assert (await town.deploy()).created is False
    waiting = spawn("deploy", town.deploy(wait=True))
    town.gate.set()
    done = await waiting
    assert (done.version.version, done.version.state) == (1, "Ready")
    assert town.deployed() == {"f": (1, [1])}


async def test_what_serves_stays_latest_until_what_follows_it_can(town):
    town.gate.set()
    await town.deploy(wait=True, scaling={"min": 1})
    town.gate.clear()
    await town.deploy(image="y:1", scaling={"min": 1})
    assert town.deployed() == await town.stored() == {"f": (1, [1, 2])}
    caller = Caller()
    lease = town.catalog.find("f", "LATEST").acquire(caller)
    assert lease is not None
    target(town).release(lease, call())
    assert (await town.deploy(image="y:1", scaling={"min": 1})).version.version == 2
    town.gate.set()
    await until(lambda: town.deployed() == {"f": (2, [1, 2])})
    assert await town.stored() == {"f": (2, [1, 2])}
    target(town, 2).tick(town.fleet.now())
    await until(lambda: target(town, 2).pool.ready_count == 1)


async def test_what_follows_and_fails_leaves_latest_alone(town):
    town.gate.set()
    await town.deploy(wait=True)
    town.gate.clear()
    await town.deploy(image="y:1")
    town.points.fail["pull"] = RuntimeUnavailable("cut off")
    del town.images[SECOND]
    town.gate.set()
    assert await settled(town, 2) == "Failed"
    assert town.deployed() == await town.stored() == {"f": (1, [1, 2])}


async def test_a_removal_ends_what_is_under_way(town):
    await town.deploy()
    await town.points.reached("pull")
    await town.deployer.remove("f", force=False)
    assert town.deployed() == await town.stored() == {}
    town.gate.set()
    with pytest.raises(NotFound):
        town.catalog.get("f")


async def test_a_worker_that_ends_leaves_the_version_preparing(town):
    await town.deploy()
    await town.points.reached("pull")
    await town.deployer.leave()
    assert state(town) == "Preparing"
    (stored,) = await town.store.load()
    assert [version.state for version in stored.versions] == ["Preparing"]


async def test_a_job_waits_for_the_image(town):
    await town.deploy("f", kind="job", contract="fc2", port=None)
    waiting = spawn("wait", target(town).image_here())
    await asyncio.sleep(0)
    assert not waiting.done()
    town.gate.set()
    await waiting


# -- what goes wrong in between


async def test_an_unexpected_error_fails_the_version_instead_of_leaving_it_preparing(town):
    await town.deploy()
    town.points.fail["pull"] = KeyError("layer")
    town.gate.set()
    assert await settled(town) == "Failed"
    assert "KeyError" in target(town).version.reason


async def test_a_store_that_is_full_for_a_while_costs_a_while(town, monkeypatch):
    monkeypatch.setattr(preparing, "STORE_AGAIN_S", 0.001)
    await town.deploy()
    town.points.fail["put"] = sqlite3.OperationalError("database or disk is full")
    town.gate.set()
    assert await settled(town) == "Ready"
    (stored,) = await town.store.load()
    assert [version.state for version in stored.versions] == ["Ready"]


async def test_a_removal_that_the_store_refuses_leaves_the_image_on_its_way(town):
    await town.deploy()
    await town.points.reached("pull")
    town.points.fail["remove"] = RuntimeUnavailable("disk full")
    with pytest.raises(RuntimeUnavailable, match="disk full"):
        await town.deployer.remove("f", force=False)
    town.gate.set()
    assert await settled(town) == "Ready"


async def test_a_deploy_again_that_fails_leaves_the_image_on_its_way(town):
    await town.deploy()
    await town.points.reached("pull")
    town.records[NAME] = record(IMAGE.digest)  # somebody else has brought it
    town.points.fail["check"] = RuntimeUnavailable("busy")
    with pytest.raises(RuntimeUnavailable, match="busy"):
        await town.deploy()
    assert state(town) == "Preparing"
    town.gate.set()
    assert await settled(town) == "Ready"


async def test_a_failed_version_that_is_deployed_again_is_preparing_for_the_next_worker_too(town):
    await town.deploy()
    town.points.fail["pull"] = NotFound("the registry has lost it")
    town.gate.set()
    assert await settled(town) == "Failed"
    town.gate.clear()
    await town.deploy()
    (stored,) = await town.store.load()
    assert [(one.state, one.reason) for one in stored.versions] == [("Preparing", "")]


async def test_an_image_is_held_from_its_deploy_until_its_version_is_settled(town):
    """Its tag has moved since it was seen: nothing but the deploy holds what was pulled then."""
    use = town.catalog.image_use
    moved = replace(IMAGE, digest="sha256:8", chain_id="sha256:moved")
    await town.deploy()
    assert use.relies_on(NAME)
    await town.points.reached("pull")
    town.images[NAME] = moved
    put = town.points.hang["put"] = asyncio.Event()
    town.gate.set()
    await until(lambda: town.points.passed.count("put") == 2)
    assert moved.chain_id in use.layers
    put.set()
    assert await settled(town) == "Ready"
    assert target(town).pull is not None
    await until(lambda: not use.relies_on(NAME))
