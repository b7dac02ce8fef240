"""One instance's walk: starts that succeed, fail and are cancelled at every step, and its ends."""

from __future__ import annotations

import asyncio

import pytest

from agent.aio.tasks import spawn
from agent.core.instance import State
from agent.core.logtail import OutputLine
from agent.errors import FunctionFailed, RuntimeUnavailable
from agent.model.failure import Failure, FailureKind
from tests.component.function_house import House, turns, until

HOOKS: dict[str, dict[str, object]] = {"initialize": {}, "pre_stop": {}}
STEPS = ("build", "create", "start", "socket", "adopt connection", "hook /initialize")


@pytest.fixture
async def house(tmp_path):
    async with House(tmp_path) as found:
        yield found


def made(house, **fields):
    return house.instance(house.target(hooks=HOOKS, **fields))


async def started(house, **fields):
    instance = made(house, **fields)
    await house.start(instance)
    return instance


def closed_port(house):
    """Nobody listens any more."""
    house.server.close()


def over(house, instance):
    """Count it out as its owner does, and return what is still held."""
    house.fleet.admission.ended(instance, None)
    return house.held()


# -- up


async def test_a_start_is_itemised_and_the_items_add_up(house):
    instance = await started(house)
    cold = instance.cold_start
    assert instance.state is State.READY
    assert sum(cold.phases().values()) == pytest.approx(cold.total_ms, rel=0.02, abs=0.5)
    assert cold.cached == ("image",)
    assert len(instance.endpoint.idle) == 1
    assert [record.state for record in list(house.files.each())] == ["ready"]
    assert house.left_states == ["creating", "starting", "initializing"]
    await instance.stop(grace_s=0.0)
    assert over(house, instance) == {}


async def test_hooks_use_the_connection_that_calls_use_and_are_told_in_the_log(house):
    instance = await started(house)
    assert ("hook", "/initialize") in house.did
    assert len(house.connections) == 1
    log = [line.text for line in house.logs.of("f").tail(0)]
    assert log[0].startswith("FC Initialize Start RequestId: ")
    assert log[1].startswith("FC Initialize End RequestId: ")
    assert log[0].split()[-1] == log[1].split()[-1] != instance.id
    await instance.stop(grace_s=0.0)


async def test_a_job_needs_no_port(house):
    target = house.target(contract="scf-job", kind="job")
    instance = house.instance(target)
    await house.start(instance)
    assert instance.state is State.READY
    assert "socket" not in house.points.passed
    await instance.stop(grace_s=0.0)


async def test_nobody_listening_is_a_start_timeout_with_the_functions_own_words(house):
    closed_port(house)
    instance = made(house, startup_timeout_s=1)
    house.on_start = lambda _: house.sinks[instance.id](
        OutputLine(1, "stderr", b"listening on loopback", split=False)
    )
    house.points.fail["socket"] = TimeoutError()
    with pytest.raises(FunctionFailed) as failed:
        await house.start(instance)
    why = failed.value.failure
    assert why.kind is FailureKind.START_TIMEOUT
    assert (why.port, why.limit) == (house.port, 1)
    assert why.log_lines[-1].endswith("listening on loopback")
    assert instance.state is State.FAILED
    assert over(house, instance) == {}


@pytest.mark.parametrize(
    ("death", "kind"),
    [
        ({"code": 3}, FailureKind.EXITED_AT_START),
        ({"code": 137, "signal": 9, "out_of_memory": True}, FailureKind.OUT_OF_MEMORY),
    ],
)
async def test_a_crash_at_once_tells_how(house, death, kind):
    closed_port(house)
    house.on_start = lambda container: container.die(**death)
    instance = made(house)
    with pytest.raises(FunctionFailed) as failed:
        await house.start(instance)
    assert failed.value.kind is kind
    assert failed.value.failure.exit_code == death["code"]
    assert ("kill", instance.id) not in house.did
    assert over(house, instance) == {}


@pytest.mark.parametrize("code", [126, 127])
async def test_a_program_that_could_not_be_executed_is_told_with_what_is_missing(house, code):
    closed_port(house)
    house.on_start = lambda container: container.die(code)
    house.builder.unfit = Failure(FailureKind.FILE_NOT_FOUND, "/bin/bash is not in the image")
    with pytest.raises(FunctionFailed, match="/bin/bash is not") as failed:
        await house.start(made(house))
    assert failed.value.kind is FailureKind.FILE_NOT_FOUND
    assert failed.value.failure.exit_code == code


@pytest.mark.parametrize(("code", "unfit"), [(127, False), (3, True)])
async def test_a_program_that_ran_is_told_by_its_own_exit(house, code, unfit):
    closed_port(house)
    house.on_start = lambda container: container.die(code)
    if unfit:
        house.builder.unfit = Failure(FailureKind.FILE_NOT_FOUND, "nobody asked")
    with pytest.raises(FunctionFailed) as failed:
        await house.start(made(house))
    assert failed.value.kind is FailureKind.EXITED_AT_START


@pytest.mark.parametrize("step", ["create", "start"])
async def test_a_runtime_that_finds_nothing_to_execute_is_the_functions_failure(house, step):
    house.points.fail[step] = RuntimeUnavailable("crun: executable file not found")
    house.builder.unfit = Failure(FailureKind.FILE_NOT_FOUND, "/bin/bash is not in the image")
    instance = made(house)
    with pytest.raises(FunctionFailed, match="/bin/bash is not") as failed:
        await house.start(instance)
    assert failed.value.kind is FailureKind.FILE_NOT_FOUND
    assert over(house, instance) == {}


async def test_an_initialize_hook_that_refuses_fails_the_start(house):
    house.answers["/initialize"] = 500
    instance = made(house)
    with pytest.raises(FunctionFailed, match="500") as failed:
        await house.start(instance)
    assert failed.value.kind is FailureKind.INIT_HOOK_FAILED
    assert over(house, instance) == {}


async def test_a_process_that_dies_in_its_hook_has_exited(house):
    instance = made(house)
    house.answers["/initialize"] = ConnectionResetError()
    house.on_start = lambda container: asyncio.get_running_loop().call_later(
        0.001, container.die, 7
    )
    with pytest.raises(FunctionFailed) as failed:
        await house.start(instance)
    assert failed.value.kind is FailureKind.EXITED_AT_START
    assert failed.value.failure.exit_code == 7


@pytest.mark.parametrize("step", STEPS)
async def test_a_start_that_fails_leaves_nothing(house, step):
    house.points.fail[step] = RuntimeUnavailable(step)
    instance = made(house)
    with pytest.raises((RuntimeUnavailable, FunctionFailed)):
        await house.start(instance)
    assert instance.state is State.FAILED
    assert over(house, instance) == {}
    assert not any(connection.usable for connection in house.connections)


@pytest.mark.parametrize("step", STEPS)
async def test_a_start_that_is_cancelled_leaves_nothing(house, step):
    instance = made(house)
    house.points.cancel.add(step)
    task = house.points.victim = spawn("start", house.start(instance))
    await asyncio.wait({task})
    assert task.cancelled()
    assert instance.state is State.FAILED
    assert over(house, instance) == {}
    assert not any(connection.usable for connection in house.connections)


@pytest.mark.parametrize("step", ["kill", "destroy"])
async def test_a_start_that_is_cancelled_again_while_it_is_undone_leaves_nothing(house, step):
    instance = made(house)
    house.points.fail["hook /initialize"] = KeyError("ours")
    house.points.cancel.add(step)
    task = house.points.victim = spawn("start", house.start(instance))
    await asyncio.wait({task})
    assert instance.state is State.FAILED
    assert over(house, instance) == {}


async def test_no_start_begins_while_all_permits_are_taken(tmp_path):
    async with House(tmp_path, parallel=1) as house:
        gate = house.points.hang["create"] = asyncio.Event()
        first, second = made(house), made(house)
        tasks = [spawn("start", house.start(i)) for i in (first, second)]
        await house.points.reached("create")
        await turns()
        assert house.builder.built == [first.id]
        gate.set()
        await asyncio.gather(*tasks)
        assert house.builder.built == [first.id, second.id]
        assert second.cold_start.queue_ms >= first.cold_start.queue_ms
        for instance in (first, second):
            await instance.stop(grace_s=0.0)


# -- down


async def test_the_order_of_an_end_is_hook_term_and_give_back(house):
    instance = await started(house)
    house.did.clear()
    await instance.stop()
    assert house.did == [
        ("hook", "/pre-stop"),
        ("signal 15", instance.id),
        ("destroy", instance.id),
    ]
    assert instance.state is State.STOPPED
    assert instance.last_exit.signal == 15
    assert not any(connection.usable for connection in house.connections)
    assert over(house, instance) == {}


async def test_who_ignores_term_is_killed_after_its_grace(house):
    house.obeys_term = False
    instance = await started(house)
    await instance.stop(grace_s=0.05)
    assert [did for did, _ in house.did][-3:] == ["signal 15", "kill", "destroy"]
    assert over(house, instance) == {}


async def test_no_grace_means_no_hook_and_no_term(house):
    instance = await started(house)
    house.did.clear()
    await instance.stop(grace_s=0.0)
    assert [did for did, _ in house.did] == ["kill", "destroy"]


async def test_a_process_that_ended_by_itself_is_not_signalled(house):
    instance = await started(house)
    house.did.clear()
    instance.container.die(0)
    await instance.stop()
    assert [did for did, _ in house.did] == ["destroy"]


async def test_two_stops_are_one_and_both_wait_for_it(house):
    instance = await started(house)
    gate = house.points.hang["destroy"] = asyncio.Event()
    stops = [spawn("stop", instance.stop()) for _ in range(2)]
    await house.points.reached("destroy")
    assert not any(stop.done() for stop in stops)
    gate.set()
    await asyncio.gather(*stops)
    await instance.stop()
    assert house.did.count(("destroy", instance.id)) == 1


@pytest.mark.parametrize("at", ["hook /pre-stop", "signal"])
async def test_a_hastier_stop_cuts_the_first_one_short(house, at):
    house.obeys_term = False
    if at != "signal":
        house.points.hang[at] = asyncio.Event()
    instance = await started(house)
    first = spawn("stop", instance.stop())
    await house.points.reached(at)
    await turns()
    assert not first.done()
    async with asyncio.timeout(5):
        await instance.stop(grace_s=0.0)
        await first
    assert ("kill", instance.id) in house.did
    assert over(house, instance) == {}


async def test_a_hook_takes_no_more_than_its_share_of_a_short_grace(house):
    house.points.hang["hook /pre-stop"] = asyncio.Event()
    instance = await started(house)
    await instance.stop(grace_s=2.0)  # half for the hook, half for TERM
    assert ("signal 15", instance.id) in house.did
    assert ("kill", instance.id) not in house.did


async def test_an_exit_ends_the_hook_too(house):
    house.points.hang["hook /pre-stop"] = asyncio.Event()
    instance = await started(house)
    stop = spawn("stop", instance.stop())
    await house.points.reached("hook /pre-stop")
    instance.container.die(1)
    await stop
    assert ("signal 15", instance.id) not in house.did


@pytest.mark.parametrize("at", ["hook /pre-stop", "signal", "destroy"])
async def test_an_end_whose_caller_is_cancelled_goes_on(house, at):
    instance = await started(house)
    gate = house.points.hang[at] = asyncio.Event()
    stop = spawn("stop", instance.stop())
    await house.points.reached(at)
    stop.cancel()
    await asyncio.wait({stop})
    gate.set()
    await until(lambda: instance.state is State.STOPPED)
    assert over(house, instance) == {}


@pytest.mark.parametrize("step", ["hook /pre-stop", "signal", "kill"])
async def test_an_end_that_meets_errors_gives_everything_back(house, step):
    house.obeys_term = False
    instance = await started(house)
    house.points.fail[step] = RuntimeUnavailable(step)
    await instance.stop(grace_s=0.05)
    assert instance.state is State.STOPPED
    assert over(house, instance) == {}


async def test_a_successor_sees_that_it_is_being_stopped(house):
    instance = await started(house)
    house.points.hang["signal"] = gate = asyncio.Event()
    stop = spawn("stop", instance.stop())
    await house.points.reached("signal")
    assert [record.state for record in list(house.files.each())] == ["stopping"]
    gate.set()
    await stop
    assert list(house.files.each()) == []


async def test_a_record_that_cannot_be_written_holds_no_end_up(house, monkeypatch):
    instance = await started(house)

    def full(_):
        raise RuntimeUnavailable("no space on tmpfs")

    monkeypatch.setattr(house.files, "save", full)
    object.__setattr__(house.ports, "save", full)
    await instance.stop(grace_s=0.0)
    assert over(house, instance) == {}


async def test_stopping_what_never_began_only_counts_it_out(house):
    instance = made(house)
    await instance.stop()
    await instance.stop()
    assert instance.state is State.STOPPED
    assert over(house, instance) == {}


async def test_an_end_that_was_not_seen_is_told_as_that(house):
    instance = await started(house)
    instance.container.die(-1)
    why = await instance.explain_exit(FailureKind.EXITED, 0.0)
    assert "nobody saw" in why.message
    await instance.stop()
