"""Blocking work that hangs holds up only itself, and those behind it until their deadline."""

from __future__ import annotations

import asyncio
import threading

import pytest

from agent.aio.apart import Apart
from agent.aio.tasks import spawn


@pytest.fixture
def gate():
    found = threading.Event()
    yield found
    found.set()


async def soon(seconds=0.05):
    return asyncio.get_running_loop().time() + seconds


async def test_a_result_and_an_error_come_back():
    apart = Apart(1)
    assert await apart.run("a sum", lambda: 1 + 1, deadline=await soon(5)) == 2
    with pytest.raises(ZeroDivisionError):
        await apart.run("a division", lambda: 1 // 0, deadline=await soon(5))
    assert await apart.run("a sum", lambda: 2 + 2, deadline=await soon(5)) == 4


async def test_what_hangs_is_left_at_the_deadline_and_keeps_its_turn(gate):
    apart = Apart(1)
    with pytest.raises(TimeoutError):
        await apart.run("a wait", gate.wait, deadline=await soon())
    with pytest.raises(TimeoutError):
        await apart.run("another", lambda: None, deadline=await soon())
    gate.set()
    assert await apart.run("a third", lambda: 3, deadline=await soon(5)) == 3


async def test_who_hangs_takes_no_thread_of_the_loops_pool(gate):
    apart = Apart(2)
    for _ in range(2):
        with pytest.raises(TimeoutError):
            await apart.run("a wait", gate.wait, deadline=await soon())
    async with asyncio.timeout(5):
        assert await asyncio.to_thread(lambda: "free") == "free"


async def test_a_cancelled_caller_leaves_its_work_and_its_turn_comes_back(gate):
    apart = Apart(1)
    waiting = spawn("wait", apart.run("a wait", gate.wait, deadline=await soon(5)))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    gate.set()
    assert await apart.run("a second", lambda: 2, deadline=await soon(5)) == 2
