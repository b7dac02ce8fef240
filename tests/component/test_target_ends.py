"""Instances of one function version: recycling, exits, idleness, worker swaps, the timer."""

from __future__ import annotations

import asyncio
import gc

import pytest

from agent.calls.target import FunctionTarget
from agent.core.instance import State
from agent.errors import FunctionFailed, RuntimeUnavailable
from agent.instances.handover import hand_over, starts_have_slots, unsettled
from agent.instances.timer import TICK_S
from agent.model.failure import Failure, FailureKind
from agent.model.records import InstanceRecord
from tests.component.function_house import (
    Caller,
    House,
    call,
    container_of,
    failing,
    gone,
    turns,
    until,
)


@pytest.fixture
async def house(tmp_path):
    async with House(tmp_path) as found:
        yield found


# -- recycling and exits


async def test_a_recycled_instance_is_killed_and_another_serves_who_waits(house):
    target = house.target(scaling={"max": 1})
    lease = await house.lease(target)
    caller = house.wait(target)
    target.release(lease, call(), Failure(FailureKind.TIMEOUT), recycle=True)
    other = await caller.answer()
    assert other.endpoint is not lease.endpoint
    assert ("kill", lease.endpoint.id) in house.did
    target.release(other, call())
    await gone(house, target)


async def test_recycling_lets_the_other_calls_on_the_instance_end(house):
    target = house.target(concurrency=2)
    lease = await house.lease(target)
    other = target.acquire(Caller())
    target.release(lease, call(), recycle=True)
    await turns()
    assert other.endpoint.id in house.builder.alive
    assert await house.lease(target) is not None  # a new instance: the old one takes no more
    target.release(other, call())
    await until(lambda: other.endpoint.id not in house.builder.alive)
    assert (f"signal {15}", other.endpoint.id) in house.did
    assert ("kill", other.endpoint.id) not in house.did


async def test_an_exit_while_serving_is_told_and_makes_room(house):
    target = house.target(scaling={"max": 1})
    lease = await house.lease(target)
    waiting = house.wait(target)
    container_of(house, lease).die(3)
    why = await target.explain(lease, 0.1)
    assert (why.kind, why.exit_code) == (FailureKind.EXITED, 3)
    target.release(lease, call(), why, recycle=True)
    other = await waiting.answer()
    assert other.endpoint is not lease.endpoint
    await until(lambda: len(house.fleet.admission.instances) == 1)
    assert house.told.ended == [(lease.endpoint.id, FailureKind.EXITED)]
    assert house.fleet.admission.use.memory_bytes == 256 << 20
    target.release(other, call())
    await gone(house, target)


async def test_a_release_after_the_instance_is_gone_disturbs_no_row(house):
    target = house.target()
    lease = await house.lease(target)
    container_of(house, lease).die(0)
    await until(lambda: house.builder.alive == {})
    house.ledger.row(1).begin()  # another instance has the row by now
    target.release(lease, call())
    assert house.ledger.row(1).inflight == 1
    house.ledger.row(1).end()
    await gone(house, target)


async def test_an_exit_and_an_output_nobody_reads_end_it_once(house, caplog):
    target = house.target()
    lease = await house.lease(target)
    container = container_of(house, lease)
    container.die(3)
    container.unread.set_result(None)
    await turns()
    target.release(lease, call(), recycle=True)
    await until(lambda: house.held() == {})
    assert house.told.ended == [(lease.endpoint.id, FailureKind.EXITED)]
    assert house.did.count(("destroy", lease.endpoint.id)) == 1
    await turns()
    assert not caplog.records


async def test_an_exit_while_draining_ends_it_once(house):
    target = house.target()
    lease = await house.lease(target)
    target.scaling.retire(lease.member)
    container_of(house, lease).die(9, signal=None)
    await until(lambda: house.held().keys() <= {"ledger"})
    target.release(lease, call())
    assert len(house.told.ended) == 1
    assert house.did.count(("destroy", lease.endpoint.id)) == 1
    assert house.held() == {}


async def test_why_a_call_broke(house):
    target = house.target()
    lease = await house.lease(target)
    house.sinks[lease.endpoint.id](line(b"about to burst"))
    container_of(house, lease).die(137, signal=9, out_of_memory=True)
    why = await target.explain(lease, 0.0)
    assert why.kind is FailureKind.OUT_OF_MEMORY
    assert "256 MB" in why.message
    assert why.log_lines[-1].endswith("about to burst")
    target.release(lease, call(), why)
    await until(lambda: house.held() == {})


async def test_a_living_instance_gave_a_bad_response(house, monkeypatch):
    monkeypatch.setattr("agent.calls.target.EXIT_S", 0.0)
    target = house.target()
    lease = await house.lease(target)
    assert (await target.explain(lease, 0.0)).kind is FailureKind.BAD_RESPONSE
    target.release(lease, call())
    await gone(house, target)


async def test_why_a_call_failed_counts_in_the_log_as_long_as_it_is(house):
    target = house.target()
    lease = await house.lease(target)
    before = target.log.size_bytes
    why = "x" * 10_000
    target.release(lease, call("r-9"), Failure(FailureKind.BAD_RESPONSE, why))
    assert any(why in line.text and "r-9" in line.text for line in target.log.tail(0))
    assert target.log.size_bytes - before > len(why)
    await gone(house, target)


async def test_the_log_tail_holds_the_calls_own_instance_only(house):
    target = house.target()
    first, second = await house.lease(target), await house.lease(target)
    for lease in (first, second):
        house.sinks[lease.endpoint.id](line(f"of {lease.endpoint.id}".encode()))
    target.release(first, call(want_log_tail=True))
    report = target.report(first)
    tail = report.log_tail.decode()
    assert f"of {first.endpoint.id}" in tail
    assert f"of {second.endpoint.id}" not in tail
    assert "FC Invoke Start" in tail
    assert "FC Invoke End" in tail
    target.release(second, call())
    await gone(house, target)


# -- idle, min, ends


async def test_idle_instances_go_but_for_the_minimum(house):
    target = house.target(scaling={"min": 1, "idle_s": 60})
    leases = [await house.lease(target) for _ in range(3)]
    for lease in leases:
        target.release(lease, call())
    house.skip(61)
    target.tick(house.fleet.now())
    await until(lambda: len(house.builder.alive) == 1)
    assert target.pool.ready_count == 1
    target.keep_no_minimum()
    target.tick(house.fleet.now())
    await until(lambda: house.held() == {})


async def test_stopping_while_starting_refuses_the_call_once_and_leaves_nothing(house):
    target = house.target()
    house.points.hang["create"] = asyncio.Event()
    caller = house.wait(target)
    await house.points.reached("create")
    await target.stop(grace_s=None)
    assert caller.failure.kind is FailureKind.DRAINING
    assert house.held() == {}
    assert await house.lease(target) is FailureKind.DRAINING


async def test_stop_waits_for_what_was_ending_before(house):
    target = house.target()
    lease = await house.lease(target)
    gate = house.points.hang["destroy"] = asyncio.Event()
    container_of(house, lease).die(1)
    await house.points.reached("destroy")
    stopping = asyncio.gather(target.stop(grace_s=None), target.stop(grace_s=0.0))
    await turns()
    assert not stopping.done()
    gate.set()
    await stopping
    target.release(lease, call())
    assert house.held() == {}


async def test_a_call_in_flight_holds_a_drain_up_and_force_does_not_wait(house):
    target = house.target()
    lease = await house.lease(target)
    drained = asyncio.gather(target.stop(grace_s=None))
    await turns()
    assert not drained.done()
    async with asyncio.timeout(5):
        await target.stop(grace_s=0.0)
        await drained
    assert ("kill", lease.endpoint.id) in house.did
    target.release(lease, call())
    assert house.held() == {}


async def test_force_cuts_the_grace_of_an_instance_that_ignores_term(house):
    house.obeys_term = False
    target = house.target()
    target.release(await house.lease(target), call())
    drained = asyncio.gather(target.stop(grace_s=None))
    await house.points.reached("signal")
    assert not drained.done()
    async with asyncio.timeout(5):
        await target.stop(grace_s=0.0)
        await drained
    assert house.held() == {}


# -- worker swaps


def record(house, number=5):
    return InstanceRecord(
        id=f"f-0000000{number}",
        function="f",
        version=1,
        row=number,
        network_slot=number,
        address="127.0.0.1",
        port=house.port,
        layer_kind="slot512",
        layer_slot=number,
        pid=1,
        state="ready",
        created_ns=1,
    )


async def adopted(house, target, foreign=0):
    found = record(house)
    instance = house.fleet.admission.make(found.id, target.version, target.contract, target.log)
    instance.adopted(await house.builder.adopt(found, None, "all"), found)
    house.fleet.admission.adopt(instance)
    return target.scaling.adopt(instance, foreign)


async def test_an_adopted_instance_serves_those_who_wait(house):
    target = house.target(scaling={"max": 1})
    house.builder.room = 0
    gate = house.points.hang["build"] = asyncio.Event()
    caller = house.wait(target)
    member = await adopted(house, target)
    assert caller.lease.endpoint is member.instance.endpoint
    gate.set()
    target.release(caller.lease, call())
    await gone(house, target)


async def test_places_of_another_workers_calls_are_taken_until_given_back(house):
    target = house.target(concurrency=2, scaling={"max": 1})
    member = await adopted(house, target, foreign=2)
    caller = house.wait(target)
    await turns()
    assert not caller.told
    target.give_back(member, 1)
    assert caller.lease.endpoint is member.instance.endpoint
    target.scaling.retire(member)
    target.release(caller.lease, call())
    await turns()
    assert member.instance.state is State.DRAINING
    target.give_back(member, 1)
    await until(lambda: house.held() == {})


async def test_a_worker_that_has_handed_over_ends_and_starts_nothing(house):
    target = house.target(scaling={"min": 1, "idle_s": 60})
    lease, other = await house.lease(target), await house.lease(target)
    hand_over(house.fleet, kept=())
    assert container_of(house, lease).detached
    assert await house.lease(target) is FailureKind.DRAINING
    target.release(lease, call(), recycle=True)
    await turns()
    assert ("kill", lease.endpoint.id) in house.did
    container_of(house, other).die(0)
    house.skip(1000)
    target.tick(house.fleet.now())
    await turns()
    assert not [did for did in house.did if did[0] == "destroy"]
    assert len(house.builder.built) == 2
    target.release(other, call())


async def test_a_start_under_way_at_a_hand_over_goes_on_and_serves_who_waits_here_first(house):
    target = house.target()
    house.points.hang["start"] = gate = asyncio.Event()
    caller = house.wait(target)
    assert await starts_have_slots(house.fleet, 5)
    hand_over(house.fleet, kept=())
    [record] = list(house.files.each())
    assert (record.state, record.owner) == ("creating", house.ledger.generation)
    assert unsettled(house.fleet) == 1
    gate.set()
    lease = await caller.answer()
    await until(lambda: next(house.files.each()).state == "ready")
    assert container_of(house, lease).detached
    assert house.ledger.row(1).inflight == 1, "before the next worker could see it as free"
    assert unsettled(house.fleet) == 0
    target.release(lease, call())
    assert ("destroy", lease.endpoint.id) not in house.did


async def test_a_start_without_slots_is_given_up_at_a_hand_over_and_leaves_nothing(house):
    target = house.target()
    house.points.hang["build"] = asyncio.Event()
    caller = house.wait(target)
    assert not await starts_have_slots(house.fleet, 0.01)
    await target.scaling.give_up_starts()
    await until(lambda: not house.fleet.admission.instances)
    target.abandon(caller)
    await gone(house, target)


async def test_a_start_that_is_given_up_before_its_first_step_leaves_nothing(house):
    target = house.target()
    caller = house.wait(target)
    await target.scaling.give_up_starts()
    assert not house.fleet.admission.instances
    target.abandon(caller)
    await gone(house, target)


async def test_a_call_counts_until_the_process_is_dead_when_others_look_on(house):
    target = house.target()
    lease = await house.lease(target)
    container, row = container_of(house, lease), house.ledger.row(1)
    hand_over(house.fleet, kept=())
    house.points.hang["kill"] = gate = asyncio.Event()
    target.release(lease, call(), Failure(FailureKind.BAD_RESPONSE), recycle=True)
    await turns()
    assert row.inflight == 1, "the next worker would give its place to somebody"
    gate.set()
    await until(lambda: container.exited and row.inflight == 0)


async def test_a_place_that_goes_on_to_a_waiting_call_never_looks_free_to_others(house):
    target = house.target(scaling={"max": 1})
    lease = await house.lease(target)
    row, seen = house.ledger.row(1), []

    class Watching(Caller):
        def granted(self, lease):
            seen.append(row.inflight)
            super().granted(lease)

    second = Watching()
    assert target.acquire(second) is None
    target.release(lease, call())
    assert (seen, row.inflight) == ([1], 1)
    target.release(await second.answer(), call())
    assert row.inflight == 0
    await gone(house, target)


async def test_a_draining_instance_is_its_workers_own_by_its_record(house):
    target = house.target(concurrency=2)
    lease = await house.lease(target)
    [member] = target.pool.members
    target.scaling.retire(member)
    [record] = list(house.files.each())
    assert (record.state, record.owner) == ("draining", house.ledger.generation)
    hand_over(house.fleet, kept=())
    assert unsettled(house.fleet) == 1
    target.release(lease, call())
    await until(lambda: house.held() == {})


# -- the timer


async def test_the_timer_looks_at_waiting_targets_often_and_at_all_of_them_now_and_then(house):
    seen = {name: 0 for name in range(500)}

    class Idle:
        def __init__(self, name):
            self.name = name
            self.waiting = False

        def tick(self, now):
            seen[self.name] += 1
            if self.name == 7:
                raise RuntimeError("one function's trouble")

    targets = [Idle(name) for name in seen]
    targets[3].waiting = True
    timer = asyncio.ensure_future(house.fleet.timer.run(lambda: targets))  # noqa: TID251
    await until(lambda: seen[3] >= 3, within_s=100 * TICK_S)
    timer.cancel()
    await asyncio.wait({timer})
    assert seen[0] == 1
    assert seen[499] == 1


async def test_one_caller_that_cannot_be_told_does_not_leave_the_others_waiting(house):
    class Broken(Caller):
        def refused(self, failure):
            raise RuntimeError("cannot be told")

    target = house.target(concurrency=2)
    house.builder.fails = [failing()]
    assert target.acquire(Broken()) is None
    assert await house.lease(target) is FailureKind.FILE_NOT_FOUND


async def test_acquire_after_removal_is_refused(house):
    target = house.target()
    await target.stop(grace_s=None)
    with pytest.raises(FunctionFailed):
        target.acquire(Caller())


def line(text):
    from agent.core.logtail import OutputLine

    return OutputLine(1, "stdout", text, False)


async def test_a_start_that_is_cancelled_before_its_first_step_leaves_nothing(house):
    target = house.target()
    caller = house.wait(target)
    await target.stop(grace_s=0.0)
    assert await caller.answer() is FailureKind.DRAINING
    assert target.pool.members == ()
    assert (house.held(), house.builder.built) == ({}, [])


async def test_an_end_that_cannot_be_noted_is_still_an_orderly_one(house):
    target = house.target(hooks={"pre_stop": {}})
    lease = await house.lease(target)
    target.release(lease, call())

    def full(record):
        raise RuntimeUnavailable("no space left")

    object.__setattr__(house.ports, "save", full)
    await target.stop(grace_s=None)
    id = lease.endpoint.id
    assert house.did == [("hook", "/pre-stop"), ("signal 15", id), ("destroy", id)]
    assert house.held() == {}


async def test_a_version_that_was_removed_goes_without_a_search_for_garbage(house):
    gc.collect()
    gc.disable()
    try:
        target = house.target("gone", scaling={"min": 1})
        target.tick(house.now())
        pool = target.pool
        await until(lambda: pool.ready_count == 1)
        await target.stop(grace_s=0.0)
        house.logs.drop("gone")
        del target
        await turns()
        left = [one for one in gc.get_objects() if type(one) is FunctionTarget]
        assert not [one for one in left if one.version.name == "gone"]
    finally:
        gc.enable()
