"""Idle instances are frozen and thawed: when, in which order beside hooks, ends and new workers."""

from __future__ import annotations

import asyncio

import pytest

from agent.core.instance import State
from agent.instances.handover import hand_over
from agent.node.facts import Watcher
from agent.node.local import _instance_view
from agent.store.ledger import Ledger
from agent.telemetry.events import Events
from agent.telemetry.metrics import AgentMetrics
from tests.component.function_house import Caller, House, call, container_of, gone, turns, until
from tests.component.reconcile_house import Node

REST_S = 60
COLD = {"freeze_after_ms": REST_S * 1000}
"""Long enough for no test to be overtaken by the clock; time is skipped."""
HOOKED = {"contract": "fc2", "hooks": {"pre_freeze": {"timeout_s": 5}}, "scaling": COLD}


@pytest.fixture
async def house(tmp_path):
    async with House(tmp_path) as found:
        yield found


async def used(house, target):
    """Have one call made; return its instance, which is idle then."""
    lease = await house.lease(target)
    target.release(lease, call())
    return lease.member.instance


def rest(house, seconds=REST_S + 1):
    """Let so much time pass, and have the one timer look."""
    house.skip(seconds)
    house.freezing.look()


def did(house, *names):
    return [name for name, _ in house.did if name.split()[0] in names]


async def test_an_idle_instance_is_frozen_and_the_next_call_thaws_it_first(house):
    target = house.target(scaling=COLD)
    instance = await used(house, target)
    rest(house, REST_S - 1)
    assert not instance.frozen
    rest(house, 2)
    assert instance.frozen
    assert instance.id in house.cold
    assert instance.state is State.READY
    assert _instance_view(instance, 0).state == "FROZEN"
    lease = target.acquire(Caller())
    assert lease.endpoint is instance.endpoint
    assert house.cold == set()
    assert _instance_view(instance, 1).state == "READY"
    assert did(house, "freeze", "thaw") == ["freeze", "thaw"]
    target.release(lease, call())
    await gone(house, target)


async def test_a_warm_call_writes_no_freezer_file(house):
    target = house.target(scaling=COLD)
    await used(house, target)
    for _ in range(3):
        await used(house, target)
    assert did(house, "freeze", "thaw") == []
    await gone(house, target)


async def test_after_each_call_freezes_by_itself(house):
    target = house.target(scaling={"freeze_after_ms": 0})
    instance = await used(house, target)
    await until(lambda: instance.frozen)
    assert (await used(house, target)) is instance
    await until(lambda: instance.frozen)
    assert house.freezing.count == 2
    assert house.told.frozen == [instance.id]  # told once
    await gone(house, target)


@pytest.mark.parametrize(("after_ms", "frozen"), [(0, 0), (1, 1), (REST_S * 1000, 1)])
async def test_one_that_nobody_has_called_yet_is_frozen_unless_it_is_after_each_call(
    house, after_ms, frozen
):
    target = house.target(scaling={"freeze_after_ms": after_ms, "min": 1})
    target.scaling.scale(house.fleet.now())
    await until(lambda: target.pool.ready_count)
    rest(house)
    assert len(house.cold) == frozen
    await gone(house, target)


async def test_none_is_frozen_while_a_place_on_it_is_taken(house):
    target = house.target(concurrency=2, scaling={**COLD, "max": 1})
    one = await house.lease(target)
    other = target.acquire(Caller())
    target.release(one, call())
    rest(house)
    assert house.cold == set()
    target.release(other, call())
    rest(house)
    assert len(house.cold) == 1
    await gone(house, target)


async def test_none_is_frozen_between_two_calls_of_which_the_second_waits(house):
    target = house.target(scaling={**COLD, "max": 1})
    lease = await house.lease(target)
    waiting = house.wait(target)
    target.release(lease, call())
    rest(house)
    assert house.cold == set()
    target.release(waiting.lease, call())
    await gone(house, target)


@pytest.mark.parametrize(
    "fields",
    [
        {"scaling": {"freeze_after_ms": -1}},
        {"contract": "vercel"},
        {"contract": "scf-web", "kind": "http"},
    ],
)
async def test_where_the_policy_says_never_nothing_is_frozen(house, fields):
    target = house.target(**fields)
    assert target.version.spec.scaling.freeze_after_ms == -1
    if fields.get("contract") == "scf-web":
        return  # its port is fixed: no server of a test's can have it
    await used(house, target)
    rest(house)
    assert house.cold == set()
    await gone(house, target)


# -- what counts


async def test_a_frozen_instance_takes_memory_and_no_cpu(house):
    target = house.target(scaling=COLD, cpu_millis=700)
    await used(house, target)
    assert house.fleet.admission.use.cpu_millis == 700
    rest(house)
    use = house.fleet.admission.use
    assert (use.memory_bytes, use.cpu_millis, use.frozen) == (256 << 20, 0, 1)
    lease = target.acquire(Caller())
    assert house.fleet.admission.use.cpu_millis == 700
    target.release(lease, call())
    await gone(house, target)


async def test_a_frozen_instance_gives_way_before_one_that_is_idle_for_longer(tmp_path):
    async with House(tmp_path, instances=2) as house:
        warm = house.target("warm", scaling={"freeze_after_ms": -1})
        cold = house.target("cold", scaling=COLD)
        house.targets += [warm, cold]
        longest = await used(house, warm)
        house.skip(5)
        frozen = await used(house, cold)
        rest(house)
        third = house.target("third")
        lease = await house.lease(third)
        assert frozen.id not in house.builder.alive
        assert longest.id in house.builder.alive
        third.release(lease, call())
        await gone(house, warm, cold, third)


# -- ends


async def test_a_frozen_instance_is_thawed_before_its_pre_stop_hook_and_term(house):
    hooks = {"pre_stop": {"timeout_s": 5}}
    target = house.target(scaling=COLD, hooks=hooks)
    await used(house, target)
    rest(house)
    house.did.clear()
    await target.stop(grace_s=None)
    assert did(house, "thaw", "hook", "signal")[:3] == ["thaw", "hook", "signal 15"]
    assert house.cold == set()
    assert house.held() == {}


async def test_a_frozen_instance_that_is_killed_is_thawed_first(house):
    target = house.target(scaling=COLD)
    await used(house, target)
    rest(house)
    house.did.clear()
    await target.stop(grace_s=0.0)
    assert did(house, "thaw", "kill") == ["thaw", "kill"]
    assert house.held() == {}


async def test_a_frozen_instance_whose_process_ends_is_replaced_by_the_next_call(house):
    target = house.target(scaling=COLD)
    instance = await used(house, target)
    rest(house)
    house.builder.alive[instance.id].die(137, signal=9, out_of_memory=True)
    await until(lambda: instance.id not in house.builder.alive)
    lease = await house.lease(target)
    assert lease.endpoint.id != instance.id
    assert house.fleet.admission.use.frozen == 0
    target.release(lease, call())
    await gone(house, target)


async def test_one_that_ends_meanwhile_is_not_frozen(house):
    house.obeys_term = False
    target = house.target(scaling=COLD)
    instance = await used(house, target)
    target.scaling.retire(target.pool.members[0], grace_s=30.0)
    rest(house)
    assert not instance.frozen
    await gone(house, target)


async def test_an_instance_idle_for_too_long_ends_frozen_or_not(house):
    target = house.target(scaling={**COLD, "idle_s": 300})
    instance = await used(house, target)
    rest(house)
    assert instance.frozen
    house.skip(300)
    target.tick(house.fleet.now())
    await until(lambda: not house.builder.alive)
    assert house.cold == set()
    await gone(house, target)


# -- the pre-freeze hook


async def test_the_hook_runs_before_the_freeze_and_counts_in_the_ledger(house):
    target = house.target(**HOOKED)
    instance = await used(house, target)
    gate = house.points.hang["hook /pre-freeze"] = asyncio.Event()
    rest(house)
    await until(lambda: ("hook", "/pre-freeze") in house.did)
    assert not instance.frozen
    assert instance.calls.inflight == 1
    gate.set()
    await until(lambda: instance.frozen)
    assert instance.calls.inflight == 0
    assert did(house, "hook", "freeze") == ["hook", "freeze"]
    await gone(house, target)


@pytest.mark.parametrize("answer", [500, ConnectionResetError("gone")])
async def test_a_hook_that_fails_does_not_keep_an_instance_awake(house, answer):
    house.answers["/pre-freeze"] = answer
    target = house.target(**HOOKED)
    instance = await used(house, target)
    rest(house)
    await until(lambda: instance.frozen)
    await gone(house, target)


async def test_a_call_during_the_hook_is_served_and_the_freeze_waits_for_a_new_rest(house):
    target = house.target(**HOOKED)
    instance = await used(house, target)
    gate = house.points.hang["hook /pre-freeze"] = asyncio.Event()
    rest(house)
    await until(lambda: ("hook", "/pre-freeze") in house.did)
    lease = target.acquire(Caller())
    assert lease.endpoint is instance.endpoint
    gate.set()
    await until(lambda: instance.calls.inflight == 1)
    await turns()
    assert not instance.frozen
    target.release(lease, call())
    assert not instance.frozen
    rest(house)
    await until(lambda: instance.frozen)
    assert did(house, "hook", "freeze") == ["hook", "hook", "freeze"]
    await gone(house, target)


async def test_a_call_that_came_and_went_during_the_hook_begins_the_rest_anew(house):
    target = house.target(**HOOKED)
    instance = await used(house, target)
    gate = house.points.hang["hook /pre-freeze"] = asyncio.Event()
    rest(house)
    await until(lambda: ("hook", "/pre-freeze") in house.did)
    house.skip(1)
    assert (await used(house, target)) is instance
    rest(house)  # due again while the first hook is at it: no second one beside it
    await turns()
    assert did(house, "hook") == ["hook"]
    gate.set()  # it has rested since that call as well: its own hook, then
    await until(lambda: instance.frozen)
    assert did(house, "hook", "freeze") == ["hook", "hook", "freeze"]
    await gone(house, target)


async def test_an_end_breaks_the_hook_off(house):
    target = house.target(**HOOKED)
    instance = await used(house, target)
    house.points.hang["hook /pre-freeze"] = asyncio.Event()
    rest(house)
    await until(lambda: ("hook", "/pre-freeze") in house.did)
    async with asyncio.timeout(5):
        await target.stop(grace_s=None)
    assert not instance.frozen
    assert house.held() == {}


# -- other workers


async def test_who_has_handed_over_freezes_nothing_any_more(house):
    target = house.target(scaling=COLD)
    await used(house, target)
    hand_over(house.fleet, ())
    rest(house)
    assert house.cold == set()


@pytest.mark.parametrize("mid_freeze", [False, True])
async def test_the_next_worker_knows_what_is_frozen_and_thaws_it(tmp_path, mid_freeze):
    async with Node(tmp_path) as node:
        target = node.deploy(scaling=COLD)
        instance = await used(node, target)
        if mid_freeze:  # killed before it could note anything
            node.cold.add(instance.id)
        else:
            rest(node)
        assert not [one for one in node.files.each() if one.state != "ready"]
        node.ledger = Ledger.open(node.path / "ledger", 128)
        successor, found = await adopted_anew(node, target)
        assert found.frozen
        lease = successor.acquire(Caller())
        assert lease.endpoint.id == instance.id
        assert node.cold == set()
        successor.release(lease, call())
        rest(node)
        assert node.cold == {instance.id}
        await successor.stop(grace_s=0.0)


async def adopted_anew(node, target):
    """Be the next worker; return its target and the instance it has adopted."""
    (record,) = list(node.files.each())
    successor = node.target_of(target.version)
    successor.scaling._fleet.admission.instances.clear()
    instance = node.fleet.admission.make(
        record.id, successor.version, successor.contract, successor.log
    )
    instance.adopted(await node.builder.adopt(record, instance.sink, "all"), record)
    node.fleet.admission.adopt(instance)
    successor.scaling.adopt(instance, 0)
    return successor, instance


async def test_none_is_frozen_while_a_call_of_another_worker_is_on_it(house):
    target = house.target(scaling=COLD)
    await used(house, target)
    (member,) = target.pool.members
    await gone(house, target)
    successor = house.target(scaling=COLD)
    lease = await house.lease(successor)  # stands for theirs: the place is taken all the same
    instance = lease.member.instance
    rest(house)
    assert not instance.frozen
    successor.give_back(lease.member, 1)
    rest(house)
    assert instance.frozen
    assert container_of(house, lease).id == instance.id
    assert member.instance is not instance
    await gone(house, successor)


async def test_metrics_count_what_stands_still_and_how_often_that_began(house):
    metrics, events = AgentMetrics(), Events()
    watcher = Watcher(metrics, events)
    watcher.count_frozen(house.fleet)
    target = house.target(scaling=COLD)
    instance = await used(house, target)
    rest(house)
    await used(house, target)
    rest(house)
    page = (await metrics.render()).decode()
    assert "kindling_instances_frozen 1.0" in page
    assert "kindling_instance_freezes_total 2.0" in page
    watcher.instance_frozen(instance)
    happening = events.watch("", frozenset())
    watcher.instance_frozen(instance)
    event = await anext(happening)
    assert (event.type, event.subject.instance) == ("InstanceFrozen", instance.id)
    await gone(house, target)
