"""The control cycle beside another worker: what is that one's, and what is left when it dies."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import replace

import pytest

from agent.aio.tasks import spawn, stop
from agent.containerd.tasks import TaskStatus
from agent.core.instance import State
from agent.errors import RuntimeUnavailable
from agent.model.records import CallRecord
from agent.store.ledger import Ledger
from tests.component.function_house import call, turns, until
from tests.component.reconcile_house import Node, gone, settled


@pytest.fixture
async def node(tmp_path):
    async with Node(tmp_path) as found:
        yield found


class Before:
    """The worker before: a real process, and its lane in the ledger."""

    def __init__(self, node, monkeypatch):
        self.process = subprocess.Popen(["/bin/sleep", "60"])
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: self.process.pid)
            self.ledger = Ledger.open(node.path / "ledger", 128)
        first = node.ledger.generation
        node.ledger.close()
        node.ledger = Ledger.open(node.path / "ledger", 128)
        node.ledger.forget(first)
        node.reconcile_anew()
        self.generation = self.ledger.generation

    def die(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def before(node, monkeypatch):
    found = Before(node, monkeypatch)
    yield found
    found.die()
    found.ledger.close()


@pytest.fixture
async def following(node, before):
    """What follows other workers, begun by calling it."""
    begun = []

    def begin():
        records = node.reconciler._files.some
        begun.append(spawn("follow", node.reconciler.others.follow(records)))

    yield begin
    await stop(*begun)


def forgotten(node):
    return node.ledger.others() == []


async def test_calls_of_a_living_worker_hold_their_places_until_they_end(node, before, following):
    target = node.deploy(concurrency=2, scaling={"max": 1})
    node.left("f-good")
    before.ledger.row(5).begin()
    before.ledger.row(5).begin()
    await settled(node)
    [member] = target.pool.members
    assert member.inflight == 2
    following()
    before.ledger.row(5).end()
    await until(lambda: member.inflight == 1)
    before.ledger.row(5).end()
    await until(lambda: member.inflight == 0)
    await gone(node, target)


@pytest.mark.parametrize(("concurrency", "recycled"), [(1, True), (2, False)])
async def test_a_worker_that_dies_in_a_call_leaves_a_doubtful_instance(
    node, before, following, concurrency, recycled
):
    target = node.deploy(concurrency=concurrency)
    node.left("f-good")
    before.ledger.row(5).begin()
    await settled(node)
    following()
    await turns()
    before.die()
    await until(lambda: forgotten(node))
    [member] = target.pool.members
    assert (member.instance.state is not State.READY) is recycled
    if not recycled:
        assert member.inflight == 0
    await gone(node, target)


async def test_a_cycle_does_not_forget_a_dead_workers_calls_before_they_are_judged(
    node, before, following
):
    target = node.deploy(concurrency=1)
    node.left("f-good")
    before.ledger.row(5).begin()
    await settled(node)
    following()
    await turns()
    before.die()
    await node.reconciler.cycle()  # comes before the next look at those calls
    await until(lambda: forgotten(node))
    [member] = target.pool.members
    assert member.instance.state in (State.DRAINING, State.STOPPING)
    await gone(node, target)


async def test_who_dies_right_after_its_instance_served_leaves_it_in_a_call(
    node, before, following
):
    target = node.deploy(concurrency=1)
    record = node.left("f-coming", state="initializing", owner=before.generation)
    await settled(node)
    before.ledger.row(5).begin()
    node.files.save(replace(record, state="ready"))
    before.die()
    following()
    await until(lambda: forgotten(node))
    [member] = target.pool.members
    assert member.instance.id == "f-coming"
    assert member.instance.state in (State.DRAINING, State.STOPPING)
    await gone(node, target)


async def test_what_cannot_be_taken_over_at_once_is_the_next_cycles(node, before, following):
    target = node.deploy()
    record = node.left("f-coming", state="initializing", owner=before.generation)
    await settled(node)
    node.points.fail["unfinished"] = RuntimeUnavailable("the store does not answer")
    following()
    node.files.save(replace(record, state="ready"))
    await until(lambda: node.fleet.admission.instances == {})
    assert node.reconciler.others.instances == frozenset()
    assert target.pool.starting == 0
    await node.reconciler.cycle()
    assert list(node.fleet.admission.instances) == ["f-coming"]
    await gone(node, target)


async def test_after_a_kill_instances_in_a_call_are_not_adopted(node, before):
    target = node.deploy(concurrency=1)
    node.left("f-busy")
    node.left("f-idle", number=6)
    before.ledger.row(5).begin()
    before.die()
    await settled(node)
    assert list(node.fleet.admission.instances) == ["f-idle"]
    assert node.builder.foreign == ["f-busy"]
    assert forgotten(node)
    await gone(node, target)


async def test_the_cycle_runs_while_the_worker_before_still_lives(node, before, monkeypatch):
    monkeypatch.setattr("agent.recovery.reconcile.CYCLE_S", 0.001)
    target = node.deploy(concurrency=2)
    node.left("f-good")
    before.ledger.row(5).begin()
    await settled(node)
    node.others["stranger"] = TaskStatus.RUNNING
    running = spawn("cycle", node.reconciler.run())
    await until(lambda: "stranger" in node.builder.foreign)
    await stop(running)
    await gone(node, target)


@pytest.mark.parametrize("state", ["creating", "starting", "initializing", "draining", "stopping"])
async def test_what_the_worker_before_still_starts_or_ends_is_not_stopped(
    node, before, following, state
):
    target = node.deploy()
    node.left("f-theirs", state=state, task=TaskStatus.CREATED, owner=before.generation)
    await settled(node)
    await node.reconciler.cycle()
    assert node.builder.foreign == []
    assert node.builder.reserved == {"f-theirs": 5}
    assert list(node.fleet.admission.instances) == ["f-theirs"]
    assert node.fleet.admission.use.memory_bytes == target.version.spec.memory_bytes
    following()
    node.files.remove("f-theirs")
    await until(lambda: node.builder.reserved == {})
    assert list(node.fleet.admission.instances) == []
    await gone(node, target)


async def test_what_the_worker_before_starts_serves_here_as_soon_as_it_is_ready(
    node, before, following
):
    target = node.deploy(scaling={"max": 1})
    record = node.left("f-coming", state="initializing", owner=before.generation)
    await settled(node)
    following()
    caller = node.wait(target)
    assert node.builder.built == [], "it is expected: no further one is started"
    node.files.save(replace(record, state="ready"))
    lease = await caller.answer()
    assert lease.endpoint.id == "f-coming"
    target.release(lease, call())
    await gone(node, target)


async def test_who_waits_for_a_start_that_fails_elsewhere_gets_one_here(node, before, following):
    target = node.deploy(scaling={"max": 1})
    node.left("f-coming", state="starting", owner=before.generation)
    await settled(node)
    following()
    caller = node.wait(target)
    node.files.remove("f-coming")
    lease = await caller.answer()
    assert lease.endpoint.id != "f-coming"
    target.release(lease, call())
    await gone(node, target)


async def test_what_a_worker_leaves_half_started_when_it_dies_is_cleared(node, before, following):
    target = node.deploy()
    node.left("f-half", state="starting", owner=before.generation)
    await settled(node)
    following()
    before.die()
    await until(lambda: node.reconciler.others.instances == frozenset())
    await node.reconciler.cycle()
    assert node.builder.foreign == ["f-half"]
    assert node.builder.reserved == {}
    assert node.records() == []
    await gone(node, target)


async def test_what_cannot_be_cleared_keeps_its_slots_and_its_record(node):
    target = node.deploy()
    node.left("f-stuck", state="stopping")
    node.points.fail["remove_leftover"] = RuntimeUnavailable("f-stuck: cgroup could not be removed")
    await settled(node)
    assert node.builder.reserved == {"f-stuck": 5}
    assert node.records() == ["f-stuck"]
    await node.reconciler.cycle()
    assert node.builder.reserved == {}
    assert node.records() == []
    await gone(node, target)


async def test_a_job_whose_caller_waits_elsewhere_is_left_there_until_that_worker_dies(
    node, before, following
):
    node.deploy("j", kind="job", contract="scf-job")
    node.left("j-kept", function="j", owner=before.generation, kept=True)
    node.unfinished.append(CallRecord("c-1", "j", 1, "j-kept", "Running", time.time_ns()))
    await settled(node)
    following()
    await turns()
    assert node.jobs.running == 0
    assert node.saved == {}, "it is not lost"
    before.die()
    await until(lambda: node.jobs.find("c-1") is not None)
    node.builder.alive["j-kept"].die(0)
    await until(lambda: node.jobs.running == 0)
    assert node.saved["c-1"].state == "Succeeded"
