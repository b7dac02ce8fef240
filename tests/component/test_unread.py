"""Instances whose shim has died: their calls end, then another instance takes their place."""

from __future__ import annotations

import pytest

from agent.core.instance import State
from tests.component.function_house import (
    Caller,
    House,
    call,
    container_of,
    gone,
    until,
)


@pytest.fixture
async def house(tmp_path):
    async with House(tmp_path) as found:
        yield found


async def test_its_calls_end_and_the_next_ones_go_to_another_instance(house):
    target = house.target(concurrency=2)
    lease = await house.lease(target)
    old = lease.member.instance
    container_of(house, lease).unread.set_result(None)
    await until(lambda: old.state is State.DRAINING)
    other = await house.lease(target)
    assert other.endpoint is not lease.endpoint
    assert lease.endpoint.id in house.builder.alive
    target.release(lease, call())
    await until(lambda: lease.endpoint.id not in house.fleet.admission.instances)
    assert ("signal 15", lease.endpoint.id) in house.did
    assert house.told.ended == [(lease.endpoint.id, None)]
    target.release(other, call())
    await gone(house, target)


async def test_a_call_that_waits_gets_its_place_on_the_next_instance(house):
    target = house.target(scaling={"max": 1})
    lease = await house.lease(target)
    caller = house.wait(target)
    container_of(house, lease).unread.set_result(None)
    other = await caller.answer()
    assert other.endpoint is not lease.endpoint
    target.release(lease, call())
    target.release(other, call())
    await gone(house, target)


async def test_an_idle_one_is_replaced_as_the_minimum_says(house):
    target = house.target(scaling={"min": 1})
    target.tick(house.fleet.now())
    await until(lambda: target.pool.ready_count == 1)
    (old,) = house.builder.alive.values()
    old.unread.set_result(None)
    await until(
        lambda: old.id not in house.fleet.admission.instances and target.pool.ready_count == 1
    )
    assert house.held()["instances"] == list(house.builder.alive)
    await gone(house, target)


async def test_one_that_loses_its_shim_while_it_starts_serves_who_waits_first(house):
    house.on_start = lambda container: container.unread.done() or container.unread.set_result(None)
    target = house.target(scaling={"max": 1})
    caller = Caller()
    assert target.acquire(caller) is None
    lease = await caller.answer()
    await until(lambda: lease.member.instance.state is State.DRAINING)
    target.release(lease, call())
    await gone(house, target)
