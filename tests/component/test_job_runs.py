"""Runs of jobs: exits, limits, stops at any moment, records in every path, adoption."""

from __future__ import annotations

import asyncio
import time

import pytest

from agent.aio.tasks import spawn
from agent.contracts.base import Call
from agent.core.logtail import OutputLine
from agent.errors import AlreadyExists, FunctionFailed, NotFound, Overloaded, RuntimeUnavailable
from agent.instances.handover import hand_over, unsettled
from agent.model.failure import FailureKind
from agent.model.records import CallRecord, InstanceRecord
from tests.component.function_house import House, failing, turns, until


@pytest.fixture
async def house(tmp_path):
    async with House(tmp_path) as found:
        yield found


def job(house, **fields):
    return house.target(contract="scf-job", kind="job", **fields)


async def begun(house, target, id="j-1", event=b"{}"):
    return await house.jobs.run(target, Call(id, "job", b"POST", b"/", []), event)


async def running(house, target, id="j-1"):
    run = await begun(house, target, id)
    await run.started
    return run, house.builder.alive[run.instance.id]


async def ended(run):
    async with asyncio.timeout(5):
        await run.ended


def states(house):
    return {id: record.state for id, record in house.saved.items()}


async def test_a_version_that_cannot_run_starts_no_job(house):
    target = job(house)
    object.__setattr__(target.version, "state", "Failed")
    object.__setattr__(target.version, "reason", "its image is gone")
    with pytest.raises(FunctionFailed, match="its image is gone"):
        await begun(house, target)
    assert (house.held(), house.saved) == ({}, {})


async def test_a_job_stopped_while_it_waits_for_its_turn_to_start_never_begins(tmp_path):
    async with House(tmp_path, parallel=1) as house:
        target = job(house)
        gate = house.points.hang["create"] = asyncio.Event()
        first = await begun(house, target, "j-1")
        await house.points.reached("create")
        second = await begun(house, target, "j-2")
        await until(lambda: "j-2" in house.saved)
        await turns()
        stopping = spawn("stop", house.jobs.stop("j-2"))
        await turns()
        gate.set()
        assert (await stopping).state == "Stopped"
        assert second.instance.id not in house.builder.built
        await house.jobs.stop_all(grace_s=0.0)
        await ended(first)
        assert house.held() == {}


# -- ends


@pytest.mark.parametrize(
    ("death", "state", "error"),
    [
        ({"code": 0}, "Succeeded", ""),
        ({"code": 3}, "Failed", "the job exited with code 3"),
        ({"code": 137, "signal": 9, "out_of_memory": True}, "Failed", "memory"),
    ],
)
async def test_the_exit_is_the_result(house, death, state, error):
    run, container = await running(house, job(house))
    assert states(house) == {"j-1": "Running"}
    house.sinks[container.id](OutputLine(1, "stdout", b"result", split=False))
    container.die(**death)
    await ended(run)
    record = house.saved["j-1"]
    assert (record.state, record.exit_code) == (state, death["code"])
    assert error in record.error
    assert record.ended_ns >= record.started_ns >= record.accepted_ns > 0
    assert record.meters.peak_memory_bytes == 5 << 20
    assert record.meters.cpu_ms == 3
    assert run.output == b"result\n"
    assert ("signal 15", container.id) not in house.did
    assert house.held() == {}
    assert house.jobs.running == 0


async def test_past_its_limit_a_job_gets_term_and_has_failed(house):
    run, container = await running(house, job(house, timeout_s=1))
    run.cutoff.at_most(0)  # the second has passed
    await ended(run)
    record = house.saved["j-1"]
    assert (record.state, record.exit_code) == ("Failed", 143)
    assert "longer than 1 s" in record.error
    assert ("signal 15", container.id) in house.did
    assert house.held() == {}


async def test_a_job_that_could_not_be_executed_says_what_is_missing(house):
    house.builder.unfit = failing().failure
    run, container = await running(house, job(house))
    container.die(127)
    await ended(run)
    record = house.saved["j-1"]
    assert run.failure.kind is FailureKind.FILE_NOT_FOUND
    assert (record.state, record.exit_code) == ("Failed", 127)
    assert record.error == failing().failure.message


async def test_a_job_that_does_not_start_has_failed_and_says_why(house):
    house.builder.fails = [failing()]
    run = await begun(house, job(house))
    await ended(run)
    assert run.failure.kind is FailureKind.FILE_NOT_FOUND
    assert house.saved["j-1"].state == "Failed"
    assert house.saved["j-1"].ended_ns > 0
    assert house.told.ended == [(run.instance.id, FailureKind.FILE_NOT_FOUND)]
    assert house.held() == {}


async def test_without_a_slot_there_is_no_capacity(house):
    house.builder.room = 0
    run = await begun(house, job(house))
    await ended(run)
    assert run.failure.kind is FailureKind.NO_CAPACITY
    assert house.held() == {}


async def test_an_exit_nobody_saw_is_a_failure_of_ours(house):
    run, container = await running(house, job(house))
    container.die(-1)
    await ended(run)
    assert house.saved["j-1"].state == "Failed"
    assert house.saved["j-1"].exit_code is None


@pytest.mark.parametrize("at", ["build", "create", "start", "kill", "destroy"])
async def test_a_fault_anywhere_leaves_no_instance_and_a_record(house, at):
    house.obeys_term = False
    house.points.fail[at] = RuntimeUnavailable(at)
    run = await begun(house, job(house))
    if at in ("kill", "destroy"):
        await run.started
        await house.jobs.stop_all(grace_s=0.0)
    await ended(run)
    assert states(house)["j-1"] in ("Failed", "Stopped")
    assert house.jobs.running == 0
    assert house.fleet.admission.use.memory_bytes == 0


async def test_a_job_that_cannot_be_noted_down_is_not_accepted(house):
    house.save_fails = [RuntimeUnavailable("disk full")]
    run = await begun(house, job(house))
    await ended(run)
    assert run.failure.kind is FailureKind.NO_CAPACITY
    assert house.builder.built == []
    assert house.held() == {}


@pytest.mark.parametrize("which", ["start", "end"])
async def test_a_store_that_fails_later_costs_a_record_but_not_the_job(house, which):
    house.save_fails = [None, *([None] if which == "end" else []), RuntimeUnavailable("disk full")]
    run, container = await running(house, job(house))
    container.die(0)
    await ended(run)
    assert run.record.state == "Succeeded"
    assert run.failure is None
    assert states(house) == {"j-1": "Running" if which == "end" else "Succeeded"}
    assert house.held() == {}


# -- stops


async def test_stop_is_term_and_the_record_says_stopped(house):
    run, container = await running(house, job(house))
    record = await house.jobs.stop("j-1")
    assert (record.state, record.exit_code) == ("Stopped", 143)
    assert house.saved["j-1"] == record
    assert ("kill", container.id) not in house.did
    assert run.failure is None
    with pytest.raises(NotFound):
        await house.jobs.stop("j-1")


async def test_two_stops_are_one(house):
    run, container = await running(house, job(house))
    records = await asyncio.gather(house.jobs.stop("j-1"), house.jobs.stop("j-1"))
    assert [record.state for record in records] == ["Stopped", "Stopped"]
    assert house.did.count(("signal 15", container.id)) == 1
    await ended(run)


async def test_a_job_stopped_before_it_began_never_begins(tmp_path):
    async with House(tmp_path) as house:
        gate = house.points.hang["save"] = asyncio.Event()
        run = await begun(house, job(house))
        await house.points.reached("save")
        stopping = asyncio.gather(house.jobs.stop("j-1"))
        await turns()
        gate.set()
        [record] = await stopping
        assert record.state == "Stopped"
        assert house.builder.built == []
        assert run.failure.kind is FailureKind.CLIENT_CANCELLED
        assert house.held() == {}


async def test_a_job_stopped_while_it_starts_is_stopped_as_soon_as_it_runs(house):
    gate = house.points.hang["start"] = asyncio.Event()
    run = await begun(house, job(house))
    await house.points.reached("start")
    stopping = asyncio.gather(house.jobs.stop("j-1"))
    await turns()
    assert not stopping.done()
    gate.set()
    [record] = await stopping
    assert record.state == "Stopped"
    assert ("signal 15", run.instance.id) in house.did
    assert house.held() == {}


async def test_stopping_all_kills_those_that_ignore_term(house):
    house.obeys_term = False
    runs = [(await running(house, job(house), f"j-{n}"))[0] for n in range(3)]
    await house.jobs.stop_all(grace_s=0.02)
    assert [run.record.state for run in runs] == ["Stopped"] * 3
    assert house.held() == {}


async def test_all_are_killed_though_one_was_being_stopped_patiently(house):
    house.obeys_term = False
    await running(house, job(house))
    patient = asyncio.gather(house.jobs.stop("j-1"))
    await house.points.reached("signal")
    await house.jobs.stop_all(grace_s=0.0)
    assert (await patient)[0].state == "Stopped"


async def test_a_removed_functions_jobs_are_awaited_or_killed(house):
    target = job(house)
    run, container = await running(house, target)
    await running(house, job(house, name="other"), "j-2")
    removal = asyncio.gather(house.jobs.end_those_of("f", force=False))
    await turns()
    assert not removal.done()
    container.die(0)
    await removal
    assert run.record.state == "Succeeded"
    await running(house, target, "j-3")
    await house.jobs.end_those_of("f", force=True)
    assert house.saved["j-3"].state == "Stopped"
    assert house.saved["j-2"].state == "Running"
    await house.jobs.stop_all(grace_s=0.0)


# -- refusals and answers


async def test_what_is_refused_is_not_counted(house):
    target = job(house, scaling={"max": 1})
    run, container = await running(house, target)
    with pytest.raises(AlreadyExists):
        await begun(house, target)
    with pytest.raises(Overloaded, match=r"scaling\.max"):
        await begun(house, target, "j-2")
    house.mode.drain()
    with pytest.raises(Overloaded):
        await begun(house, job(house, name="other"), "j-3")
    house.mode.undrain()
    container.die(0)
    await ended(run)
    assert not house.jobs._of
    again, container = await running(house, target, "j-2")
    container.die(0)
    await ended(again)
    await target.stop(grace_s=None)
    with pytest.raises(Overloaded):
        await begun(house, target, "j-4")
    assert house.held() == {}


async def test_scf_answers_at_the_start_and_fc2_at_the_exit(house):
    scf = job(house)
    call = Call("j-1", "job", b"POST", b"/", [])
    reply, _ = await scf.run_job(call, b"{}")
    assert reply.status == 200
    fc2 = house.target(name="g", contract="fc2", kind="job")
    answer = asyncio.gather(fc2.run_job(Call("j-2", "job", b"POST", b"/", []), b"{}"))
    await until(lambda: house.saved.get("j-2") and house.saved["j-2"].state == "Running")
    assert not answer.done()
    for container in list(house.builder.alive.values()):
        container.die(0)
    [(reply, report)] = await answer
    assert reply.status == 200
    assert report.cold_start is not None
    await until(lambda: house.jobs.running == 0)


async def test_a_caller_who_goes_away_does_not_stop_a_job(house):
    target = house.target(contract="fc2", kind="job")
    answer = asyncio.ensure_future(  # noqa: TID251
        target.run_job(Call("j-1", "job", b"POST", b"/", []), b"{}")
    )
    await until(lambda: house.builder.alive and states(house).get("j-1") == "Running")
    answer.cancel()
    await asyncio.wait({answer})
    [container] = house.builder.alive.values()
    container.die(0)
    await until(lambda: states(house)["j-1"] == "Succeeded")


async def test_a_failed_job_fails_the_call_that_waits_for_it(house):
    house.builder.fails = [failing()]
    with pytest.raises(FunctionFailed):
        await job(house).run_job(Call("j-1", "job", b"POST", b"/", []), b"{}")


# -- worker swaps


async def adopted(house, target, **fields):
    instance = house.fleet.admission.make("f-0000000a", target.version, target.contract, target.log)
    record = CallRecord("j-1", "f", 1, instance.id, "Running", time.time_ns(), **fields)
    found = InstanceRecord(
        instance.id, "f", 1, 5, 5, "127.0.0.1", house.port, "slot512", 5, 1, "ready", created_ns=1
    )
    container = await house.builder.adopt(found, None, "all")
    instance.adopted(container, found)
    house.fleet.admission.adopt(instance)
    house.jobs.adopt(target, instance, record)
    return container


async def test_a_job_of_the_worker_before_is_carried_to_its_end(house):
    container = await adopted(house, job(house), started_ns=time.time_ns())
    assert house.jobs.find("j-1").state == "Running"
    container.die(4)
    await until(lambda: house.jobs.running == 0)
    assert (house.saved["j-1"].state, house.saved["j-1"].exit_code) == ("Failed", 4)
    assert house.held() == {}


async def test_its_time_began_with_its_start_or_with_its_acceptance(house):
    container = await adopted(house, job(house))  # the worker died before it noted the start
    await turns()
    assert not container.exited
    container.die(0)
    await until(lambda: house.jobs.running == 0)
    container = await adopted(
        house, job(house, timeout_s=5), started_ns=time.time_ns() - 10_000_000_000
    )
    await until(lambda: house.jobs.running == 0)
    assert "longer than 5 s" in house.saved["j-1"].error


async def test_a_worker_that_has_handed_over_leaves_its_jobs_alone(house):
    run, container = await running(house, job(house))
    saves = len(house.points.passed)
    hand_over(house.fleet, house.jobs.kept())
    container.die(0)
    await ended(run)
    assert run.record.state == "Succeeded"
    assert house.points.passed.count("save") <= saves
    assert house.saved["j-1"].state == "Running"
    assert ("destroy", container.id) not in house.did


async def test_a_job_whose_caller_waits_here_ends_here_also_after_a_hand_over(house):
    run, container = await running(house, job(house))
    waiting = spawn("caller", run.wait(to_the_end=True))
    await turns()
    hand_over(house.fleet, house.jobs.kept())
    [record] = list(house.files.each())
    assert (record.kept, record.owner) == (True, house.ledger.generation)
    assert not container.detached
    assert unsettled(house.fleet) == 1
    container.die(3)
    await waiting
    await until(lambda: unsettled(house.fleet) == 0)
    assert house.saved["j-1"].exit_code == 3
    assert house.held() == {}


async def test_a_job_that_starts_across_a_hand_over_is_left_to_the_next_worker(house):
    house.points.hang["start"] = gate = asyncio.Event()
    run = await begun(house, job(house))
    await until(lambda: house.builder.alive)
    hand_over(house.fleet, house.jobs.kept())
    [record] = list(house.files.each())
    assert (record.state, record.kept) == ("creating", False)
    gate.set()
    async with asyncio.timeout(5):
        await run.started
    [record] = list(house.files.each())
    assert record.state == "ready"
    assert house.saved["j-1"].state == "Running"
    assert unsettled(house.fleet) == 0
    container = house.builder.alive[run.instance.id]
    assert container.detached
    container.die(0)
    await ended(run)
    assert house.saved["j-1"].state == "Running", "its end is the next worker's to note"
