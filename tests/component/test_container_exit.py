"""A container's exit, with real processes: noticed once, with its status and its last words."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess

import pytest

from agent.errors import RuntimeUnavailable
from agent.sandbox.exits import ProcessExit
from tests.component.function_house import at_rest, until
from tests.component.sandbox_house import House, unavailable


@pytest.fixture
async def house(tmp_path, monkeypatch):
    # Nobody but one test writes into the FIFOs, so their end never comes.
    monkeypatch.setattr("agent.sandbox.container.OUTPUT_S", 0.0)
    found = House(tmp_path)
    await found.shims.start()
    return found


@pytest.fixture
def process():
    with subprocess.Popen(["/bin/sleep", "60"]) as found:
        yield found
        found.kill()


async def watched(house, process):
    house.tasks.pid = process.pid
    container, _ = await house.builder.build(house.order())
    await house.builder.start(container)
    return container


async def seen(container):
    async with asyncio.timeout(5):
        return await container.exit


@pytest.mark.parametrize(
    ("code", "number"), [(0, None), (3, None), (128, None), (137, 9), (143, 15), (255, None)]
)
async def test_an_exit_carries_status_peak_and_signal(house, process, code, number):
    container = await watched(house, process)
    house.tasks.exit_code = code
    assert not container.exited
    process.kill()
    how = await seen(container)
    assert (how.exit_code, how.signal) == (code, number)
    assert how.peak_bytes == 7 << 20
    assert not how.out_of_memory
    assert how.at_ns > 0
    await house.builder.destroy(container)
    assert container.exit.result() is how


def spoken(house):
    return [line.text.decode() for line in house.lines if line.stream == "platform"]


@pytest.mark.parametrize(
    ("code", "out_of_memory"), [(137, True), (0, False), (1, False), (3, False), (143, False)]
)
async def test_an_exit_beside_a_kill_for_memory_keeps_its_own_code(
    house, process, code, out_of_memory
):
    container = await watched(house, process)
    container.cgroup.oom = 1
    house.tasks.exit_code = code
    process.kill()
    how = await seen(container)
    assert (how.exit_code, how.out_of_memory) == (code, out_of_memory)
    assert spoken(house) == [
        "1 process was killed for memory (1 since the start); memory_mb is the limit"
    ]
    await house.builder.destroy(container)


async def test_a_childs_kill_is_told_while_the_instance_lives_and_explains_no_later_exit(
    house, process, monkeypatch
):
    monkeypatch.setattr("agent.sandbox.container.LOOK_S", 0.1)
    monkeypatch.setattr("agent.core.memory_kills.RECENT_S", -1.0)
    container = await watched(house, process)
    container.cgroup.oom = 2
    await until(lambda: spoken(house))
    assert not container.exited
    house.tasks.exit_code = 137
    process.kill()
    assert not (await seen(container)).out_of_memory
    assert len(spoken(house)) == 1
    await house.builder.destroy(container)


async def test_a_kill_before_an_adoption_explains_no_exit_after_it(house, process):
    """As when a reload comes between a child's kill and somebody's SIGKILL."""
    house.tasks.pid = process.pid
    container, _ = await house.builder.build(house.order())
    container.cgroup.oom = 1
    container.watch(process.pid, adopted=True)
    house.tasks.exit_code = 137
    process.kill()
    assert not (await seen(container)).out_of_memory
    assert spoken(house) == []
    await house.builder.destroy(container)


async def test_an_instance_left_to_another_worker_is_looked_at_while_calls_want_to_know(
    house, process, monkeypatch
):
    monkeypatch.setattr("agent.sandbox.container.LOOK_S", 0.05)
    container = await watched(house, process)
    looks, calls = [], [1]

    def kills():
        looks.append(1)
        return len(looks)

    monkeypatch.setattr(container.cgroup, "oom_kills", kills)
    container.leave(lambda: bool(calls))
    told = len(spoken(house))
    await until(lambda: len(looks) > 3)
    assert len(spoken(house)) == told  # the other one tells
    calls.clear()
    await at_rest(lambda: len(looks))
    process.kill()
    await seen(container)
    await house.builder.destroy(container)


async def test_what_we_kill_has_not_run_out_of_memory(house, process):
    container = await watched(house, process)
    container.cgroup.oom = 1
    house.tasks.exit_code = 137
    loop = asyncio.get_running_loop()
    await container.signal(signal.SIGKILL, deadline=loop.time() + 5)
    process.kill()
    assert not (await seen(container)).out_of_memory
    await house.builder.destroy(container)


async def test_the_last_words_come_before_the_exit_is_told(house, process, monkeypatch):
    monkeypatch.setattr("agent.sandbox.container.OUTPUT_S", 5.0)
    container = await watched(house, process)
    fd = os.open(container.output.path("stderr"), os.O_WRONLY)
    other = os.open(container.output.path("stdout"), os.O_WRONLY)
    os.write(fd, b"goodbye")
    process.kill()
    await house.points.reached("tasks.wait")
    os.write(fd, b", world")  # the shim copies after the exit
    os.close(fd)
    os.close(other)
    await seen(container)
    assert [line.text for line in house.lines] == [b"goodbye, world"]
    await house.builder.destroy(container)


async def test_a_status_that_containerd_does_not_know_is_an_exit_all_the_same(house, process):
    container = await watched(house, process)
    house.points.fail["tasks.wait"] = unavailable("tasks.wait")
    process.kill()
    assert (await seen(container)).exit_code == -1
    await house.builder.destroy(container)


async def test_a_process_that_was_gone_before_it_was_watched_has_exited(house):
    with subprocess.Popen(["/bin/true"]) as process:
        process.wait()
    container = await watched(house, process)
    assert (await seen(container)).exit_code == 0
    await house.builder.destroy(container)


async def test_signals_go_through_the_shim_and_past_it_when_it_is_dead(house, process):
    container = await watched(house, process)
    loop = asyncio.get_running_loop()
    await container.signal(signal.SIGCONT, deadline=loop.time() + 5)
    assert house.tasks.signals == [(container.id, signal.SIGCONT)]
    house.points.fail["tasks.kill"] = RuntimeUnavailable("its shim is dead")
    await container.signal(signal.SIGTERM, deadline=loop.time() + 5)
    await seen(container)
    assert process.wait() == -signal.SIGTERM
    await container.signal(signal.SIGTERM, deadline=loop.time() + 5)  # nobody is left: nothing
    await house.builder.destroy(container)


async def test_a_signal_reaches_a_process_whose_task_containerd_has_forgotten(house, process):
    container = await watched(house, process)
    del house.tasks.status[container.id]  # as after its shim's death: "not found", no error
    loop = asyncio.get_running_loop()
    await container.signal(signal.SIGTERM, deadline=loop.time() + 5)
    await seen(container)
    assert process.wait() == -signal.SIGTERM
    await house.builder.destroy(container)


async def test_kill_waits_for_the_exit_but_not_past_its_deadline(house, process):
    container = await watched(house, process)
    house.tasks.pid = 0  # the kill does not reach the process
    loop = asyncio.get_running_loop()
    await container.kill(deadline=loop.time() + 0.01)
    assert not container.exited
    process.kill()
    await container.kill(deadline=loop.time() + 5)
    assert container.exited
    await house.builder.destroy(container)


async def test_watching_nobody_and_closing_twice(process):
    with pytest.raises(ProcessLookupError):
        ProcessExit(2**22 + 1)
    before = len(os.listdir("/proc/self/fd"))
    found = ProcessExit(process.pid)
    found.close()
    found.close()
    assert not found.send(signal.SIGKILL)
    assert len(os.listdir("/proc/self/fd")) == before
