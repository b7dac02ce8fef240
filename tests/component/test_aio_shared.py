"""One run for all who want the same: who comes, who leaves, who is told what."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from agent.aio.shared import SharedRuns
from agent.aio.tasks import spawn, stop
from tests.component.function_house import until


class Work:
    """Something that is started, says steps, and ends when it is let go."""

    def __init__(self) -> None:
        self.starts = 0
        self.ended = 0
        self.go = asyncio.Event()
        self.tell: Callable[[str], None] = lambda _: None
        self.error: Exception | None = None

    async def run(self, tell: Callable[[str], None]) -> str:
        self.starts += 1
        self.tell = tell
        try:
            await self.go.wait()
            if self.error is not None:
                raise self.error
            return f"result {self.starts}"
        finally:
            self.ended += 1


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def runs() -> SharedRuns[str, str]:
    return SharedRuns(kind=lambda step: step.split()[0])


async def begun(work: Work, starts: int = 1) -> None:
    await until(lambda: work.starts == starts)


async def test_twenty_callers_cost_one_run(runs, work):
    callers = [spawn("caller", runs.join("x", "x", work.run)) for _ in range(20)]
    await begun(work)
    work.go.set()
    assert await asyncio.gather(*callers) == ["result 1"] * 20
    assert (work.starts, len(runs)) == (1, 0)


async def test_other_keys_run_beside(runs, work):
    callers = [spawn("caller", runs.join(key, key, work.run)) for key in "ab"]
    await begun(work, 2)
    work.go.set()
    await asyncio.gather(*callers)
    assert work.starts == 2


async def test_the_one_who_came_first_may_leave(runs, work):
    first = spawn("first", runs.join("x", "x", work.run))
    await begun(work)
    second = spawn("second", runs.join("x", "x", work.run))
    await asyncio.sleep(0)
    await stop(first)
    assert work.ended == 0
    work.go.set()
    assert await second == "result 1"


async def test_the_last_one_who_leaves_ends_it(runs, work):
    callers = [spawn("caller", runs.join("x", "x", work.run)) for _ in range(3)]
    await begun(work)
    await stop(*callers[:2])
    assert work.ended == 0
    await stop(callers[2])
    assert (work.ended, len(runs)) == (1, 0)
    later = spawn("later", runs.join("x", "x", work.run))
    await begun(work, 2)
    work.go.set()
    assert await later == "result 2"


async def test_an_error_is_everybodys_and_the_next_one_tries_again(runs, work):
    work.error = ValueError("no")
    callers = [spawn("caller", refused(runs, work)) for _ in range(2)]
    await begun(work)
    work.go.set()
    assert await asyncio.gather(*callers) == ["no", "no"]
    work.error = None
    assert await runs.join("x", "x", work.run) == "result 2"


async def refused(runs: SharedRuns[str, str], work: Work) -> str:
    with pytest.raises(ValueError, match="no") as refusal:
        await runs.join("x", "x", work.run)
    return str(refusal.value)


async def test_who_joins_late_is_told_how_far_it_is(runs, work):
    early: list[str] = []
    late: list[str] = []
    first = spawn("first", runs.join("x", "x", work.run, early.append))
    await begun(work)
    for step in ("a 1", "b 1", "a 2"):
        work.tell(step)
    second = spawn("second", runs.join("x", "x", work.run, late.append))
    await asyncio.sleep(0)
    work.tell("b 2")
    work.go.set()
    await asyncio.gather(first, second)
    assert early == ["a 1", "b 1", "a 2", "b 2"]
    assert late == ["a 2", "b 1", "b 2"]
