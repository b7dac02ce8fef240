"""What a dead worker left: a container is adopted by its record, or cleared; strays are ended."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from agent.errors import (
    NotFound,
    RuntimeUnavailable,
)
from agent.model.records import InstanceRecord
from tests.component.function_house import until
from tests.component.sandbox_house import (
    ID,
    FakeCgroup,
    House,
    built,
    descriptors,
    record_of,
    unavailable,
)

RECORD = InstanceRecord(
    id=ID,
    function="f",
    version=1,
    row=7,
    network_slot=7,
    address="172.30.0.7",
    port=9000,
    layer_kind="slot512",
    layer_slot=0,
    pid=os.getpid(),
    state="ready",
    created_ns=1,
)


@pytest.fixture
async def house(tmp_path):
    found = House(tmp_path)
    await found.shims.start()
    found.points.forget()
    return found


async def outlived(house):
    """Leave a container as a dead worker leaves it."""
    house.containers.records[ID] = record_of(ID)
    await house.tasks.create(ID)
    await house.tasks.start(ID)
    house.rootfs.mounted.add(ID)
    house.points.forget()


async def test_adoption_takes_over_what_the_record_names(house):
    await outlived(house)
    container = await house.builder.adopt(RECORD, house.lines.append, "all")
    assert (container.address, container.pid) == ("172.30.0.7", os.getpid())
    await house.builder.destroy(container)
    assert house.held() == {}


async def test_an_adopted_containers_earlier_kills_for_memory_are_not_told_again(
    house, monkeypatch
):
    monkeypatch.setattr("agent.sandbox.container.LOOK_S", 0.1)
    count = [3]
    monkeypatch.setattr(FakeCgroup, "oom_kills", lambda _: count[0])
    await outlived(house)
    container = await house.builder.adopt(RECORD, house.lines.append, "all")
    count[0] = 4
    await until(lambda: house.lines)
    (line,) = house.lines
    assert line.text.startswith(b"1 process was killed for memory (4 since the start)")
    await house.builder.destroy(container)
    assert house.held() == {}


async def test_a_task_of_a_dead_shim_is_forgotten_at_the_first_try(house):
    """containerd forgets such a task, but reports the dead shim instead of success."""
    await outlived(house)
    delete = house.tasks.delete

    async def forgets(id, **more):
        house.tasks.delete = delete
        del house.tasks.status[id]
        raise unavailable("ttrpc: closed")

    house.tasks.delete = forgets
    await house.builder.remove_leftover(ID)
    assert ID not in house.containers.records


async def test_an_adopted_container_of_a_dead_shim_knows_it_too(house):
    await outlived(house)
    house.containers.records[ID] = replace(record_of(ID), sandbox="kindling-anchor-99")
    container = await house.builder.adopt(RECORD, house.lines.append, "all")
    assert container.unread.done()
    await house.builder.destroy(container)
    assert house.held() == {}


@pytest.mark.parametrize("step", ["network.adopt", "layers.adopt", "containers.get"])
async def test_an_adoption_that_fails_half_way_holds_nothing(house, step):
    before = descriptors()
    await outlived(house)
    house.points.fail[step] = NotFound(step)
    with pytest.raises(NotFound, match=step):
        await house.builder.adopt(RECORD, house.lines.append, "all")
    assert not house.network.leased
    assert not house.layers.leased
    await house.builder.remove_leftover(ID)
    assert house.held() == {}
    assert descriptors() == before


async def test_an_adoption_without_descriptors_left_is_an_error_of_ours(house, monkeypatch):
    def fail(*_):
        raise OSError(24, "too many open files")

    await outlived(house)
    monkeypatch.setattr("agent.sandbox.exits.os.pidfd_open", fail)
    with pytest.raises(RuntimeUnavailable, match="too many"):
        await house.builder.adopt(RECORD, house.lines.append, "all")
    assert house.held() == {}


@pytest.mark.parametrize("step", ["tasks.delete", "containers.delete", "rootfs.teardown"])
async def test_a_left_over_that_cannot_be_removed_is_an_error_until_it_can(house, step):
    await outlived(house)
    house.points.fail[step] = unavailable(step)
    with pytest.raises(RuntimeUnavailable):
        await house.builder.remove_leftover(ID)
    await house.builder.remove_leftover(ID)
    assert house.held() == {}


async def test_strays_are_ended_but_never_what_somebody_knows(house):
    await built(house)
    house.cgroups.groups.add("stranger")
    await house.builder.tidy({ID})
    assert house.cgroups.groups >= {ID}
    assert "stranger" not in house.cgroups.groups
    assert "kindling-anchor-1" in house.cgroups.groups
