"""Every step of a build fails once and is cancelled once; afterwards nothing is held."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading

import pytest

from agent.aio.tasks import spawn
from agent.errors import (
    FailedPrecondition,
    NotFound,
    Overloaded,
    RuntimeUnavailable,
)
from agent.model.failure import FailureKind
from agent.sandbox.builder import own_environment
from agent.sandbox.exits import ProcessExit
from tests.component.function_house import until
from tests.component.sandbox_house import (
    ID,
    House,
    built,
    descriptors,
    unavailable,
    version,
)

BUILD = (
    "images.prepare",
    "network.lease",
    "layers.lease",
    "rootfs.prepare",
    "containers.create",
    "tasks.create",
)
TEARDOWN = (
    "tasks.delete",
    "tasks.kill",
    "tasks.wait",
    "tasks.delete",
    "containers.delete",
    "rootfs.teardown",
    "network.release",
    "layers.release",
)


class SlowVolume:
    """Stands for the look at a volume on a file system that is slow to answer."""

    def __init__(self, monkeypatch):
        self.asked, self.answers = threading.Event(), threading.Event()
        monkeypatch.setattr("agent.sandbox.blueprint.resolve", self.resolve)

    def resolve(self, mounts, volumes):
        self.asked.set()
        assert self.answers.wait(5), "the loop stands still meanwhile"
        return ()


@pytest.fixture
async def house(tmp_path):
    found = House(tmp_path)
    await found.shims.start()
    found.points.forget()
    return found


async def test_the_steps_are_these(house):
    container, _ = await house.builder.build(house.order())
    assert tuple(house.points.passed) == BUILD
    assert house.leased == [container]
    await house.builder.start(container)
    house.points.forget()
    await house.builder.destroy(container)
    assert tuple(house.points.passed) == TEARDOWN
    assert house.held() == {}


@pytest.mark.parametrize("step", BUILD)
async def test_a_build_that_fails_leaves_nothing(house, step):
    before = descriptors()
    house.points.fail[step] = unavailable(step)
    with pytest.raises(RuntimeUnavailable, match=step):
        await house.builder.build(house.order())
    assert house.held() == {}
    assert descriptors() == before
    await house.builder.destroy(await built(house))
    assert house.held() == {}


@pytest.mark.parametrize("step", BUILD)
async def test_a_build_that_is_cancelled_leaves_nothing(house, step):
    before = descriptors()
    house.points.cancel.add(step)
    task = house.points.victim = spawn("build", house.builder.build(house.order()))
    await asyncio.wait({task})
    assert task.cancelled()
    assert house.held() == {}
    assert descriptors() == before


@pytest.mark.parametrize("step", sorted(set(TEARDOWN)))
async def test_a_build_that_is_cancelled_again_while_it_is_undone_leaves_nothing(house, step):
    house.points.cancel.add(step)
    house.points.fail["tasks.create"] = unavailable("tasks.create")
    task = house.points.victim = spawn("build", house.builder.build(house.order()))
    await asyncio.wait({task})
    assert house.held() == {}


@pytest.mark.parametrize("step", ["leased", "output", "watch"])
async def test_a_fault_of_our_own_leaves_nothing_either(house, step, monkeypatch):
    def fail(*_):
        raise OSError(24, "too many open files")

    where = {
        "leased": (house.leased, None),
        "output": ("agent.sandbox.output.os.mkfifo", fail),
        "watch": ("agent.sandbox.exits.os.pidfd_open", fail),
    }
    order = house.order()
    if step == "leased":
        object.__setattr__(order, "leased", fail)
    else:
        monkeypatch.setattr(*where[step])
    before = descriptors()
    with pytest.raises(OSError, match="too many"):
        await house.builder.build(order)
    assert house.held() == {}
    assert descriptors() == before


async def test_a_create_cancelled_half_way_is_found_and_undone(house):
    gate = house.points.hang["tasks.create"] = asyncio.Event()
    task = spawn("build", house.builder.build(house.order()))
    await house.points.reached("tasks.create")
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()  # the shim is still at it
    gate.set()
    await asyncio.wait({task})
    assert task.cancelled()
    assert house.held() == {}


async def test_an_image_without_the_program_is_the_functions_failure(house):
    order = house.order(command=["/bin/other"])
    assert await house.builder.why_not_executed(order.version) is None  # nothing is known of it
    house.points.fail["tasks.create"] = unavailable("tasks.create")
    with pytest.raises(RuntimeUnavailable):
        await house.builder.build(order)
    why = await house.builder.why_not_executed(order.version)
    assert why.kind is FailureKind.FILE_NOT_FOUND
    assert why.message == "/bin/other is not in the image"
    assert house.held() == {}


@pytest.mark.parametrize(
    ("init", "code", "asked"),
    [
        *(("true", 127, True), ("true", 126, True), ("true", 1, False), ("true", 0, False)),
        *(("false", 127, True), ("false", 1, True), ("false", 0, False), ("false", 137, False)),
    ],
)
async def test_an_exit_that_is_the_programs_own_is_not_explained(house, init, code, asked):
    order = house.order(command=["/bin/other"], init=init)
    await house.builder.check(order.version)
    why = await house.builder.why_not_executed(order.version, code)
    assert (why is not None) is asked


async def test_no_free_layer_gives_the_network_slot_back(house):
    house.points.fail["layers.lease"] = Overloaded("all taken", reason="slots")
    with pytest.raises(Overloaded):
        await house.builder.build(house.order())
    assert house.held() == {}


# -- taking apart


@pytest.mark.parametrize("step", ["tasks.delete", "tasks.kill", "tasks.wait", "containers.delete"])
async def test_a_containerd_that_fails_holds_no_slot_back(house, step):
    container = await built(house)
    house.points.fail[step] = unavailable(step)
    await house.builder.destroy(container)
    held = house.held()
    assert held.keys() <= {"tasks", "records", "cgroups"}
    await house.builder.remove_leftover(ID)  # what the control cycle does with an orphan
    assert house.held() == {}


@pytest.mark.parametrize("step", ["network.release", "layers.release"])
async def test_a_slot_that_cannot_be_given_back_does_not_keep_the_others(house, step):
    container = await built(house)
    house.points.fail[step] = unavailable(step)
    await house.builder.destroy(container)
    assert house.held() == {}


async def test_slots_stay_taken_while_a_process_cannot_be_ended(house, monkeypatch):
    monkeypatch.setattr("agent.sandbox.teardown.SCRUB_PAUSE_S", 0)
    container = await built(house)
    house.cgroups.groups.add(ID)
    house.cgroups.stuck.add(ID)
    await house.builder.destroy(container)
    assert house.held().keys() >= {"network", "layers", "rootfs"}
    assert house.cgroups.killed
    await house.builder.tidy({})
    assert "layers" in house.held()
    house.cgroups.stuck.clear()
    await house.builder.tidy({})
    assert house.held() == {}


async def test_a_root_that_stays_mounted_keeps_its_layer_until_it_is_gone(house):
    container = await built(house)
    house.points.fail["rootfs.teardown"] = unavailable("rootfs.teardown")
    await house.builder.destroy(container)
    assert house.held().keys() == {"network", "layers", "rootfs", "shims", "fifos"}
    await house.builder.tidy({})
    assert house.held() == {}


async def test_who_waits_too_long_for_a_turn_to_be_ended_is_ended_later(house, monkeypatch):
    """A containerd that hangs holds up a few ends, and those the others."""
    monkeypatch.setattr("agent.sandbox.teardown.WITHIN_S", 0.2)
    house.builder._teardown._turns = asyncio.Semaphore(1)
    containers = []
    for id in (ID, "f-00000002", "f-00000003"):
        container, _ = await house.builder.build(house.order(id))
        containers.append(container)
    gate = house.points.hang["tasks.delete"] = asyncio.Event()
    await asyncio.gather(*(house.builder.destroy(container) for container in containers))
    assert len(house.held()["network"]) == 3
    gate.set()
    monkeypatch.setattr("agent.sandbox.teardown.WITHIN_S", 30.0)
    await house.builder.tidy({})
    assert house.held() == {}
    assert all(container.gone for container in containers)


async def test_a_create_whose_remains_cannot_be_ended_is_not_tried_again(
    house, dying_shim, monkeypatch
):
    monkeypatch.setattr("agent.sandbox.teardown.SCRUB_PAUSE_S", 0)

    async def dies(id, *rest, **more):
        house.cgroups.groups.add(id)
        house.cgroups.stuck.add(id)
        dying_shim()
        raise unavailable("ttrpc: closed")

    house.tasks.create = dies
    with pytest.raises(RuntimeUnavailable, match="closed"):
        await house.builder.build(house.order())
    assert house.points.passed.count("network.lease") == 1
    house.cgroups.stuck.clear()
    await house.builder.tidy({})
    assert house.held() == {}


async def test_destroying_twice_at_once_gives_back_once(house):
    container = await built(house)
    await asyncio.gather(*(house.builder.destroy(container) for _ in range(3)))
    await house.builder.destroy(container)
    for step in ("rootfs.teardown", "layers.release", "network.release"):
        assert house.points.passed.count(step) == 1
    assert house.held() == {}


@pytest.mark.parametrize("step", sorted(set(TEARDOWN)))
async def test_a_destroy_whose_caller_is_cancelled_goes_on_to_its_end(house, step):
    container = await built(house)
    house.points.cancel.add(step)
    task = house.points.victim = spawn("destroy", house.builder.destroy(container))
    await asyncio.wait({task})
    assert task.cancelled()
    assert house.held() == {}


async def test_the_end_of_a_container_answers_everybody_who_waits_for_its_exit(house):
    container = await built(house)
    await house.builder.destroy(container)
    assert (await container.exit).exit_code == -1


# -- shims that die


@pytest.fixture
async def dying_shim(house):
    """Return a function that kills the shim of anchor 1 and does not let the loop notice."""
    with subprocess.Popen(["/bin/sleep", "60"]) as shim:
        process = house.shims._anchors["kindling-anchor-1"].process = ProcessExit(shim.pid)

        def kill():
            shim.kill()
            os.waitid(os.P_PID, shim.pid, os.WEXITED | os.WNOWAIT)

        yield kill
        shim.kill()
        process.close()


@pytest.mark.parametrize("error", [unavailable("ttrpc: closed"), NotFound("no such shim")])
async def test_a_shim_that_dies_over_a_create_costs_one_more_try(house, dying_shim, error):
    async def dies(id, *rest, **more):
        house.tasks.create = create
        dying_shim()
        raise error

    create, house.tasks.create = house.tasks.create, dies
    container = await built(house)
    assert house.containers.records[ID].sandbox == "kindling-anchor-2"
    await house.builder.destroy(container)
    assert house.held() == {}


async def test_a_shim_that_has_just_died_is_not_chosen(house, dying_shim):
    dying_shim()
    for id in ("a", "b", "c"):
        assert house.shims.pick(id, house.points.forget) == "kindling-anchor-2"


async def test_a_create_that_fails_on_a_living_shim_is_not_tried_again(house):
    house.points.fail["tasks.create"] = unavailable("tasks.create")
    with pytest.raises(RuntimeUnavailable):
        await house.builder.build(house.order())
    assert house.points.passed.count("tasks.create") == 1


async def test_what_the_runtime_keeps_of_a_container_goes_with_it(house):
    container = await built(house)
    state = house.state / ID
    state.mkdir(parents=True)
    (state / "status").write_text("{}")
    await house.builder.destroy(container)
    assert not state.exists()


async def test_a_container_knows_when_nobody_reads_its_output_any_more(house):
    container = await built(house)
    assert not container.unread.done()
    anchor = house.shims._of[ID]
    house.shims._died(anchor)
    assert container.unread.done()
    await house.builder.destroy(container)
    assert house.held() == {}


# -- blueprints


async def test_a_version_of_the_same_number_gets_a_blueprint_of_its_own(house):
    await house.builder.check(version(created_ns=1))
    await house.builder.check(version(created_ns=1))
    assert house.points.passed.count("images.prepare") == 1
    await house.builder.check(version(created_ns=2))
    assert house.points.passed.count("images.prepare") == 2


async def test_a_secret_that_cannot_be_read_fails_the_start_and_leaves_nothing(house):
    secrets = [{"name": "KEY", "file": "/nowhere/key"}]
    with pytest.raises(Exception, match="secret KEY"):
        await house.builder.build(house.order(secrets=secrets))
    assert house.held() == {}


@pytest.mark.parametrize("what", ["nul", "large", "fifo", "binary"])
async def test_a_secret_that_no_variable_can_hold_is_named(house, tmp_path, what):
    file = tmp_path / "secret"
    contents = {"nul": b"a\0b", "large": b"x" * (1 << 20), "binary": b"\xff"}
    if what == "fifo":
        os.mkfifo(file)
    else:
        file.write_bytes(contents[what])
    with pytest.raises(FailedPrecondition, match=f"secret KEY: {file}"):
        async with asyncio.timeout(10):
            await house.builder.build(house.order(secrets=[{"name": "KEY", "file": str(file)}]))
    assert house.held() == {}


async def test_a_secret_loses_its_last_newline_only_in_the_variable(house, tmp_path):
    (tmp_path / "real").write_text("s3cret\n")
    (tmp_path / "link").symlink_to("real")
    found = version(secrets=[{"name": "KEY", "file": str(tmp_path / "link")}])
    assert await own_environment(found) == {"KEY": "s3cret"}


async def test_a_volume_that_is_slow_to_answer_holds_everybody_up(house, monkeypatch):
    volume = SlowVolume(monkeypatch)
    checking = spawn("check", house.builder.check(version()))
    await until(volume.asked.is_set)
    volume.answers.set()
    await checking


async def test_a_volume_that_does_not_answer_ends_a_deploy_in_time(house, monkeypatch):
    volume = SlowVolume(monkeypatch)
    runtime = house.builder._config.runtime.model_copy(update={"create_timeout_s": 0.05})
    config = house.builder._config.model_copy(update={"runtime": runtime})
    monkeypatch.setattr(house.builder, "_config", config)
    try:
        with pytest.raises(RuntimeUnavailable, match="do not answer"):
            await house.builder.check(version())
    finally:
        volume.answers.set()
