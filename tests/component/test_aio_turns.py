"""The waiting line: what one caller is told and cannot use, the next one is told."""

from __future__ import annotations

import asyncio

import pytest

from agent.aio.tasks import spawn
from agent.aio.turns import TurnQueue
from tests.component.function_house import turns


async def two_in(line, *, first_s=60.0):
    now = asyncio.get_running_loop().time()
    callers = [spawn("first", line.turn(now + first_s)), spawn("second", line.turn(now + 60))]
    await turns()
    return callers


async def test_callers_are_told_in_order():
    line = TurnQueue()
    first, second = await two_in(line)
    line.tell()
    await turns()
    assert (first.done(), second.done(), len(line)) == (True, False, 1)
    line.tell(5)
    await second
    assert len(line) == 0


async def test_what_a_caller_was_told_in_the_turn_it_left_goes_to_the_next():
    line = TurnQueue()
    first, second = await two_in(line)
    line.tell()
    first.cancel()
    async with asyncio.timeout(10):
        await second
    assert first.cancelled()


async def test_so_does_what_it_was_refused():
    line = TurnQueue()
    first, second = await two_in(line)
    line.refuse(OSError("nothing can be made"))
    first.cancel()
    async with asyncio.timeout(10):
        with pytest.raises(OSError, match="nothing can be made"):
            await second


async def test_a_caller_who_was_not_told_leaves_nothing_to_pass_on():
    line = TurnQueue()
    first, second = await two_in(line, first_s=0.0)
    with pytest.raises(TimeoutError):
        await first
    assert (second.done(), len(line)) == (False, 1)
    second.cancel()
    await turns()
    assert len(line) == 0
