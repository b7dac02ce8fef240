"""Jobs: one container per call, no port, the event in its environment, the exit is the result.

A call is answered when the process runs or when it has ended, as its contract says; either way the
run goes on here in a task of its own, within the function's time limit, and ends in a call record
with the real exit code. A caller who goes away does not stop a job; `stop` does, at any time: one
that has not begun then never begins. The states of a run are `agent/core/job.py`'s.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from agent.aio.tasks import finish, launch
from agent.calls.run import JobTarget, Run
from agent.contracts.base import Call, CallReport, Reply
from agent.core.instance import LifecycleEvent, State
from agent.core.job import JobState
from agent.core.memory_kills import UNKNOWN
from agent.errors import AgentError, AlreadyExists, FunctionFailed, NotFound, Overloaded
from agent.instances.fleet import Fleet
from agent.instances.instance import BROKEN_S, Instance
from agent.model.failure import Failure, FailureKind
from agent.model.limits import LOG_TAIL_BYTES
from agent.model.records import CallRecord, Exit

log = logging.getLogger(__name__)


class JobRunner:
    """The jobs of this node that run or wait to run, by call id."""

    def __init__(self, fleet: Fleet, save: Callable[[CallRecord], Awaitable[None]]) -> None:
        self._fleet = fleet
        self._save = save
        self._runs: dict[str, Run] = {}
        self._of: Counter[tuple[str, int]] = Counter()

    def __repr__(self) -> str:
        return f"<JobRunner {len(self._runs)} runs>"

    @property
    def running(self) -> int:
        """How many jobs run now."""
        return len(self._runs)

    async def answer(self, target: JobTarget, call: Call, event: bytes) -> tuple[Reply, CallReport]:
        """Run a job for a call; return its answer in the contract's words, and its report."""
        run = await self.run(target, call, event)
        waits = target.contract.waits_for_job()
        await run.wait(to_the_end=waits)
        if run.failure is not None:
            raise FunctionFailed(run.failure)
        code = run.record.exit_code if waits else None
        return target.contract.job_reply(call, code, run.output, run.report), run.report

    async def run(self, target: JobTarget, call: Call, event: bytes) -> Run:
        """Begin a job and return it; `started` and `ended` are resolved, never failed.

        Raises InvalidSpec or FunctionFailed for an event that does not fit, AlreadyExists when the
        call's id is in use, Overloaded when nothing more fits on the node or in `scaling.max`.
        """
        asked_at = self._fleet.now()
        target.check_runnable()
        await target.image_here()
        extra = target.contract.job_input(event, call.request_id).environment
        instance = await self._admitted(target, call)
        record = CallRecord(
            id=call.request_id,
            function=target.version.name,
            version=target.version.version,
            instance=instance.id,
            state=JobState.ENQUEUED.value,
            accepted_ns=time.time_ns(),
        )
        run = Run(record, target, instance, call, asked_at)
        return self._enter(run, extra, self._fleet.now())

    async def _admitted(self, target: JobTarget, call: Call) -> Instance:
        """Return a counted instance for a job; others may have to give way first."""
        until = self._fleet.now() + target.version.spec.queue_timeout_s
        while True:
            self._check(target, call)
            try:
                return self._fleet.admission.new_instance(
                    target.version, target.contract, target.log
                )
            except Overloaded as error:
                await self._room(target, error, until)

    def _check(self, target: JobTarget, call: Call) -> None:
        if call.request_id in self._runs:
            raise AlreadyExists(f"call {call.request_id} runs already")
        if not self._fleet.mode.takes_calls or target.closed:
            raise Overloaded("no new calls are taken", reason="draining")
        most = target.version.spec.scaling.max
        if self._of[target.version.key] >= most:
            raise Overloaded(
                f"{target.version.name} runs {most} jobs already (scaling.max)", reason="queue"
            )

    async def _room(
        self, target: JobTarget, error: Overloaded, until: float, *ends: asyncio.Future[None]
    ) -> None:
        """Wait until there may be room, or one of `ends`; raises the error when none will come."""
        wait = self._fleet.eviction.wait_for_capacity(target.version, error)
        if wait is None:
            raise error
        left_s = max(0.0, until - self._fleet.now())
        first = asyncio.FIRST_COMPLETED
        try:
            done, _ = await asyncio.wait({wait.over, *ends}, timeout=left_s, return_when=first)
        finally:
            self._fleet.eviction.queue.leave(wait)
        if not done:
            raise error

    def adopt(self, target: JobTarget, instance: Instance, record: CallRecord) -> None:
        """Go on with a job that the worker before had started; its time began with that start."""
        call = Call(record.id, "job", b"POST", b"/", [], instance=instance.id)
        age_s = (time.time_ns() - (record.started_ns or record.accepted_ns)) / 1e9
        began = self._fleet.now() - age_s
        running = replace(record, state=JobState.RUNNING.value)
        run = Run(running, target, instance, call, began)
        run.started.set_result(None)
        self._enter(run, None, began)

    def _enter(self, run: Run, extra: dict[str, str] | None, began: float) -> Run:
        self._runs[run.record.id] = run
        self._of[run.target.version.key] += 1
        launch(f"job {run.record.id}", self._work(run, extra, began))
        return run

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
            run.cutoff.close()
            await self._leave(run)

    async def _leave(self, run: Run) -> None:
        """Forget a run; nothing of its instance stays, whatever went wrong."""
        if self._is_ours(run):
            gone = run.instance.stop(grace_s=0.0)
            await finish(f"end {run.instance.id}", gone, within_s=BROKEN_S)
        key = run.target.version.key
        self._of[key] -= 1
        if not self._of[key]:
            del self._of[key]
        del self._runs[run.record.id]
        self._fleet.admission.ended(run.instance, run.failure)
        for future in (run.started, run.ended):
            if not future.done():
                future.set_result(None)

    async def _begin(self, run: Run, extra: dict[str, str], began: float) -> None:
        """Start the container."""
        contract = run.target.contract
        run.may_begin()
        for line in contract.log_before(run.call.request_id):
            run.instance.note(line)
        environment = {**contract.environment(run.instance.id), **extra}
        until = began + run.target.version.spec.queue_timeout_s
        while True:
            try:
                await run.instance.start(environment, began, self._permit(run))
                break
            except Overloaded as error:
                await self._room(run.target, error, until, run.cutoff.over)
                run.instance = self._fleet.admission.again(run.instance, run.target.log)
        if run.target.pull is not None:
            run.instance.waited_for_pull(run.target.pull, run.asked_at)
        self._fleet.admission.started(run.instance)
        run.has_started()
        await self._note(run)
        if not self._fleet.mode.owns_instances:
            if run.awaited:
                run.instance.keep()
            else:
                run.instance.hand_over()
        run.started.set_result(None)

    @asynccontextmanager
    async def _permit(self, run: Run) -> AsyncIterator[None]:
        """Return the fleet's permit; a job that was stopped while it waited for it never begins."""
        async with self._fleet.permits.of(run.target.version.name):
            run.may_begin()
            yield

    async def _await_end(self, run: Run, began: float) -> Exit:
        """Wait for the exit, TERM and KILL past the time limit, and give everything back."""
        instance = run.instance
        assert instance.container is not None
        exited = instance.container.exit
        limit_s = run.target.contract.limits.call_s
        run.cutoff.at_most(began + limit_s - self._fleet.now())
        await run.cutoff.wait_for(exited)
        cut = not exited.done()
        run.cpu_ns = instance.cpu_ns()
        if cut and not run.stopped:
            run.is_late(limit_s)
        if self._is_ours(run):
            event = LifecycleEvent.STOP_BEGAN if cut else LifecycleEvent.COMPLETED
            await instance.stop(grace_s=run.grace_s, event=event)
        run.output = self._output(instance)
        exit = instance.last_exit
        if exit is None or exit.exit_code == UNKNOWN:
            raise FunctionFailed(Failure(FailureKind.INTERNAL, "the job's exit was not seen"))
        if not cut:
            run.failure = await instance.not_executed(exit)
        return exit

    async def _finish(self, run: Run, exit: Exit, began: float) -> None:
        error = run.has_exited(exit, (self._fleet.now() - began) * 1000)
        for line in run.target.contract.log_after(run.record.id, run.report.meters, error):
            run.instance.note(line)
        await self._note(run)

    async def _failed(self, run: Run, failure: Failure) -> None:
        run.has_failed(failure)
        await self._note(run)

    async def _note(self, run: Run) -> None:
        """Save how far a run is; a store that fails does not make the run fail."""
        if not self._is_ours(run):
            return
        try:
            await self._save(run.record)
        except AgentError as error:
            log.warning("the record of call %s is not saved: %s", run.record.id, error)

    def _is_ours(self, run: Run) -> bool:
        """Say whether a run ends here; else the next worker goes on with it."""
        return not run.instance.handed_over

    def kept(self) -> set[str]:
        """Return the instances of the jobs whose callers wait here for their end."""
        return {run.instance.id for run in self._runs.values() if run.awaited}

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
        self._ask_to_stop(run, None)
        await asyncio.wait({run.ended})
        return run.record

    async def stop_all(self, *, grace_s: float | None = None) -> None:
        """End every job; `grace_s` shortens the time between TERM and KILL, 0 kills."""
        await self._stop_these(list(self._runs.values()), grace_s)

    async def end_those_of(self, function: str, *, force: bool) -> None:
        """Wait for the jobs of a function that is removed, `force` kills them."""
        runs = [run for run in self._runs.values() if run.record.function == function]
        if force:
            await self._stop_these(runs, 0.0)
        elif runs:
            await asyncio.wait({run.ended for run in runs})

    async def _stop_these(self, runs: list[Run], grace_s: float | None) -> None:
        for run in runs:
            self._ask_to_stop(run, grace_s)
        if runs:
            await asyncio.wait({run.ended for run in runs})

    def _ask_to_stop(self, run: Run, grace_s: float | None) -> None:
        run.stopped = True
        if grace_s is not None:
            run.grace_s = grace_s
            if run.instance.state is State.STOPPING:
                launch(f"hasten {run.instance.id}", run.instance.stop(grace_s=grace_s))
        run.cutoff.at_most(0)
