"""Who may start next when more want to than the runtime works on at once."""

from __future__ import annotations

import asyncio

import pytest

from agent.aio.tasks import spawn, stop
from agent.instances.permits import StartPermits
from tests.component.function_house import House, turns, until


class Starts:
    """Starts that go on until they are told to end; `begun` are their functions in order."""

    def __init__(self, count):
        self.permits = StartPermits(count)
        self.begun: list[str] = []
        self.under_way: list[asyncio.Event] = []

    def want(self, function):
        return spawn(f"start {function}", self._start(function))

    async def _start(self, function):
        async with self.permits.of(function):
            self.begun.append(function)
            over = asyncio.Event()
            self.under_way.append(over)
            await over.wait()

    async def end_one(self):
        self.under_way.pop(0).set()
        await turns()


async def all_ended(starts, tasks):
    while starts.under_way:
        await starts.end_one()
    await asyncio.gather(*tasks)


async def test_one_functions_many_starts_do_not_hold_up_anothers_first():
    starts = Starts(2)
    tasks = [starts.want("many") for _ in range(200)]
    await turns()
    tasks += [starts.want("other"), starts.want("third")]
    await turns()
    assert starts.begun == ["many", "many"]
    for _ in range(3):
        await starts.end_one()
    assert starts.begun[2:] == ["many", "other", "third"]
    await all_ended(starts, tasks)
    assert starts.begun.count("many") == 200


async def test_functions_take_turns_and_in_each_who_came_first_is_first():
    starts = Starts(1)
    tasks = [starts.want(name) for name in ("a", "a", "a", "b", "b", "c")]
    await turns()
    await all_ended(starts, tasks)
    assert starts.begun == ["a", "a", "b", "c", "a", "b"]


async def test_no_more_begin_than_there_are_permits():
    starts = Starts(3)
    tasks = [starts.want(str(n % 4)) for n in range(20)]
    await turns()
    while len(starts.begun) < 20:
        assert len(starts.under_way) == 3
        await starts.end_one()
    await all_ended(starts, tasks)
    assert "3 free, 0 waiting" in repr(starts.permits)


@pytest.mark.parametrize("told", [False, True], ids=["while it waits", "in the turn it is told"])
async def test_a_start_that_is_cancelled_gives_its_turn_to_the_next(told):
    starts = Starts(1)
    first = starts.want("a")
    await turns()
    left, last = starts.want("a"), starts.want("b")
    await turns()
    if told:
        starts.under_way.pop(0).set()
        await asyncio.sleep(0)  # sleeps: the first ends and passes its permit on, nobody has it yet
    await stop(left)
    await all_ended(starts, [first, last])
    assert starts.begun in (["a", "b"], ["a", "a", "b"])
    assert "1 free, 0 waiting" in repr(starts.permits)


async def test_a_start_that_waits_behind_a_burst_is_among_the_next_of_the_node(tmp_path):
    async with House(tmp_path, instances=30, memory_mb=1 << 16, parallel=1) as house:
        gate = house.points.hang["create"] = asyncio.Event()
        many = house.target("many", scaling={"max": 20})
        other = house.target("other")
        callers = [house.wait(many) for _ in range(20)]
        await house.points.reached("create")
        callers.append(house.wait(other))
        await turns()
        gate.set()
        await until(lambda: all(caller.told for caller in callers))
        order = [id.rpartition("-")[0] for id in house.builder.built]
        assert order.index("other") <= 2
        await many.stop(grace_s=0.0)
        await other.stop(grace_s=0.0)
