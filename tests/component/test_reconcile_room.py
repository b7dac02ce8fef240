"""The control cycle over a real plan: adoption, removal, and what it must never touch."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from agent.aio.tasks import spawn, stop
from agent.config import LazySettings
from agent.containerd.keyring import Keyring
from agent.containerd.tasks import Task, TaskStatus
from agent.core.instance import State
from agent.deployments.catalog import Catalog
from agent.deployments.deploy import Deployer, Runners, Stores
from agent.deployments.image_use import ImageUse
from agent.deployments.lazy_image import LazyImages
from agent.errors import FunctionFailed, NotFound, RuntimeUnavailable
from agent.model.records import CallRecord, InstanceRecord
from agent.recovery.reconcile import LOST, Reconciler
from agent.store.ledger import Ledger
from agent.telemetry.events import Events
from tests.component.function_house import IMAGE, Caller, House, call, turns, until


class Node(House):
    """A house with a reconciler; containerd shows what the fake builder has, and `others`."""

    async def __aenter__(self):
        self.catalog = Catalog()
        self.stored = []
        self.unfinished = []
        self.others = {}
        self.snapshots = [IMAGE.chain_id]
        containerd: Any = SimpleNamespace(
            containers=SimpleNamespace(list=self._containers),
            tasks=SimpleNamespace(list=self._tasks),
            snapshots=SimpleNamespace(list=self._list_snapshots),
            lazy=(),
            keyring=Keyring(),
        )
        functions: Any = SimpleNamespace(load=self._load)
        calls: Any = SimpleNamespace(unfinished=self._unfinished, save=self._save, lost=self._lost)
        prepared: Any = None  # nothing is mounted lazily
        lazy = LazyImages(LazySettings(), containerd, prepared, Events(), ImageUse())
        stores = Stores(functions, calls, containerd, lazy, self.logs, Events())
        runners = Runners(self.fleet, self.jobs, self.ports.builder)
        deployer = Deployer(self.config, self.catalog, runners, stores)
        self.parts = (self.catalog, deployer, runners, stores, self.files)
        self.reconcile_anew()
        return self

    def reconcile_anew(self):
        """Make the reconciler that a worker with the ledger of now has."""
        self.reconciler = Reconciler(*self.parts, self.ledger)

    async def _load(self):
        return self.stored

    async def _list_snapshots(self):
        return [SimpleNamespace(key=key) for key in self.snapshots]

    async def _unfinished(self):
        await self.points.at("unfinished")
        return tuple(self.unfinished)

    async def _lost(self, id, ended_ns, error):
        """As the store does it: what has ended meanwhile stays as it is."""
        for one in self.unfinished:
            if one.id == id and id not in self.saved:
                self.saved[id] = replace(one, state="Failed", ended_ns=ended_ns, error=error)

    async def _containers(self, filters):
        assert filters == ['labels."kindling.kind"==instance']
        await self.points.at("containers.list")
        return [SimpleNamespace(id=id) for id in [*self.builder.alive, *self.others]]

    async def _tasks(self):
        await self.points.at("tasks.list")
        found = dict.fromkeys(self.builder.alive, TaskStatus.RUNNING)
        return [Task(id, 1, status) for id, status in {**found, **self.others}.items() if status]

    def deploy(self, name="f", **fields):
        target = self.target(name, **fields)
        self.catalog.put(target, latest=True)
        return target

    def left(self, id, *, state="ready", task=TaskStatus.RUNNING, number=5, **fields):
        """An instance of a worker that is gone: its record, and its container."""
        record = InstanceRecord(
            id=id,
            function=fields.pop("function", "f"),
            version=1,
            row=number,
            network_slot=number,
            address="127.0.0.1",
            port=self.port,
            layer_kind="slot512",
            layer_slot=number,
            pid=1,
            state=state,
            created_ns=1,
            **fields,
        )
        self.files.save(record)
        if task is not None:
            self.others[id] = task
        return record

    def records(self):
        return [record.id for record in self.files.load()[0]]


@pytest.fixture
async def node(tmp_path):
    async with Node(tmp_path) as found:
        yield found


async def settled(node):
    await node.reconciler.adopt()
    await node.reconciler.clear()


async def gone(node, *targets):
    await asyncio.gather(*(target.stop(grace_s=0.0) for target in targets))
    assert node.held() == {}


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


# -- other workers


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
        records = node.reconciler._records
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
