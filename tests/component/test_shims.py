"""Anchored shims: choice, counting, death, and what a new worker finds."""

from __future__ import annotations

import asyncio
import os
import subprocess

import pytest

from agent.containerd.tasks import TaskStatus
from agent.errors import AlreadyExists
from agent.sandbox.exits import ProcessExit
from tests.component.sandbox_house import House, record_of, unavailable


def nobody():
    """Be told of a shim's death and do nothing."""


@pytest.fixture
async def house(tmp_path):
    found = House(tmp_path)
    await found.shims.start()
    return found


async def test_containers_go_to_the_least_busy_shim_and_creates_weigh_more(house):
    shims = house.shims
    first, second = shims.pick("a", nobody), shims.pick("b", nobody)
    assert {first, second} == {"kindling-anchor-1", "kindling-anchor-2"}
    shims.created("a")
    # one create under way weighs more than a container that runs
    assert shims.pick("c", nobody) == first
    shims.created("c")
    shims.created("b")
    assert shims.pick("d", nobody) == second


async def test_counting_survives_every_order_and_repetition(house):
    shims = house.shims
    shims.pick("a", nobody)
    shims.removed("a")
    shims.created("a")
    shims.created("stranger")
    shims.removed("a")
    shims.adopted("b", "kindling-anchor-1", nobody)
    shims.adopted("c", "no such anchor", nobody)
    shims.removed("b")
    shims.removed("b")
    shims.removed("c")
    assert [a.load for a in shims._anchors.values()] == [0, 0]
    assert shims._of == {}


async def test_a_shim_that_misses_a_deadline_drains_and_is_replaced_when_empty(house):
    shims = house.shims
    late = shims.pick("a", nobody)
    shims.created("a", late=True)
    assert shims.usable == 1
    assert shims.pick("b", nobody) != late
    await shims.mend()
    assert late in shims._anchors
    assert shims.usable == 2
    shims.removed("a")
    await shims.mend()
    assert late not in shims._anchors
    assert late not in house.tasks.status
    assert late not in house.containers.records
    assert shims.usable == 2


async def test_mending_twice_at_once_makes_no_shim_too_many(house):
    shims = house.shims
    for name in ("a", "b"):
        shims.pick(name, nobody)
        shims.created(name, late=True)
    gate = house.points.hang["sandboxes.create"] = asyncio.Event()
    mending = asyncio.gather(shims.mend(), shims.mend(), shims.mend())
    await house.points.reached("sandboxes.create")
    await asyncio.sleep(0)
    gate.set()
    await mending
    assert shims.usable == 2
    assert len(shims._anchors) == 4


async def test_a_shim_that_dies_takes_no_more_and_another_takes_its_place(house, monkeypatch):
    shims = house.shims
    with subprocess.Popen(["/bin/sleep", "60"]) as shim:
        monkeypatch.setattr("agent.sandbox.shims.parent_of", lambda pid: shim.pid)
        shims._add("kindling-anchor-9", os.getpid())
        anchor = shims._anchors["kindling-anchor-9"]
        told = []
        shims.adopted("a", "kindling-anchor-9", lambda: told.append("a"))
        shims.adopted("b", "kindling-anchor-9", lambda: told.append("b"))
        shims.removed("b")
        shims._count = 3
        monkeypatch.undo()
        shim.kill()
        async with asyncio.timeout(5):
            await anchor.process.done
            await shims.mend()  # waits for the one that the death began
    assert anchor.draining
    assert told == ["a"]
    assert shims.usable == 3
    assert "kindling-anchor-9" in shims._anchors  # it still has a container
    shims.removed("a")
    await shims.mend()
    assert "kindling-anchor-9" not in shims._anchors


async def test_a_container_in_the_making_hears_of_its_shims_death_too(house):
    shims = house.shims
    told = []
    id = shims.pick("a", lambda: told.append("a"))
    shims._died(shims._anchors[id])
    shims._died(shims._anchors[id])
    assert told == ["a"]
    shims.created("a")
    shims.removed("a")
    assert shims._lost == {}


async def test_a_container_whose_shim_died_while_no_worker_ran_is_told_at_once(house):
    told = []
    house.shims.adopted("a", "kindling-anchor-7", lambda: told.append("a"))
    house.shims.adopted("own", "", lambda: told.append("own"))
    assert told == ["a"]
    assert house.shims._lost == {}


@pytest.mark.parametrize("step", ["containers.create", "tasks.create", "sandboxes.create"])
async def test_an_anchor_that_cannot_be_made_leaves_nothing_and_no_anchors_at_all(tmp_path, step):
    house = House(tmp_path)
    house.points.fail[step] = unavailable(step)
    await house.shims.start()
    assert not house.shims.anchored
    assert house.shims.pick("a", nobody) == ""
    assert not house.containers.records
    assert not house.tasks.status
    await house.shims.mend()
    assert not house.shims.anchored  # not tried again for every cycle
    container, _ = await house.builder.build(house.order())
    assert house.containers.records[container.id].sandbox == ""


async def test_a_new_worker_keeps_living_anchors_and_removes_dead_ones(house, tmp_path):
    house.tasks.status["kindling-anchor-2"] = TaskStatus.STOPPED
    second = House(tmp_path / "second")
    second.containers.records = house.containers.records
    second.tasks.status = house.tasks.status
    second.sandboxes.ids = house.sandboxes.ids
    await second.shims.start()
    assert set(second.shims._anchors) == {"kindling-anchor-1", "kindling-anchor-3"}
    assert "kindling-anchor-2" not in second.containers.records


async def test_stop_removes_every_anchor(house):
    await house.shims.stop()
    assert not house.containers.records
    assert not house.tasks.status
    assert not house.sandboxes.ids


async def test_a_shim_that_dies_before_its_containers_are_adopted_is_told_at_once(house):
    with subprocess.Popen(["/bin/sleep", "60"]) as shim:
        anchor = house.shims._anchors["kindling-anchor-1"]
        anchor.process.close()
        anchor.process = ProcessExit(shim.pid)
        shim.kill()
        async with asyncio.timeout(10):
            await anchor.process.done
    told = []
    house.shims.adopted("a", anchor.id, lambda: told.append("a"))
    assert told == ["a"]
    assert anchor.containers == {"a"}
    house.shims.removed("a")


# -- two workers at once


async def test_an_anchor_that_another_worker_has_just_made_is_not_removed(house):
    taken = record_of("kindling-anchor-3")
    house.containers.records[taken.id] = taken
    house.points.fail["containers.create"] = AlreadyExists(taken.id)
    house.shims._anchors["kindling-anchor-1"].draining = True
    await house.shims.mend()
    assert taken.id in house.containers.records
    await house.shims.mend()  # with another number
    assert house.shims.usable == 2


async def test_a_shim_that_dies_after_the_hand_over_is_the_next_workers(house):
    with subprocess.Popen(["/bin/sleep", "60"]) as shim:
        anchor = house.shims._anchors["kindling-anchor-1"]
        anchor.process.close()
        anchor.process = ProcessExit(shim.pid)
        anchor.process.done.add_done_callback(lambda _: house.shims._died(anchor))
        house.shims.leave()
        house.points.forget()
        shim.kill()
        shim.wait()
        for _ in range(10):  # it would be seen in the first of these
            await asyncio.sleep(0)
    assert not anchor.draining
    await house.shims.mend()
    assert house.points.passed == []
    assert set(house.tasks.status) == {"kindling-anchor-1", "kindling-anchor-2"}
