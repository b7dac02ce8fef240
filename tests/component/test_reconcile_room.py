"""The control cycle over a real plan: adoption, removal, and what it must never touch."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from agent.aio.tasks import spawn, stop
from agent.containerd.tasks import TaskStatus
from agent.errors import FunctionFailed, NotFound, RuntimeUnavailable
from agent.model.records import CallRecord
from agent.recovery.reconcile import LOST
from tests.component.function_house import Caller, call, until
from tests.component.reconcile_house import Node, gone, settled


@pytest.fixture
async def node(tmp_path):
    async with Node(tmp_path) as found:
        yield found


# -- start-up


async def test_what_serves_is_adopted_and_what_nobody_owns_is_removed(node):
    target = node.deploy()
    node.left("f-good")
    node.left("f-starting", state="creating", number=6)
    node.left("f-stopping", state="stopping", number=7)
    node.left("f-dead", task=TaskStatus.STOPPED, number=8)
    node.left("f-nothing", task=None, number=9)
    node.left("g-unwanted", function="g", number=10)
    node.others["stranger"] = TaskStatus.CREATED
    await settled(node)
    assert list(node.fleet.admission.instances) == ["f-good"]
    assert node.records() == ["f-good"]
    removed = {"f-starting", "f-stopping", "f-dead", "f-nothing", "g-unwanted", "stranger"}
    assert set(node.builder.foreign) == removed
    assert node.reconciler.sentence.endswith("adopted 1 instance")
    lease = await node.lease(target)
    assert lease.endpoint.id == "f-good"
    target.release(lease, call())
    await gone(node, target)


async def test_nothing_is_removed_before_everything_is_adopted(node):
    target = node.deploy()
    node.left("f-good")
    node.others["stranger"] = TaskStatus.RUNNING
    await node.reconciler.adopt()
    assert node.builder.foreign == []
    await node.reconciler.clear()
    assert node.builder.foreign == ["stranger"]
    await gone(node, target)


@pytest.mark.parametrize("error", [NotFound("its process is gone"), KeyError("ours")])
async def test_one_instance_that_cannot_be_adopted_holds_up_no_other(node, error):
    target = node.deploy()
    node.left("f-bad")
    node.left("f-good", number=6)
    node.builder.fails = [error]
    await settled(node)
    assert len(node.fleet.admission.instances) == 1
    assert len(node.builder.foreign) == 1
    assert node.records() == list(node.fleet.admission.instances)
    await gone(node, target)


async def test_what_cannot_be_removed_keeps_its_record_for_the_next_cycle(node):
    node.left("f-old")
    node.points.fail["remove_leftover"] = RuntimeUnavailable("containerd is away")
    await settled(node)
    assert node.records() == ["f-old"]
    await node.reconciler.cycle()
    assert node.records() == []


async def test_versions_are_loaded_and_only_latest_keeps_its_minimum(node):
    versions = [node.target(version=n, scaling={"min": 1}).version for n in (1, 2, 3)]
    node.stored = [SimpleNamespace(name="f", latest=2, versions=versions)]
    await node.reconciler.load()
    function = node.catalog.get("f")
    assert function.latest == 2
    assert [function.versions[n].pool.policy.min for n in (1, 2, 3)] == [0, 1, 0]


def stored(node, *versions, latest):
    node.stored = [SimpleNamespace(name="f", latest=latest, versions=versions)]


def unreadable(node, number=2, **fields):
    version = node.target(version=number, **fields).version
    return replace(version, image=None, state="Failed", reason="its spec is not valid any more")


async def test_a_latest_that_is_not_valid_any_more_stays_latest_and_tells_why(node, caplog):
    stored(node, node.target().version, unreadable(node, scaling={"min": 1}), latest=2)
    await node.reconciler.load()
    function = node.catalog.get("f")
    assert (function.latest, function.current.version.state) == (2, "Failed")
    assert "its spec is not valid any more" in caplog.text
    caller = Caller()
    with pytest.raises(FunctionFailed, match="not valid any more"):
        node.catalog.find("f", "").acquire(caller)
    await node.reconciler.cycle()  # its minimum is not asked for again and again
    assert node.reconciler.sentence == "everything is as wanted"
    assert node.builder.built == []
    lease = await node.lease(node.catalog.find("f", "1"))
    function.versions[1].release(lease, call())
    await gone(node, *node.catalog.targets())


async def test_instances_of_a_version_that_cannot_be_read_are_not_taken_over(node):
    stored(node, unreadable(node, 1), latest=1)
    node.left("f-old")
    await node.reconciler.load()
    await settled(node)
    assert node.builder.foreign == ["f-old"]
    assert node.held() == {}


async def test_a_version_whose_image_has_vanished_says_so_but_keeps_what_runs(node, caplog):
    stored(node, node.target(scaling={"min": 1}).version, latest=1)
    node.snapshots = []
    node.left("f-good")
    await node.reconciler.load()
    await settled(node)
    target = node.catalog.find("f", "")
    assert target.version.state == "Failed"
    assert "image x:1" in target.version.reason
    assert "deploy f again" in target.version.reason
    assert target.version.reason in caplog.text
    lease = await node.lease(target)
    with pytest.raises(FunctionFailed, match="image x:1"):
        target.acquire(Caller())
    target.release(lease, call())
    await gone(node, target)


async def test_a_job_goes_on_and_one_that_did_not_survive_has_failed(node):
    node.catalog.put(node.target(contract="scf-job", kind="job"), latest=True)
    node.left("f-alive")
    node.left("f-unknown", number=6)
    now_ns = time.time_ns()
    node.unfinished = [
        CallRecord("j-1", "f", 1, "f-alive", "Running", now_ns, started_ns=now_ns),
        CallRecord("j-2", "f", 1, "f-lost", "Running", now_ns, started_ns=now_ns),
    ]
    await settled(node)
    assert node.jobs.find("j-1") is not None
    assert (node.saved["j-2"].state, node.saved["j-2"].error) == ("Failed", LOST)
    assert node.builder.foreign == ["f-unknown"]  # a job nobody waits for
    node.builder.alive["f-alive"].die(0)
    await until(lambda: node.saved.get("j-1") is not None)
    assert node.saved["j-1"].state == "Succeeded"
    await until(lambda: node.held() == {})


# -- the cycle


async def test_a_quiet_node_is_left_alone(node):
    target = node.deploy(scaling={"min": 1})
    target.tick(node.fleet.now())
    await until(lambda: target.pool.ready_count == 1)
    await node.reconciler.cycle()
    assert node.reconciler.sentence == "everything is as wanted"
    assert node.builder.foreign == []
    await gone(node, target)


async def test_the_minimum_is_restored(node):
    target = node.deploy(scaling={"min": 2})
    await node.reconciler.cycle()
    assert "scaling.min" in node.reconciler.sentence
    await until(lambda: target.pool.ready_count == 2)
    await gone(node, target)


@pytest.mark.parametrize("step", ["build", "create", "start", "socket"])
async def test_an_instance_that_is_being_started_is_never_touched(node, step):
    target = node.deploy()
    gate = node.points.hang[step] = asyncio.Event()
    caller = node.wait(target)
    await node.points.reached(step)
    await node.reconciler.cycle()
    await node.reconciler.cycle()
    assert node.builder.foreign == []
    gate.set()
    target.release(await caller.answer(), call())
    await gone(node, target)


@pytest.mark.parametrize("step", ["signal", "destroy"])
async def test_an_instance_that_is_being_stopped_is_never_touched(node, step):
    target = node.deploy()
    target.release(await node.lease(target), call())
    gate = node.points.hang[step] = asyncio.Event()
    ending = asyncio.gather(target.stop(grace_s=None))
    await node.points.reached(step)
    await node.reconciler.cycle()
    assert node.builder.foreign == []
    gate.set()
    await ending
    assert node.held() == {}


@pytest.mark.parametrize("step", ["containers.list", "tasks.list"])
async def test_what_begins_or_ends_during_the_look_is_not_judged_by_it(node, step):
    target = node.deploy()
    ends = await node.lease(target)
    starting = node.points.hang["create"] = asyncio.Event()
    node.wait(target)
    await node.points.reached("create")
    gate = node.points.hang[step] = asyncio.Event()
    cycle = asyncio.gather(node.reconciler.cycle())
    await node.points.reached(step)
    target.release(ends, call(), recycle=True)  # gone before the look is over
    starting.set()  # serves before the look is over
    await until(lambda: ends.endpoint.id not in node.fleet.admission.instances)
    await until(lambda: target.pool.ready_count == 1)
    gate.set()
    await cycle
    assert node.builder.foreign == []
    assert node.reconciler.sentence == "everything is as wanted"
    await gone(node, target)


async def test_what_serves_here_is_its_targets_to_end_even_when_nobody_wants_it(node):
    target = node.deploy()
    target.release(await node.lease(target), call())
    node.catalog.remove("f")
    await node.reconciler.cycle()
    assert node.builder.foreign == []
    assert target.pool.ready_count == 1
    await gone(node, target)


async def test_a_cycle_that_fails_says_so_and_the_next_one_runs(node, monkeypatch):
    monkeypatch.setattr("agent.recovery.reconcile.CYCLE_S", 0.001)
    node.points.fail["containers.list"] = RuntimeUnavailable("containerd is away")
    running = spawn("cycle", node.reconciler.run())
    await until(lambda: "containerd is away" in node.reconciler.sentence)
    node.points.fail["tidy"] = KeyError("ours")
    await until(lambda: "ours" in node.reconciler.sentence)
    await until(lambda: node.reconciler.sentence == "everything is as wanted")
    await stop(running)
