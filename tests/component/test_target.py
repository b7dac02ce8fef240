"""Calls on one function version: places, waiting, cold starts, failed starts, room."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from agent.calls.target import PoolLease
from agent.core.pulling import ImagePull
from agent.errors import Bug, RuntimeUnavailable
from agent.model.failure import FailureKind
from tests.component.function_house import (
    IMAGE,
    Caller,
    House,
    call,
    failing,
    gone,
    turns,
    until,
)


@pytest.fixture
async def house(tmp_path):
    async with House(tmp_path) as found:
        yield found


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
    house.mode.drain()
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


@pytest.mark.parametrize("at_once", [True, False])
async def test_room_goes_in_turn_to_the_functions_that_wait_for_it(tmp_path, at_once):
    async with House(tmp_path, memory_mb=512) as house:
        greedy, modest = house.target("greedy"), house.target("modest")
        leases = [await house.lease(greedy) for _ in range(2)]
        many = [house.wait(greedy) for _ in range(4)]
        gates = [asyncio.Event(), asyncio.Event()]
        for lease, gate in zip(leases, gates, strict=True):
            house.points.hang["destroy"] = gate
            greedy.release(lease, call(), recycle=True)
            await until(lambda id=lease.endpoint.id: ("destroy", id) in house.did)
        del house.points.hang["destroy"]
        one = house.wait(modest)
        gates[0].set()
        if not at_once:
            await many[0].answer()
        gates[1].set()
        lease = await one.answer()
        assert isinstance(lease, PoolLease)
        assert [caller.told for caller in many] == [True, False, False, False]
        modest.release(lease, call())
        for caller in many:
            greedy.release(await caller.answer(), call())
        await gone(house, greedy, modest)


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


# -- calls that wait for an image


def preparing(house, **fields):
    """A target whose image is on its way, and the version that it becomes."""
    ready = house.target(**fields).version
    ready = replace(ready, image=replace(IMAGE, compressed_bytes=700))
    return house.target_of(replace(ready, state="Preparing")), ready


async def test_starts_that_waited_for_a_pull_count_their_own_wait_and_its_bytes_once(house):
    target, ready = preparing(house, memory_mb=512)
    now = house.fleet.now()
    callers = [house.wait(target), house.wait(target)]
    target.pull = ImagePull(now - 10.0, now + 1e6, fetched_bytes=600, cached_bytes=100)
    target.mended(ready)
    target.tick(house.fleet.now())
    await until(lambda: all(caller.told for caller in callers))
    starts = [caller.lease.cold_start for caller in callers]
    # Asked for after the pull began: not its ten seconds before.
    assert all(0 < start.pull_ms / 1000 <= 1e6 for start in starts)
    assert sorted(start.bytes_pulled for start in starts) == [0, 600]
    assert [start.bytes_pulled + start.bytes_cached for start in starts] == [700, 700]
    for caller in callers:
        target.release(caller.lease, call())
        meters = target.report(caller.lease).meters
        assert meters.pull_s == caller.lease.cold_start.pull_ms / 1000
        assert meters.pull_gb_s == pytest.approx(meters.pull_s / 2)
    kept = [record.cold_start.bytes_pulled for record in house.files.each()]
    assert sorted(kept) == [0, 600]
    await gone(house, target)


async def test_a_start_whose_image_was_here_waited_for_no_pull(house):
    target, ready = preparing(house)
    now = house.fleet.now()
    target.pull = ImagePull(now - 10.0, now - 1.0, fetched_bytes=600, cached_bytes=100)
    target.mended(ready)
    lease = await house.lease(target)
    cold = lease.cold_start
    assert (cold.pull_ms, cold.bytes_pulled, cold.bytes_cached) == (0, 0, 700)
    target.release(lease, call())
    meters = target.report(lease).meters
    assert (meters.pull_s, meters.pull_gb_s) == (0, 0)
    warm = target.acquire(Caller())
    target.release(warm, call())
    assert target.report(warm).meters.pull_s == 0
    await gone(house, target)
