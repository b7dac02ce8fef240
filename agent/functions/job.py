"""Jobs: one container per call, no port, the event in its environment, the exit is the result.

A call is answered when the process runs or when it has ended, as its contract says; either way the
run goes on here in a task of its own, within the function's time limit, and ends in a call record
with the real exit code. A caller who goes away does not stop a job; `stop` does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from agent.aio.tasks import launch
from agent.contracts.base import Call, CallReport, Reply
from agent.core.billing import gb_s
from agent.core.instance import Event
from agent.errors import AgentError, AlreadyExists, FunctionFailed, NotFound, Overloaded
from agent.functions.instance import Instance
from agent.model.failure import Failure, FailureKind
from agent.model.limits import LOG_TAIL_BYTES
from agent.model.records import CallRecord, Exit, Meters

if TYPE_CHECKING:
    from agent.functions.fleet import Fleet
    from agent.functions.target import FunctionTarget

log = logging.getLogger(__name__)

STOP_GRACE_S = 30.0


@dataclass(eq=False, slots=True)
class Run:
    """One job under way."""

    record: CallRecord
    target: FunctionTarget
    instance: Instance
    call: Call
    started: asyncio.Future[None]
    ended: asyncio.Future[None]
    stopped: bool = False
    output: bytes = b""
    cpu_ns: int = 0
    failure: Failure | None = None
    report: CallReport = field(default_factory=lambda: CallReport(Meters()))


class JobRunner:
    """The jobs of this node that run or wait to run, by call id."""

    def __init__(self, fleet: Fleet, save: Callable[[CallRecord], Awaitable[None]]) -> None:
        self._fleet = fleet
        self._save = save
        self._runs: dict[str, Run] = {}
        self._of: dict[tuple[str, int], int] = {}

    def __repr__(self) -> str:
        return f"<JobRunner {len(self._runs)} runs>"

    @property
    def running(self) -> int:
        """How many jobs run now."""
        return len(self._runs)

    async def answer(
        self, target: FunctionTarget, call: Call, event: bytes
    ) -> tuple[Reply, CallReport]:
        """Run a job for a call; return its answer in the contract's words, and its report."""
        run = await self.run(target, call, event)
        waits = target.contract.waits_for_job()
        await asyncio.shield(run.ended if waits else run.started)
        if run.failure is not None:
            raise FunctionFailed(run.failure)
        code = run.record.exit_code if waits else None
        return target.contract.job_reply(call, code, run.output, run.report), run.report

    async def run(self, target: FunctionTarget, call: Call, event: bytes) -> Run:
        """Begin a job and return it; `started` and `ended` are resolved, never failed.

        Raises InvalidSpec or FunctionFailed for an event that does not fit, AlreadyExists when the
        call's id is in use, Overloaded when nothing more fits on the node or in `scaling.max`.
        """
        extra = target.contract.job_input(event, call.request_id).environment
        if call.request_id in self._runs:
            raise AlreadyExists(f"call {call.request_id} runs already")
        if self._fleet.draining:
            raise Overloaded("the node takes no new calls", reason="draining")
        key = target.version.key
        most = target.version.spec.scaling.max
        if self._of.get(key, 0) >= most:
            raise Overloaded(
                f"{target.version.name} runs {most} jobs already (scaling.max)", reason="queue"
            )
        instance = self._fleet.new_instance(target.version, target.contract, target.log)
        loop = asyncio.get_running_loop()
        record = CallRecord(
            id=call.request_id,
            function=target.version.name,
            version=target.version.version,
            instance=instance.id,
            state="Running",
            accepted_ns=time.time_ns(),
        )
        run = Run(record, target, instance, call, loop.create_future(), loop.create_future())
        self._runs[call.request_id] = run
        self._of[key] = self._of.get(key, 0) + 1
        launch(f"job {call.request_id}", self._work(run, extra, self._fleet.now()))
        return run

    def adopt(self, target: FunctionTarget, instance: Instance, record: CallRecord) -> None:
        """Go on with a job that the worker before had started; its time began with that start."""
        loop = asyncio.get_running_loop()
        call = Call(record.id, "job", b"POST", b"/", [], instance=instance.id)
        run = Run(record, target, instance, call, loop.create_future(), loop.create_future())
        run.started.set_result(None)
        self._runs[record.id] = run
        key = target.version.key
        self._of[key] = self._of.get(key, 0) + 1
        began = self._fleet.now() - (time.time_ns() - record.started_ns) / 1e9
        launch(f"job {record.id}", self._work(run, None, began))

    async def _work(self, run: Run, extra: dict[str, str] | None, began: float) -> None:
        """Carry a job to its end; `extra` is its event's environment, None when it runs already."""
        try:
            if extra is not None:
                await self._save(run.record)
                await self._begin(run, extra, began)
            exit = await self._await_end(run, began)
            await self._finish(run, exit, began)
        except FunctionFailed as error:
            await self._failed(run, error.failure)
        except AgentError as error:
            kind = FailureKind.NO_CAPACITY if error.retryable else FailureKind.INTERNAL
            await self._failed(run, Failure(kind, error.message))
        except BaseException as error:
            await self._failed(run, Failure(FailureKind.INTERNAL, f"the job ended with {error!r}"))
            raise
        finally:
            key = run.target.version.key
            self._of[key] -= 1
            if not self._of[key]:
                del self._of[key]
            del self._runs[run.record.id]
            self._fleet.ended(run.instance, run.failure)
            for future in (run.started, run.ended):
                if not future.done():
                    future.set_result(None)

    async def _begin(self, run: Run, extra: dict[str, str], began: float) -> None:
        """Start the container."""
        instance, contract = run.instance, run.target.contract
        line = contract.log_before(run.call)
        if line is not None:
            instance.note(line)
        async with self._fleet.start_permit():
            environment = {**contract.environment(instance.id), **extra}
            await instance.start(environment, began)
        self._fleet.started(instance)
        run.report = CallReport(Meters(), instance.cold_start, b"", instance.id)
        run.record = replace(run.record, started_ns=time.time_ns(), cold_start=instance.cold_start)
        await self._save(run.record)
        run.started.set_result(None)

    async def _await_end(self, run: Run, began: float) -> Exit:
        """Wait for the exit, TERM and KILL past the time limit, and give everything back."""
        instance = run.instance
        assert instance.container is not None
        exited = instance.container.exit
        limit_s = run.target.contract.limits.call_s
        await asyncio.wait({exited}, timeout=max(0.0, began + limit_s - self._fleet.now()))
        late = not exited.done()
        run.cpu_ns = instance.cpu_ns()
        if late:
            run.failure = Failure(
                FailureKind.TIMEOUT,
                f"the job ran longer than {limit_s:g} s",
                waited_s=limit_s,
                limit=limit_s,
            )
        await instance.stop(event=Event.STOP_BEGAN if late or run.stopped else Event.COMPLETED)
        run.output = self._output(instance)
        if instance.last_exit is None:
            raise FunctionFailed(Failure(FailureKind.INTERNAL, "the job's exit was not seen"))
        return instance.last_exit

    async def _finish(self, run: Run, exit: Exit, began: float) -> None:
        wall_ms = (self._fleet.now() - began) * 1000
        contract, spec = run.target.contract, run.target.version.spec
        billed_ms = contract.billed_ms(wall_ms)
        meters = Meters(
            wall_ms=wall_ms,
            billed_ms=billed_ms,
            memory_gb_s=gb_s(spec.memory_mb, billed_ms / 1000),
            cpu_ms=run.cpu_ns / 1e6,
            peak_memory_bytes=exit.peak_bytes,
        )
        run.report = CallReport(meters, run.instance.cold_start, run.output, run.instance.id)
        if exit.out_of_memory:
            run.failure = Failure(
                FailureKind.OUT_OF_MEMORY,
                f"the job ran out of its {spec.memory_mb} MB of memory",
                exit_code=exit.exit_code,
                signal=exit.signal,
                out_of_memory=True,
            )
        state = "Succeeded"
        if run.stopped:
            state = "Stopped"
        elif run.failure is not None or exit.exit_code != 0:
            state = "Failed"
        error = run.failure.message if run.failure is not None else ""
        if state == "Failed" and not error:
            error = f"the job exited with code {exit.exit_code}"
        for line in contract.log_after(run.call, run.report, error):
            run.instance.note(line)
        run.record = replace(
            run.record,
            state=state,
            ended_ns=time.time_ns(),
            exit_code=exit.exit_code,
            error=error,
            meters=meters,
        )
        await self._save(run.record)

    async def _failed(self, run: Run, failure: Failure) -> None:
        run.failure = failure
        run.record = replace(
            run.record, state="Failed", ended_ns=time.time_ns(), error=failure.message
        )
        await self._save(run.record)

    def _output(self, instance: Instance) -> bytes:
        lines = [
            line.text
            for line in instance.log_lines()
            if line.stream == "stdout" and line.instance == instance.id
        ]
        return "".join(f"{line}\n" for line in lines).encode()[-LOG_TAIL_BYTES:]

    def find(self, call: str) -> CallRecord | None:
        """Return the record of a job that runs now."""
        run = self._runs.get(call)
        return run.record if run is not None else None

    async def stop(self, call: str) -> CallRecord:
        """End a job with TERM, then KILL. Raises NotFound when no such job runs."""
        run = self._runs.get(call)
        if run is None:
            raise NotFound(f"no job {call} runs here")
        run.stopped = True
        container = run.instance.container
        if container is not None:
            deadline = self._fleet.now() + STOP_GRACE_S
            await container.signal(15, deadline=deadline)
            await asyncio.wait({container.exit}, timeout=STOP_GRACE_S)
            await container.kill(deadline=self._fleet.now() + STOP_GRACE_S)
        await asyncio.wait({run.ended}, timeout=STOP_GRACE_S)
        return run.record

    async def stop_all(self, function: str = "") -> None:
        """End every job, or every job of one function; kills at once."""
        for run in list(self._runs.values()):
            if function and run.record.function != function:
                continue
            run.stopped = True
            if run.instance.container is not None:
                await run.instance.container.kill(deadline=self._fleet.now() + STOP_GRACE_S)
            await asyncio.wait({run.ended}, timeout=STOP_GRACE_S)
