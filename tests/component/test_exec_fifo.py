"""Starts by the runtime's FIFO, on real FIFOs: what goes by it, what goes by the shim instead."""

from __future__ import annotations

import os

import pytest

from agent.errors import RuntimeUnavailable
from agent.sandbox.exec_fifo import FIFO
from tests.component.sandbox_house import ID, House, built, unavailable

SPARE = "kindling-anchor-spare"


class Init:
    """Stands for the runtime's init: it waits at the reading end of the FIFO of a container."""

    def __init__(self, house, id=ID):
        self.path = house.state / id / FIFO
        self.path.parent.mkdir(parents=True)
        os.mkfifo(self.path)
        self.fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)

    def dies(self):
        os.close(self.fd)
        self.fd = -1

    @property
    def told(self):
        """What it reads: a byte once it is to run, None as long as nobody has written."""
        try:
            return os.read(self.fd, 8) or None
        except BlockingIOError:
            return None


@pytest.fixture
async def house(tmp_path):
    found = House(tmp_path)
    await found.shims.start()
    found.builder.exec_fifo.works = True
    found.points.forget()
    return found


async def test_a_start_writes_a_byte_and_asks_nobody(house):
    init = Init(house)
    container, _ = await house.builder.build(house.order())
    assert init.told is None
    house.points.forget()
    await house.builder.start(container)
    assert init.told
    assert not init.path.exists(), "the runtime takes it for created"
    assert house.points.passed == []
    await house.builder.destroy(container)
    assert house.held() == {}


@pytest.mark.parametrize(
    ("what", "spoil"),
    [
        ("its init has died", lambda init: init.dies()),
        ("it was let go before", lambda init: init.path.unlink()),
        ("the state is gone", lambda init: (init.path.unlink(), init.path.parent.rmdir())),
    ],
)
async def test_what_the_fifo_refuses_is_started_by_its_shim(house, what, spoil):
    init = Init(house)
    container, _ = await house.builder.build(house.order())
    spoil(init)
    house.points.forget()
    await house.builder.start(container)
    assert house.points.passed == ["tasks.start"], what


async def test_an_init_that_died_fails_the_start_with_the_words_of_the_shim(house):
    Init(house).dies()
    container, _ = await house.builder.build(house.order())
    house.points.fail["tasks.start"] = unavailable("cannot start a stopped process")
    with pytest.raises(RuntimeUnavailable, match="stopped process"):
        await house.builder.start(container)


# The probe


@pytest.fixture
async def unknown(tmp_path):
    """A house that has not been probed."""
    found = House(tmp_path)
    await found.shims.start()
    found.points.forget()
    return found


async def test_a_runtime_whose_probe_runs_and_ends_is_started_by_fifo(unknown):
    init = Init(unknown, SPARE)
    fifo = unknown.builder.exec_fifo
    await fifo.probe(unknown.shims)
    assert fifo.works
    assert init.told
    assert unknown.held() == {}
    assert SPARE not in unknown.tasks.status
    assert SPARE not in unknown.containers.records


@pytest.mark.parametrize("step", ["containers.create", "tasks.create", "tasks.wait"])
async def test_a_probe_that_fails_leaves_starts_to_the_shims(unknown, step):
    Init(unknown, SPARE)
    unknown.points.fail[step] = unavailable(step)
    fifo = unknown.builder.exec_fifo
    await fifo.probe(unknown.shims)
    assert not fifo.works
    assert unknown.held() == {}
    assert SPARE not in unknown.containers.records
    container = await built(unknown)
    assert unknown.points.passed[-1] == "tasks.start"
    await unknown.builder.destroy(container)


async def test_a_runtime_whose_fifo_nobody_reads_is_left_to_the_shims(unknown):
    init = Init(unknown, SPARE)
    init.dies()
    fifo = unknown.builder.exec_fifo
    await fifo.probe(unknown.shims)
    assert not fifo.works
    assert init.path.exists(), "runc's own start needs it"


async def test_what_is_turned_off_is_not_probed(tmp_path):
    house = House(tmp_path, fifo=False)
    await house.shims.start()
    house.points.forget()
    await house.builder.exec_fifo.probe(house.shims)
    assert house.points.passed == []
    assert not house.builder.exec_fifo.works


# What containerd believes created, and runs


class NotCollected:
    """Tasks that run though containerd believes them created, until their shim has the exit."""

    def __init__(self, house):
        self.collected = False
        self._tasks = house.tasks
        self._wait, self._delete = house.tasks.wait, house.tasks.delete
        house.tasks.wait, house.tasks.delete = self.wait, self.delete

    async def wait(self, id, *, deadline):
        self.collected = True
        return await self._wait(id, deadline=deadline)

    async def delete(self, id, *, deadline=None):
        if not self.collected:
            raise unavailable(f"the container `{id}` is not in `created` or `stopped` state")
        return await self._delete(id, deadline=deadline)


async def test_a_leftover_let_go_by_fifo_is_removed_though_its_exit_is_not_collected_yet(house):
    Init(house)
    container, _ = await house.builder.build(house.order())
    await house.builder.start(container)
    container.close()
    tasks = NotCollected(house)
    await house.builder.remove_leftover(ID)
    assert tasks.collected
    assert ID not in house.tasks.status
