"""A start without room: idle instances of other versions end for it, others do not."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from agent.aio.tasks import spawn, stop
from agent.calls.target import FunctionTarget
from agent.core.mode import Mode
from agent.model.failure import FailureKind
from tests.component.function_house import House, call, gone, turns, until


class Node(House):
    """A house whose timer knows all the targets it has made."""

    targets: list[FunctionTarget]

    def target(self, name="f", **fields):
        self.targets.append(super().target(name, **fields))
        return self.targets[-1]

    def line(self):
        """Who waits for room."""
        return list(self.fleet.eviction.queue._seekers)

    async def used(self, target):
        """Have one call made; its instance is idle then."""
        lease = await self.lease(target)
        target.release(lease, call())
        return lease.endpoint.id


@asynccontextmanager
async def node(path, **fields):
    async with Node(path, **fields) as house:
        house.targets.clear()
        timer = spawn("timer", house.fleet.timer.run(lambda: house.targets))
        await turns()
        try:
            yield house
        finally:
            await stop(timer)
            for gate in house.points.hang.values():
                gate.set()
            await gone(house, *house.targets)
            assert house.line() == []


async def test_the_longest_idle_instance_gives_its_slot_to_a_waiting_call(tmp_path):
    async with node(tmp_path) as house:
        one, two, three = house.target("one"), house.target("two"), house.target("three")
        house.builder.room = 2
        older, newer = await house.used(one), await house.used(two)
        lease = await house.lease(three)
        assert lease.cold_start is not None
        assert older not in house.builder.alive
        assert newer in house.builder.alive
        three.release(lease, call())


async def test_memory_is_freed_by_as_many_as_it_takes(tmp_path):
    async with node(tmp_path, memory_mb=1024) as house:
        small = [house.target(f"small{n}") for n in range(4)]
        ids = [await house.used(target) for target in small]
        large = house.target("large", memory_mb=512)
        large.release(await house.lease(large), call())
        assert [id in house.builder.alive for id in ids] == [False, False, True, True]


async def test_nobody_ends_for_a_start_that_fits_nowhere(tmp_path):
    async with node(tmp_path, memory_mb=1024) as house:
        small = house.target("small")
        id = await house.used(small)
        huge = house.target("huge", memory_mb=2048)
        assert await house.lease(huge) is FailureKind.NO_CAPACITY
        assert id in house.builder.alive


async def test_busy_and_provisioned_instances_stay(tmp_path):
    async with node(tmp_path) as house:
        busy, kept = house.target("busy"), house.target("kept", scaling={"min": 1})
        house.builder.room = 2
        lease = await house.lease(busy)
        await until(lambda: kept.pool.ready_count == 1)
        assert await house.lease(house.target("late")) is FailureKind.NO_CAPACITY
        assert len(house.builder.alive) == 2
        busy.release(lease, call())


async def test_a_wanted_minimum_takes_the_room_of_what_is_idle(tmp_path):
    async with node(tmp_path) as house:
        house.builder.room = 1
        id = await house.used(house.target("one"))
        kept = house.target("kept", scaling={"min": 1})
        await until(lambda: kept.pool.ready_count == 1, within_s=20)
        assert id not in house.builder.alive


async def test_one_that_ends_slowly_is_enough_for_one_call(tmp_path):
    async with node(tmp_path) as house:
        targets = [house.target(name) for name in ("one", "two")]
        house.builder.room = 2
        ids = [await house.used(target) for target in targets]
        house.points.hang["destroy"] = gate = asyncio.Event()
        late = house.target("late")
        caller = house.wait(late)
        await until(lambda: ("destroy", ids[0]) in house.did)
        for _ in range(5):
            late.scaling.try_again(house.fleet.now())
            await turns()
        assert not caller.told
        assert ("destroy", ids[1]) not in house.did
        gate.set()
        late.release(await caller.answer(), call())


async def test_what_becomes_idle_later_gives_way_too(tmp_path):
    async with node(tmp_path) as house:
        one, two = house.target("one"), house.target("two")
        house.builder.room = 2
        lease, other = await house.lease(one), await house.lease(two)
        caller = house.wait(two)
        await turns()
        one.release(lease, call())
        house.skip(2)
        assert (await caller.answer()).endpoint is not other.endpoint
        two.release(other, call())
        two.release(caller.lease, call())


@pytest.mark.parametrize("room", [{"memory_mb": 256}, {"instances": 1}, {}])
async def test_a_job_gets_room_as_well(tmp_path, room):
    async with node(tmp_path, **room) as house:
        house.builder.room = 1
        idle = await house.used(house.target("one"))
        job = house.target("job", contract="scf-job", kind="job", memory_mb=256)
        run = await house.jobs.run(job, call("j-1"), b"")
        await run.started
        assert run.failure is None
        assert idle not in house.builder.alive
        assert list(house.builder.alive) == [run.instance.id] == [run.record.instance]
        house.builder.alive[run.instance.id].die(0)
        await run.ended
        assert house.saved["j-1"].state == "Succeeded"


async def test_a_job_that_is_stopped_while_it_waits_for_room_never_runs(tmp_path):
    async with node(tmp_path) as house:
        house.builder.room = 1
        idle = await house.used(house.target("one"))
        house.points.hang["destroy"] = gate = asyncio.Event()
        job = house.target("job", contract="scf-job", kind="job", memory_mb=256)
        run = await house.jobs.run(job, call("j-1"), b"")
        await until(lambda: ("destroy", idle) in house.did)
        stopping = spawn("stop", house.jobs.stop("j-1"))
        await asyncio.wait({stopping}, timeout=20)
        assert stopping.done()
        assert not house.told.ready[1:]
        assert run.failure.kind is FailureKind.CLIENT_CANCELLED
        gate.set()


async def test_a_job_whose_place_nobody_leaves_in_time_is_refused(tmp_path):
    async with node(tmp_path, memory_mb=256) as house:
        await house.used(house.target("one"))
        house.points.hang["destroy"] = gate = asyncio.Event()
        job = house.target(
            "job", contract="scf-job", kind="job", memory_mb=256, queue_timeout_s=0.1
        )
        with pytest.raises(Exception, match="MB are free"):
            await house.jobs.run(job, call("j-1"), b"")
        gate.set()


async def end_of_wait(house, how, job, waiting):
    """Bring the wait of a job or a function for room to its end."""
    if how == "cancelled":
        waiting.cancel()
    elif how == "stopped":
        await house.jobs.stop("j-1")
    elif how == "removed":
        await asyncio.gather(job.stop(grace_s=0.0), house.jobs.end_those_of("job", force=True))
    await asyncio.wait({waiting}, timeout=20)


@pytest.mark.parametrize(
    ("how", "room", "queue_s"),
    [
        ("timed out", {"memory_mb": 256}, 0.1),  # before it has an instance
        ("timed out", {}, 0.1),  # when its instance finds no slot
        ("cancelled", {"memory_mb": 256}, 20),
        ("stopped", {}, 20),
        ("removed", {}, 20),
    ],
)
async def test_a_job_that_waits_for_room_no_more_still_stands_in_line(tmp_path, how, room, queue_s):
    async with node(tmp_path, **room) as house:
        house.builder.room = 1
        await house.used(house.target("one"))
        house.points.hang["destroy"] = asyncio.Event()
        job = house.target(
            "job", contract="scf-job", kind="job", memory_mb=256, queue_timeout_s=queue_s
        )

        async def run():
            run = await house.jobs.run(job, call("j-1"), b"")
            await run.ended

        waiting = spawn("run", run())
        await until(house.line)
        await end_of_wait(house, how, job, waiting)
        assert house.line() == []
        if not waiting.cancelled():
            waiting.exception()


async def test_a_function_that_is_removed_still_stands_in_line_for_room(tmp_path):
    async with node(tmp_path) as house:
        house.builder.room = 1
        busy = house.target("busy")
        lease = await house.lease(busy)
        removed = house.target("removed")
        assert await house.lease(removed) is FailureKind.NO_CAPACITY
        assert house.line()
        await removed.stop(grace_s=0.0)
        assert house.line() == []
        busy.release(lease, call())


async def test_instances_of_the_next_worker_are_left_alone(tmp_path):
    async with node(tmp_path) as house:
        house.builder.room = 1
        one, two = house.target("one"), house.target("two")
        id = await house.used(one)
        house.mode.hand_over()
        two.pool.enqueue(object(), 0.0, 1e9)
        house.fleet.eviction.evict_for(two.version, house.no_slots())
        assert one.pool.ready_count == 1
        assert id in house.builder.alive
        two.pool.close()
        house.mode._become(Mode.SERVING)  # so that what is left is ended here
