"""One run of a job: what is known of it, and what its end makes of its record and report.

Decides nothing; `job.py` carries it from one step to the next. The states are `core/job.py`'s.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Protocol

from agent.aio.deadline import ShrinkingDeadline
from agent.contracts.base import Call, CallReport, Contract
from agent.core.billing import add_pull, gb_s
from agent.core.job import JobEvent, JobState, next_job_state
from agent.core.pulling import ImagePull
from agent.errors import FunctionFailed
from agent.instances.instance import Instance
from agent.model.failure import Failure, FailureKind
from agent.model.records import CallRecord, Exit, FunctionVersion, Meters
from agent.telemetry.logs import FunctionLog


class JobTarget(Protocol):
    """A function version as its jobs see it."""

    version: FunctionVersion
    contract: Contract
    log: FunctionLog
    pull: ImagePull | None

    @property
    def closed(self) -> bool:
        """Whether it is being removed and takes nothing new."""

    def check_runnable(self) -> None:
        """Raise FunctionFailed when the version cannot run, as its state says."""

    async def image_here(self) -> None:
        """Wait until the version's image is here, as long as for room; raises FunctionFailed."""


class Run:
    """One job under way. `started` and `ended` are resolved, never failed."""

    def __init__(
        self,
        record: CallRecord,
        target: JobTarget,
        instance: Instance,
        call: Call,
        asked_at: float,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.record = record
        self.target = target
        self.instance = instance
        self.call = call
        self.asked_at = asked_at
        self.started: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        self.cutoff = ShrinkingDeadline()
        """Over when its time limit has passed, or when it is to stop."""
        self.stopped = False
        self.awaited = 0
        """How many callers wait here for its end."""
        self.grace_s: float | None = None
        self.output = b""
        self.cpu_ns = 0
        self.failure: Failure | None = None
        self.report = CallReport(Meters())

    def __repr__(self) -> str:
        return f"<Run {self.record.id} {self.record.state} {self.instance!r}>"

    async def wait(self, *, to_the_end: bool) -> None:
        """Return when its process runs, or has ended; a cancelled wait does not stop it."""
        if not to_the_end:
            await asyncio.shield(self.started)
            return
        self.awaited += 1
        try:
            await asyncio.shield(self.ended)
        finally:
            self.awaited -= 1

    def may_begin(self) -> None:
        """Raise FunctionFailed when it was stopped before its container is made."""
        if self.stopped:
            raise FunctionFailed(Failure(FailureKind.CLIENT_CANCELLED, "stopped before it began"))

    def has_started(self) -> None:
        """Note that its process runs."""
        cold = self.instance.cold_start
        meters = Meters()
        if cold is not None:
            add_pull(meters, cold, self.target.version.spec.memory_mb)
        self.report = CallReport(meters, cold, b"", self.instance.id)
        self.record = replace(
            self.record,
            state=self._after(JobEvent.STARTED),
            started_ns=time.time_ns(),
            cold_start=cold,
        )

    def is_late(self, limit_s: float) -> None:
        """Note that its time limit has passed."""
        what = f"the job ran longer than {limit_s:g} s"
        self.failure = Failure(FailureKind.TIMEOUT, what, waited_s=limit_s, limit=limit_s)

    def has_exited(self, exit: Exit, wall_ms: float) -> str:
        """Note the end of its process; returns the error in words, "" when all went well."""
        spec = self.target.version.spec
        billed_ms = self.target.contract.billed_ms(wall_ms)
        meters = Meters(
            wall_ms=wall_ms,
            billed_ms=billed_ms,
            memory_gb_s=gb_s(spec.memory_mb, billed_ms / 1000),
            cpu_ms=self.cpu_ns / 1e6,
            peak_memory_bytes=exit.peak_bytes,
        )
        if self.instance.cold_start is not None:
            add_pull(meters, self.instance.cold_start, spec.memory_mb)
        self.report = CallReport(meters, self.instance.cold_start, self.output, self.instance.id)
        if exit.out_of_memory:
            self.failure = Failure(
                FailureKind.OUT_OF_MEMORY,
                f"the job ran out of its {spec.memory_mb} MB of memory",
                exit_code=exit.exit_code,
                signal=exit.signal,
                out_of_memory=True,
            )
        event = self._end(exit)
        error = self.failure.message if self.failure is not None else ""
        if event is JobEvent.EXITED_BADLY and not error:
            error = f"the job exited with code {exit.exit_code}"
        self._over(event, error, exit_code=exit.exit_code, meters=meters)
        return error

    def has_failed(self, failure: Failure) -> None:
        """Note the end of a run that has no exit: it did not start, or its exit was not seen."""
        self.failure = failure
        if self.record.ended_ns:
            return
        event = JobEvent.EXITED_BADLY
        if self.stopped:
            event = JobEvent.STOP_REQUESTED
        elif self.record.state == JobState.ENQUEUED.value:
            event = JobEvent.START_FAILED
        self._over(event, failure.message, exit_code=None, meters=self.record.meters)

    def _end(self, exit: Exit) -> JobEvent:
        if self.stopped:
            return JobEvent.STOP_REQUESTED
        if self.failure is not None and self.failure.kind is FailureKind.TIMEOUT:
            return JobEvent.TIMED_OUT
        well = self.failure is None and exit.exit_code == 0
        return JobEvent.EXITED_CLEAN if well else JobEvent.EXITED_BADLY

    def _over(self, event: JobEvent, error: str, *, exit_code: int | None, meters: Meters) -> None:
        self.record = replace(
            self.record,
            state=self._after(event),
            ended_ns=time.time_ns(),
            exit_code=exit_code,
            error=error,
            meters=meters,
        )

    def _after(self, event: JobEvent) -> str:
        return next_job_state(JobState(self.record.state), event).value
