"""Standbys: made beside nobody's start, started by the next call, replaced, dropped, cleared."""

from __future__ import annotations

import asyncio

import pytest

from agent.core.instance import State
from agent.core.standby import EACH_BYTES, RETRY_S
from agent.errors import FailedPrecondition, Overloaded, RuntimeUnavailable
from tests.component.function_house import MB, Caller, House, call, until


@pytest.fixture
async def house(tmp_path):
    async with House(tmp_path, memory_mb=520, instances=4) as found:
        yield found


def standbys(house):
    return [i for i in house.fleet.admission.instances.values() if i.state is State.STANDBY]


async def waiting(house, target, count=1):
    """Tick until so many standbys wait."""

    def there():
        target.tick(house.now())
        return len(standbys(house)) == count

    await until(there)
    return standbys(house)


def deployed(house, standby=1, **fields):
    return house.target(scaling={"standby": standby, **fields.pop("scaling", {})}, **fields)


async def test_a_call_starts_the_standby_and_the_next_one_is_made(house):
    target = deployed(house)
    (kept,) = await waiting(house, target)
    assert house.did == []
    caller = Caller()
    assert target.acquire(caller) is None
    lease = await caller.answer()
    assert lease.endpoint.id == kept.id
    assert kept.cold_start.cached == ("standby",)
    assert kept.cold_start.create_ms == 0
    assert len(house.builder.built) == 1
    (other,) = await waiting(house, target)
    assert other is not kept


async def test_it_counts_a_megabyte_until_it_runs(house):
    target = deployed(house, memory_mb=128)
    admission = house.fleet.admission
    await waiting(house, target)
    assert (admission.use.memory_bytes, admission.use.cpu_millis) == (EACH_BYTES, 0)
    caller = Caller()
    target.acquire(caller)
    await caller.answer()
    assert admission.use.memory_bytes == 128 * MB
    assert admission.standbys == 0
    await target.stop(grace_s=0.0)
    assert (admission.use.memory_bytes, admission.use.instances) == (0, 0)


async def test_without_room_for_its_memory_it_stays_and_the_call_waits_or_is_refused(house):
    target = deployed(house, memory_mb=256)
    await waiting(house, target)
    other = deployed(house, standby=0, memory_mb=384)
    first, second = Caller(), Caller()
    other.acquire(first)
    lease = await first.answer()
    target.acquire(second)
    assert str(await second.answer()).endswith("NO_CAPACITY")
    assert len(standbys(house)) == 1
    assert house.fleet.admission.use.memory_bytes == 384 * MB + EACH_BYTES
    del lease


async def test_none_is_made_while_a_start_is_under_way(house):
    target, other = deployed(house), deployed(house, standby=0)
    gate = house.points.hang["build"] = asyncio.Event()
    caller = Caller()
    other.acquire(caller)
    await until(lambda: len(house.builder.built) == 1)
    for _ in range(3):
        target.tick(house.now())
        await asyncio.sleep(0)
    assert len(house.builder.built) == 1
    gate.set()
    await caller.answer()
    await waiting(house, target)


async def test_one_is_made_at_a_time_on_the_node_and_no_more_than_its_budget(house):
    house.share.settings = house.share.settings.model_copy(update={"memory_mb": 1})
    targets = [deployed(house, standby=2), deployed(house, standby=2)]
    gate = house.points.hang["build"] = asyncio.Event()
    for target in targets:
        target.tick(house.now())
    await until(lambda: house.builder.built)
    for target in targets:
        target.tick(house.now())
    assert len(house.builder.built) == 1
    gate.set()
    await until(lambda: len(standbys(house)) == 1)
    for target in targets:
        target.tick(house.now())
    await until(lambda: not house.share.made_now)
    assert len(standbys(house)) == 1


@pytest.mark.parametrize(
    ("what", "spoil"),
    [
        ("its init dies", lambda one: one.container.die(137, signal=9)),
        ("its shim dies", lambda one: one.container.unread.set_result(None)),
        ("its files are lost", lambda one: setattr(one.container, "source", "soci:4194305:1")),
    ],
)
async def test_what_cannot_be_started_any_more_is_dropped_and_a_call_starts_anew(
    house, what, spoil
):
    target = deployed(house)
    (kept,) = await waiting(house, target)
    spoil(kept)
    caller = Caller()
    target.acquire(caller)
    lease = await caller.answer()
    assert lease.endpoint.id != kept.id, what
    await until(lambda: kept.id not in house.fleet.admission.instances)
    assert kept.container.gone


async def test_one_that_dies_is_not_made_anew_at_once(house):
    target = deployed(house)
    (kept,) = await waiting(house, target)
    kept.container.die(1)
    await until(lambda: not house.fleet.admission.instances)
    target.tick(house.now())
    assert not house.share.made_now
    house.skipped_s += RETRY_S
    await waiting(house, target)


async def test_an_old_one_is_replaced_for_its_environment_is_old_too(house):
    target = deployed(house)
    (old,) = await waiting(house, target)
    house.skipped_s += house.share.settings.max_age_s + 1
    target.tick(house.now())
    await until(lambda: old.container.gone)
    (new,) = await waiting(house, target)
    assert new is not old


@pytest.mark.parametrize(
    ("what", "end"),
    [
        ("the node drains", lambda house, target: house.mode.drain()),
        ("another version is LATEST", lambda house, target: target.keep_no_minimum()),
        (
            "the host is short of memory",
            lambda house, target: house.patch("agent.instances.standby.available_share", 0.01),
        ),
    ],
)
async def test_they_are_dropped_when(house, monkeypatch, what, end):
    house.patch = lambda name, value: monkeypatch.setattr(name, lambda: value)
    target = deployed(house, standby=2)
    await waiting(house, target, 2)
    end(house, target)
    target.tick(house.now())
    await until(lambda: not house.fleet.admission.instances)
    assert house.builder.alive == {}, what


async def test_they_give_way_before_anybody_who_serves(house):
    target = deployed(house, standby=3)
    await waiting(house, target, 3)
    other, third = deployed(house, standby=0), deployed(house, standby=0)
    house.targets += [target, other]
    first, second = Caller(), Caller()
    other.acquire(first)
    lease = await first.answer()
    other.release(lease, call())
    third.acquire(second)
    assert (await second.answer()).endpoint.id in house.fleet.admission.instances
    assert len(standbys(house)) == 2
    assert lease.endpoint.id in house.fleet.admission.instances


async def test_a_removed_function_leaves_none_also_of_those_being_made(house):
    target = deployed(house, standby=2)
    await waiting(house, target, 2)
    caller = Caller()
    target.acquire(caller)
    await caller.answer()
    house.points.hang["create"] = asyncio.Event()
    target.tick(house.now())
    await until(lambda: len(house.builder.built) == 3)
    await target.stop(grace_s=0.0)
    assert house.fleet.admission.instances == {}
    assert house.builder.alive == {}
    assert list(house.files.each()) == []


async def test_a_worker_that_hands_over_leaves_none_behind(house):
    target = deployed(house, standby=2)
    await waiting(house, target, 2)
    await target.scaling.standbys.leave()
    target.tick(house.now())  # until it has handed over it goes on ticking
    assert not house.share.made_now
    house.mode.hand_over()
    await until(lambda: list(house.files.each()) == [])
    assert house.builder.alive == {}


@pytest.mark.parametrize("error", [RuntimeUnavailable("the shim hangs"), "no slots"])
async def test_one_that_cannot_be_made_leaves_nothing_and_is_tried_later(house, error):
    target = deployed(house)
    house.builder.fails = [house.no_slots() if error == "no slots" else error]
    target.tick(house.now())
    await until(lambda: house.builder.built and not house.share.made_now)
    assert house.fleet.admission.use.memory_bytes == 0
    target.tick(house.now())
    assert not house.share.made_now
    house.skipped_s += RETRY_S
    await waiting(house, target)


async def test_its_record_says_what_it_is_until_it_runs(house):
    target = deployed(house)
    (kept,) = await waiting(house, target)
    (record,) = list(house.files.each())
    assert (record.id, record.state) == (kept.id, "standby")
    caller = Caller()
    target.acquire(caller)
    await caller.answer()
    (record,) = [one for one in list(house.files.each()) if one.id == kept.id]
    assert record.state == "ready"


def refuse(house):
    house.points.fail["start"] = RuntimeUnavailable("the container is not running")


def stopped(house):
    house.points.fail["start"] = FailedPrecondition("cannot start a stopped process")


def kill(house):
    def once(container):
        house.on_start = lambda container: None
        container.die(137, signal=9)

    house.on_start = once


@pytest.mark.parametrize("lose", [refuse, stopped, kill])
async def test_one_that_dies_as_a_call_comes_is_built_anew_for_that_call(house, lose):
    target = deployed(house)
    (kept,) = await waiting(house, target)
    lose(house)
    caller = Caller()
    target.acquire(caller)
    lease = await caller.answer()
    assert (lease.endpoint.id, len(house.builder.built)) == (kept.id, 2)
    (served,) = house.fleet.admission.instances.values()
    assert served is not kept
    assert served.cold_start.cached == ("image",)
    await target.stop(grace_s=0.0)
    assert (house.fleet.admission.use.memory_bytes, house.builder.alive) == (0, {})


async def test_the_budget_is_told_in_the_refusal(house):
    admission = house.fleet.admission
    target = deployed(house, standby=0)
    with pytest.raises(Overloaded, match=r"standby\.memory_mb"):
        admission.new_standby(target.version, target.contract, target.log, 0)
