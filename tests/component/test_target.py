"""Calls on one function version: places, waiting, cold starts, room, recycling, ends."""

from __future__ import annotations

import asyncio

import pytest

from agent.core.instance import State
from agent.errors import Bug, FunctionFailed, RuntimeUnavailable
from agent.functions.fleet import TICK_S
from agent.model.failure import Failure, FailureKind
from agent.model.records import InstanceRecord
from tests.component.function_house import Caller, House, call, failing, turns, until


@pytest.fixture
async def house(tmp_path):
    async with House(tmp_path) as found:
        yield found


async def gone(house, *targets):
    await asyncio.gather(*(target.stop(grace_s=0.0) for target in targets))
    assert house.held() == {}


def container_of(house, lease):
    return house.builder.alive[lease.endpoint.id]


# -- places


async def test_the_first_call_starts_an_instance_and_the_next_finds_it(house):
    target = house.target()
    lease = await house.lease(target)
    assert lease.cold_start.total_ms > 0
    target.release(lease, call())
    report = target.report(lease)
    assert report.cold_start is lease.cold_start
    assert report.instance == lease.endpoint.id
    assert report.meters.peak_memory_bytes == 5 << 20
    warm = target.acquire(Caller())
    assert warm.endpoint is lease.endpoint
    assert warm.cold_start is None
    assert house.ledger.row(1).inflight == 1
    target.release(warm, call())
    assert house.ledger.row(1).inflight == 0
    assert house.told.ready == [lease.endpoint.id]
    await gone(house, target)
    assert house.told.ended == [(lease.endpoint.id, None)]


async def test_a_second_release_is_a_bug_and_changes_nothing(house):
    target = house.target(concurrency=2)
    lease = await house.lease(target)
    other = target.acquire(Caller())
    target.release(lease, call())
    with pytest.raises(Bug):
        target.release(lease, call())
    assert target.pool.inflight == 1
    target.release(other, call())
    await gone(house, target)


async def test_a_released_place_goes_to_who_waits_longest(house):
    target = house.target(scaling={"max": 1})
    lease = await house.lease(target)
    first, second = house.wait(target), house.wait(target)
    target.release(lease, call())
    assert first.told
    assert not second.told
    assert first.lease.cold_start is None
    target.release(first.lease, call())
    target.release(second.lease, call())
    await gone(house, target)


async def test_a_full_queue_and_a_late_call_are_refused_in_words(house):
    target = house.target(max_queue=1, queue_timeout_s=2, scaling={"max": 1})
    lease = await house.lease(target)
    waiting = house.wait(target)
    assert await house.lease(target) is FailureKind.QUEUE_FULL
    house.skip(1.9)
    target.tick(house.fleet.now())
    assert not waiting.told
    house.skip(0.2)
    target.tick(house.fleet.now())
    target.tick(house.fleet.now())
    assert waiting.failure.kind is FailureKind.QUEUE_TIMEOUT
    assert waiting.failure.retry_after_s > 0
    target.release(lease, call())
    await gone(house, target)


async def test_an_abandoned_call_is_told_nothing(house):
    target = house.target()
    caller = house.wait(target)
    target.abandon(caller)
    target.abandon(caller)
    await until(lambda: target.pool.ready_count == 1)
    assert not caller.told
    assert target.pool.inflight == 0
    await gone(house, target)


async def test_a_draining_node_takes_no_call_but_serves_those_that_wait(house):
    target = house.target(scaling={"max": 2})
    lease = await house.lease(target)
    waiting = house.wait(target)
    house.fleet.draining = True
    assert await house.lease(target) is FailureKind.DRAINING
    assert await waiting.answer() is waiting.lease
    target.release(waiting.lease, call())
    target.release(lease, call())
    await gone(house, target)


# -- whose cold start it is


async def test_each_of_two_starts_is_told_by_one_call_whichever_is_ready_first(house):
    target = house.target()
    gates = [asyncio.Event(), asyncio.Event()]
    house.points.hang["create"] = gates[0]
    first = house.wait(target)
    await turns()
    house.points.hang["create"] = gates[1]
    second = house.wait(target)
    await turns()
    gates[1].set()  # the start that the second call asked for serves the first call
    lease = await first.answer()
    assert not second.told
    gates[0].set()
    other = await second.answer()
    colds = [lease.cold_start, other.cold_start]
    assert None not in colds
    assert colds[0] is not colds[1]
    for each in (lease, other):
        target.release(each, call())
    await gone(house, target)


async def test_a_call_that_finds_a_start_under_way_did_not_cause_it(house):
    target = house.target(concurrency=3)
    gate = house.points.hang["create"] = asyncio.Event()
    callers = [house.wait(target) for _ in range(3)]
    gate.set()
    leases = [await caller.answer() for caller in callers]
    assert [lease.cold_start is not None for lease in leases] == [True, False, False]
    for lease in leases:
        target.release(lease, call())
    await gone(house, target)


async def test_a_start_for_the_minimum_is_nobodys_cold_start(house):
    target = house.target(scaling={"min": 1})
    gate = house.points.hang["create"] = asyncio.Event()
    target.tick(house.fleet.now())
    caller = house.wait(target)
    gate.set()
    lease = await caller.answer()
    assert lease.cold_start is None
    target.release(lease, call())
    await gone(house, target)


async def test_the_cold_start_of_a_call_that_went_away_is_told_by_nobody(house):
    target = house.target(concurrency=2)
    gate = house.points.hang["create"] = asyncio.Event()
    cause, other = house.wait(target), house.wait(target)
    target.abandon(cause)
    gate.set()
    lease = await other.answer()
    assert lease.cold_start is None
    assert not target._causing
    target.release(lease, call())
    await gone(house, target)


# -- starts that fail


async def test_a_failed_start_refuses_everybody_once_and_gives_everything_back(house):
    target = house.target(concurrency=2)
    house.builder.fails = [failing()]
    callers = [house.wait(target) for _ in range(2)]
    assert [await caller.answer() for caller in callers] == [FailureKind.FILE_NOT_FOUND] * 2
    await turns()
    assert house.held() == {}
    assert [kind for _, kind in house.told.ended] == [FailureKind.FILE_NOT_FOUND]
    lease = await house.lease(target)  # each new call is one more try
    target.release(lease, call())
    await gone(house, target)


async def test_a_fault_of_the_platform_is_told_as_one(house):
    target = house.target()
    house.builder.fails = [RuntimeUnavailable("containerd is away"), KeyError("ours")]
    assert await house.lease(target) is FailureKind.INTERNAL
    assert await house.lease(target) is FailureKind.INTERNAL
    await turns()
    assert house.held() == {}


async def test_a_failed_version_says_so_and_starts_nothing(house):
    target = house.target()
    object.__setattr__(target.version, "state", "Failed")
    assert await house.lease(target) is FailureKind.IMAGE_UNAVAILABLE
    assert house.builder.built == []


async def test_a_function_that_crashes_once_it_serves_is_started_ever_more_rarely(house):
    target = house.target(scaling={"min": 1})
    starts = []
    for pause_s in (0.5, 1.0, 2.0):
        target.tick(house.fleet.now())
        await until(lambda: target.pool.ready_count == 1)
        [container] = house.builder.alive.values()
        container.die(1)
        await until(lambda: house.held() == {})
        target.tick(house.fleet.now())
        starts.append(len(house.builder.built))
        house.skip(pause_s)
    assert starts == [1, 2, 3]
    await gone(house, target)


# -- room on the node


async def test_without_any_hope_of_room_a_call_is_refused_at_once(tmp_path):
    async with House(tmp_path, memory_mb=256) as house:
        one, two = house.target("one"), house.target("two")
        lease = await house.lease(one)
        assert await house.lease(two) is FailureKind.NO_CAPACITY
        assert two.pool.waiting == 0
        one.release(lease, call())
        await gone(house, one, two)


async def test_a_call_waits_for_an_instance_that_is_ending_and_is_served_when_it_has(tmp_path):
    async with House(tmp_path, memory_mb=256) as house:
        one, two = house.target("one"), house.target("two")
        lease = await house.lease(one)
        gate = house.points.hang["destroy"] = asyncio.Event()
        one.release(lease, call(), recycle=True)
        caller = house.wait(two)
        await turns()
        assert not caller.told
        gate.set()  # no timer runs here: the end itself must bring the start
        lease = await caller.answer()
        assert lease.cold_start is not None
        two.release(lease, call())
        await gone(house, one, two)


async def test_calls_that_wait_for_slots_get_them_when_another_function_ends(house):
    one, two = house.target("one"), house.target("two")
    house.builder.room = 2
    first = await house.lease(one)
    second = await house.lease(two)
    caller = house.wait(two)  # no slot for a second instance of two: the first serves it later
    await turns()
    assert not caller.told
    tries = len(house.builder.built)
    for _ in range(5):
        two.tick(house.fleet.now())
        await turns()
    assert len(house.builder.built) == tries  # slots are not asked for at every tick
    one.release(first, call(), recycle=True)
    assert (await caller.answer()).endpoint is not second.endpoint
    two.release(second, call())
    two.release(caller.lease, call())
    await gone(house, one, two)


async def test_functions_short_of_slots_do_not_drive_each_other_round(house):
    targets = [house.target(name) for name in ("one", "two", "three")]
    leases = [await house.lease(target) for target in targets]
    house.builder.room = 3
    callers = [house.wait(target) for target in targets]
    await turns(200)
    assert len(house.builder.built) == 6
    house.skip(2)
    for target in targets:
        target.tick(house.fleet.now())
    await turns(200)
    assert len(house.builder.built) == 9
    for target, lease in zip(targets, leases, strict=True):
        target.release(lease, call())
    for target, caller in zip(targets, callers, strict=True):
        target.release(caller.lease, call())
    await gone(house, *targets)


async def test_slots_that_are_all_taken_refuse_when_nothing_will_come(house):
    house.builder.room = 0
    target = house.target(concurrency=2)
    callers = [house.wait(target), house.wait(target)]
    assert [await caller.answer() for caller in callers] == [FailureKind.NO_CAPACITY] * 2
    assert house.held() == {}
    assert target.pool.failures == 0


async def test_too_many_instances_are_refused_too(tmp_path):
    async with House(tmp_path, instances=1) as house:
        target = house.target("one")
        lease = await house.lease(target)
        assert await house.lease(house.target("two")) is FailureKind.NO_CAPACITY
        target.release(lease, call())
        await gone(house, target)


async def test_a_function_that_starts_slowly_does_not_hold_up_the_others(tmp_path):
    async with House(tmp_path, parallel=1) as house:
        slow, quick = house.target("slow", hooks={"initialize": {}}), house.target("quick")
        gate = house.points.hang["hook /initialize"] = asyncio.Event()
        waiting = house.wait(slow)
        await house.points.reached("hook /initialize")
        lease = await house.lease(quick)
        assert not waiting.told
        gate.set()
        await waiting.answer()
        slow.release(waiting.lease, call())
        quick.release(lease, call())
        await gone(house, slow, quick)


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
    await until(lambda: len(house.fleet.instances) == 1)
    assert house.told.ended == [(lease.endpoint.id, FailureKind.EXITED)]
    assert house.fleet.use.memory_bytes == 256 << 20
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
    monkeypatch.setattr("agent.functions.target.EXIT_S", 0.0)
    target = house.target()
    lease = await house.lease(target)
    assert (await target.explain(lease, 0.0)).kind is FailureKind.BAD_RESPONSE
    target.release(lease, call())
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
    instance = house.fleet.make(found.id, target.version, target.contract, target.log)
    instance.adopted(await house.builder.adopt(found, None, "all"), found)
    house.fleet.adopt(instance)
    return target.adopt(instance, foreign)


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
    house.fleet.hand_over()
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


# -- the timer


async def test_the_timer_looks_at_waiting_targets_often_and_at_all_of_them_now_and_then(house):
    seen = {name: 0 for name in range(500)}

    class Idle:
        def __init__(self, name):
            self.name = name
            self.pool = type("Pool", (), {"waiting": 0})()

        def tick(self, now):
            seen[self.name] += 1
            if self.name == 7:
                raise RuntimeError("one function's trouble")

    targets = [Idle(name) for name in seen]
    targets[3].pool.waiting = 1
    timer = asyncio.ensure_future(house.fleet.run_timer(lambda: targets))  # noqa: TID251
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
    from agent.core.logtail import Line

    return Line(1, "stdout", text, False)
