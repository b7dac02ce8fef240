"""Background tasks, cleanups that cancellation cannot cut short, waiting lines, cutoff."""

from __future__ import annotations

import asyncio
import gc
import logging

import pytest

from agent.aio.deadline import ShrinkingDeadline
from agent.aio.tasks import finish, launch, spawn, stop
from agent.aio.turns import TurnQueue


async def forever():
    await asyncio.Event().wait()


# -- spawn, launch, stop


async def test_a_task_nobody_holds_is_not_collected():
    done = asyncio.Event()

    async def work():
        await asyncio.sleep(0)
        done.set()

    launch("work", work())
    gc.collect()
    async with asyncio.timeout(5):
        await done.wait()


async def test_an_unexpected_error_is_logged_with_the_tasks_name_and_still_raised(caplog):
    async def work():
        raise ValueError("broken")

    task = spawn("a certain task", work())
    with pytest.raises(ValueError, match="broken"):
        await task
    assert [r.levelno for r in caplog.records] == [logging.ERROR]
    assert "a certain task" in caplog.text


async def test_stop_waits_for_the_end_and_takes_none_and_ended_tasks():
    steps = []

    async def work():
        try:
            await forever()
        finally:
            await asyncio.sleep(0)
            steps.append("cleaned up")

    task, ended = spawn("work", work()), spawn("ended", asyncio.sleep(0))
    await ended
    await stop(task, None, ended)
    assert steps == ["cleaned up"]
    assert task.cancelled()
    await stop()


async def test_stopping_logs_no_error(caplog):
    await stop(spawn("work", forever()))
    assert caplog.records == []


# -- finish


async def test_finish_returns_what_the_cleanup_returns():
    async def cleanup():
        return 7

    assert await finish("c", cleanup(), within_s=5) == 7


async def test_finish_raises_what_the_cleanup_raises_and_does_not_log_it(caplog):
    async def cleanup():
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await finish("c", cleanup(), within_s=5)
    assert caplog.records == []


@pytest.mark.parametrize("times", [1, 3])
async def test_a_cleanup_goes_on_to_its_end_however_often_its_caller_is_cancelled(times):
    steps, gate = [], asyncio.Event()

    async def cleanup():
        steps.append("began")
        await gate.wait()
        steps.append("ended")

    task = spawn("caller", finish("c", cleanup(), within_s=5))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    gate.set()
    await asyncio.wait({task})
    assert task.cancelled()
    assert steps == ["began", "ended"]


async def test_a_caller_cancelled_before_it_began_begins_no_cleanup():
    task = spawn("caller", forever())
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()


async def test_a_cleanup_that_takes_too_long_is_given_up_and_told(caplog):
    cancelled = asyncio.Event()

    async def cleanup():
        try:
            await forever()
        finally:
            cancelled.set()

    assert await finish("a slow one", cleanup(), within_s=0.01) is None
    async with asyncio.timeout(5):
        await cancelled.wait()
    assert "a slow one" in caplog.text


async def test_an_error_of_a_cleanup_whose_caller_went_away_is_logged(caplog):
    gate = asyncio.Event()

    async def cleanup():
        await gate.wait()
        raise ValueError("nobody hears this")

    task = spawn("caller", finish("c", cleanup(), within_s=5))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    gate.set()
    await asyncio.wait({task})
    assert task.cancelled()
    assert "nobody hears this" in caplog.text


# -- line


async def test_a_line_tells_the_first_and_passes_over_who_has_left():
    line = TurnQueue()
    deadline = asyncio.get_running_loop().time() + 5
    first, second, third = (spawn(f"{n}", line.turn(deadline)) for n in range(3))
    await asyncio.sleep(0)
    assert len(line) == 3
    await stop(first)
    line.tell()
    await second
    assert not third.done()
    line.refuse(ValueError("no more"))
    with pytest.raises(ValueError, match="no more"):
        await third
    line.refuse(ValueError("nobody there"))
    assert len(line) == 0


async def test_a_turn_ends_at_its_deadline():
    line = TurnQueue()
    with pytest.raises(TimeoutError):
        await line.turn(asyncio.get_running_loop().time())
    assert len(line) == 0


# -- patience


async def test_patience_can_only_get_shorter():
    cutoff = ShrinkingDeadline()
    cutoff.at_most(60)
    cutoff.at_most(0.001)
    cutoff.at_most(30)
    async with asyncio.timeout(5):
        await cutoff.wait_for()
    assert cutoff.over.done()
    cutoff.at_most(0)  # over is over


async def test_no_patience_at_all_is_over_at_once():
    cutoff = ShrinkingDeadline()
    cutoff.at_most(-1)
    assert cutoff.over.done()


async def test_waiting_ends_with_the_thing_waited_for():
    cutoff, thing = ShrinkingDeadline(), asyncio.get_running_loop().create_future()
    cutoff.at_most(60)
    waiting = spawn("waiting", cutoff.wait_for(thing))
    await asyncio.sleep(0)
    thing.set_result(1)
    async with asyncio.timeout(5):
        await waiting
    assert not cutoff.over.done()
    cutoff.close()
    cutoff.close()
