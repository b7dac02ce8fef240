"""One function version as calls see it: leases, waiting calls, and what a call has cost.

Decisions are `agent/core/pool.py`'s; instances come and go in `agent/instances/scaling.py`.
`acquire` and `release` are the warm path and touch neither gRPC nor disk nor tasks. Every waiter is
told exactly once, here and nowhere else. Jobs are `agent/calls/job.py`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from time import time_ns
from typing import Final

from agent.calls.job import JobRunner
from agent.calls.ports import Lease, Waiter
from agent.contracts.base import Call, CallReport, Contract, Reply
from agent.contracts.failures import from_error
from agent.core.billing import add_pull, gb_s
from agent.core.pool import Member, Policy, Pool, Stage
from agent.core.pulling import ImagePull
from agent.errors import Bug, FunctionFailed, Overloaded
from agent.instances.failures import bad_response
from agent.instances.fleet import Fleet
from agent.instances.instance import EXIT_S, Instance
from agent.instances.scaling import Answers, Scaling
from agent.model.failure import Failure, FailureKind
from agent.model.limits import LOG_TAIL_BYTES
from agent.model.records import ColdStart, FunctionVersion, Meters
from agent.telemetry.logs import FunctionLog

log = logging.getLogger(__name__)

MS: Final = 1000.0
IMAGE_RETRY_S: Final = 1.0


class PoolLease(Lease):
    """A lease with what the pool needs to take it back, and what its call has cost by then."""

    cpu_ns: float
    joins: int
    alone: bool
    peak_bytes: int
    released = False
    wall_ms = 0.0
    log_tail = b""

    def __init__(
        self,
        member: Member[Instance],
        taken_at: float,
        cold_start: ColdStart | None,
    ) -> None:
        self.endpoint = member.instance.endpoint
        self.taken_at = taken_at
        self.cold_start = cold_start
        self.member = member


class FunctionTarget:
    """The pool of one function version, and its door to the fleet of the node."""

    def __init__(
        self,
        version: FunctionVersion,
        contract: Contract,
        fleet: Fleet,
        jobs: JobRunner,
        out: FunctionLog,
    ) -> None:
        spec = version.spec
        self._minimum = spec.scaling.min if spec.kind != "job" else 0
        self._settled = asyncio.Event()
        """Set unless its image is on its way."""
        if version.state != "Preparing":
            self._settled.set()
        self.version = version
        self.contract = contract
        self.log = out
        self.pool: Pool[Instance, Waiter] = Pool(
            Policy(
                concurrency=spec.concurrency,
                min=self._minimum,
                max=spec.scaling.max,
                max_queue=spec.max_queue,
                idle_s=spec.scaling.idle_s,
            )
        )
        answers = Answers(self._serve, self._refuse)
        self.scaling = Scaling(version, contract, fleet, self.pool, answers, out)
        self._fleet = fleet
        self._jobs = jobs
        self._number = version.version
        speaks = type(contract).log_before is not Contract.log_before
        self._words_before = contract.log_before if speaks else None
        self._logs_after = type(contract).log_after is not Contract.log_after
        self._causing: dict[Waiter, float] = {}
        """Since when those wait who wait for a start of their own, not under way for another."""
        self.pull: ImagePull | None = None
        """How its image came, if calls may have waited for that."""

    def __repr__(self) -> str:
        return f"<Target {self.version.name}:{self.version.version} {self.pool!r}>"

    # -- the warm path

    def acquire(self, waiter: Waiter) -> Lease | None:
        """See `ports.Target.acquire`."""
        now = self._fleet.now()
        if not self._fleet.mode.takes_calls:
            raise FunctionFailed(Failure(FailureKind.DRAINING, "the node takes no new calls"))
        member = self.pool.take(now)
        if member is not None:
            return self._lease(member, now, waiter)
        self.check_runnable()
        # What it waited elsewhere, before it was passed on to this worker, counts as well.
        until = now + self.version.spec.queue_timeout_s - waiter.waited_s
        try:
            self.pool.enqueue(waiter, now, until)
        except Overloaded as error:
            raise FunctionFailed(from_error(error)) from error
        if self.pool.waiting > self.pool.starting * self.pool.policy.concurrency:
            self._causing[waiter] = now - waiter.waited_s
        self._fleet.timer.visit(self)
        self.scaling.scale(now)
        return None

    def _lease(
        self, member: Member[Instance], now: float, waiter: Waiter, cold: ColdStart | None = None
    ) -> Lease:
        instance = member.instance
        if instance.frozen:
            instance.thaw()
        instance.calls.begin()
        lease = PoolLease(member, now, cold)
        instance.meter.begin(lease, now)
        if self._words_before is not None:
            given = (waiter.request_id,)
            self.log.append_unworded(
                time_ns(), instance.id, self._number, self._words_before, given
            )
        return lease

    def release(
        self, lease: Lease, call: Call, failure: Failure | None = None, *, recycle: bool = False
    ) -> None:
        """See `ports.Target.release`."""
        if not isinstance(lease, PoolLease) or lease.released:
            raise Bug(f"a lease of {self!r} was released twice")
        lease.released = True
        now = self._fleet.now()
        member = lease.member
        instance = member.instance
        instance.meter.end(lease, now)
        lease.wall_ms = wall_ms = (now - lease.taken_at) * MS
        if self._logs_after:
            why = failure.message if failure is not None else ""
            given = (call.request_id, wall_ms, lease.peak_bytes, why)
            if why:  # of any length: as lines it is counted
                for text in self._words_after(*given):
                    instance.note(text)
            else:
                self.log.append_unworded(
                    time_ns(), instance.id, self._number, self._words_after, given
                )
        if call.want_log_tail:
            lease.log_tail = self._tail(instance)
        kills = recycle and self.pool.policy.concurrency == 1
        if recycle:  # other calls on it end first
            self.scaling.retire(member, grace_s=0.0 if kills else None)
        granted = self._vacate(member, now)
        # The count never drops in between: another worker would take the place for a free one.
        if kills and not self._fleet.mode.owns_instances:
            instance.end_call_at_exit()
        else:
            instance.calls.end()
        if granted is not None:
            granted[0].granted(granted[1])

    def _vacate(self, member: Member[Instance], now: float) -> tuple[Waiter, Lease] | None:
        """Free a place, or lease it to the next waiter at once; that one is still to be told."""
        waiter = self.pool.release(member, now)
        if waiter is None:
            if member.stage is not Stage.READY:
                self.scaling.left(member)
            elif not member.inflight and member.instance.freeze_after_s is not None:
                self._fleet.freezing.rests(member)
            return None
        self._causing.pop(waiter, None)
        return waiter, self._lease(member, now, waiter)

    def report(self, lease: Lease) -> CallReport:
        """See `ports.Target.report`."""
        assert isinstance(lease, PoolLease)
        meters = self._meters(lease.wall_ms, lease.peak_bytes)
        meters.cpu_ms, meters.cpu_exact = lease.cpu_ns / 1e6, lease.alone
        if lease.cold_start is not None:
            add_pull(meters, lease.cold_start, self.version.spec.memory_mb)
        return CallReport(meters, lease.cold_start, lease.log_tail, lease.endpoint.id)

    def _meters(self, wall_ms: float, peak_bytes: int) -> Meters:
        billed_ms = self.contract.billed_ms(wall_ms)
        return Meters(
            wall_ms=wall_ms,
            billed_ms=billed_ms,
            memory_gb_s=gb_s(self.version.spec.memory_mb, billed_ms / MS),
            peak_memory_bytes=peak_bytes,
        )

    def _words_after(
        self, request_id: str, wall_ms: float, peak_bytes: int, why: str
    ) -> Sequence[str]:
        return self.contract.log_after(request_id, self._meters(wall_ms, peak_bytes), why)

    def _tail(self, instance: Instance) -> bytes:
        if instance.container is not None:
            instance.container.output.drain()
        return self.log.last_text(instance.id, LOG_TAIL_BYTES)

    def abandon(self, waiter: Waiter) -> None:
        """See `ports.Target.abandon`."""
        self.pool.abandon(waiter)
        self._causing.pop(waiter, None)

    async def explain(self, lease: Lease, waited_s: float) -> Failure:
        """See `ports.Target.explain`."""
        assert isinstance(lease, PoolLease)
        instance = lease.member.instance
        if instance.container is None:
            return Failure(FailureKind.EXITED, "the instance is gone", waited_s=waited_s)
        if await instance.exits_within(EXIT_S):
            return await instance.explain_exit(FailureKind.EXITED, waited_s)
        return bad_response(instance.scene(waited_s))

    def check_runnable(self) -> None:
        """Raise FunctionFailed when the version cannot run, as its state says."""
        version = self.version
        if version.state == "Failed":
            raise FunctionFailed(Failure(FailureKind.IMAGE_UNAVAILABLE, version.reason))
        if version.state == "Preparing" and not version.spec.wait_for_image:
            text = f"the image of {version.name} is on its way, and wait_for_image is false"
            raise FunctionFailed(
                Failure(FailureKind.IMAGE_UNAVAILABLE, text, retry_after_s=IMAGE_RETRY_S)
            )

    async def image_here(self) -> None:
        """See `run.JobTarget.image_here`."""
        limit_s = self.version.spec.queue_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                await self._settled.wait()
        except TimeoutError as error:
            text = f"the image of {self.version.name} did not come within {limit_s:g} s"
            raise FunctionFailed(Failure(FailureKind.QUEUE_TIMEOUT, text)) from error
        self.check_runnable()

    def prepares(self) -> None:
        """Note that a Failed version's image is fetched again."""
        self._is(replace(self.version, state="Preparing", reason=""))

    def mended(self, version: FunctionVersion) -> None:
        """Let a version run: what it lacked is there."""
        self._is(version)
        self._fleet.timer.visit(self)
        self.scaling.scale(self._fleet.now())  # calls may wait

    def failed(self, version: FunctionVersion) -> None:
        """Refuse those who wait for a version whose image does not come."""
        self._is(version)
        why = Failure(FailureKind.IMAGE_UNAVAILABLE, version.reason)
        self._refuse(self.pool.expired(float("inf")), why)

    def _is(self, version: FunctionVersion) -> None:
        self.version = self.scaling.version = version
        if version.state == "Preparing":
            self._settled.clear()
        else:
            self._settled.set()

    async def run_job(self, call: Call, event: bytes) -> tuple[Reply, CallReport]:
        """See `ports.Target.run_job`."""
        return await self._jobs.answer(self, call, event)

    # -- instances

    def _serve(self, member: Member[Instance], waiters: list[Waiter]) -> None:
        """Grant places on an instance that has just become READY.

        Its cold start is told by the first of the calls that asked for a start.
        """
        now = self._fleet.now()
        asked = {w: self._causing.pop(w) for w in waiters if w in self._causing}
        cause = next(iter(asked), None)
        if self.pull is not None and cause is not None:
            member.instance.waited_for_pull(self.pull, asked[cause])
        for waiter in waiters:
            cold = member.instance.cold_start if waiter is cause else None
            waiter.granted(self._lease(member, now, waiter, cold))
        if not member.inflight and member.instance.freeze_after_s:  # 0: after a call only
            self._fleet.freezing.rests(member)

    def _refuse(self, waiters: list[Waiter], failure: Failure) -> None:
        for waiter in waiters:
            self._causing.pop(waiter, None)
        for waiter in waiters:
            try:
                waiter.refused(failure)
            except Exception:  # one caller's trouble must not leave the others waiting
                log.exception("refusing a call of %r", self)

    def give_back(self, member: Member[Instance], places: int) -> None:
        """Free places that another worker's calls had taken."""
        now = self._fleet.now()
        for _ in range(places):
            granted = self._vacate(member, now)
            if granted is not None:
                granted[0].granted(granted[1])

    def keep_minimum(self) -> None:
        """Keep instances as the spec says: this version is LATEST now."""
        self.pool.policy = replace(self.pool.policy, min=self._minimum)
        self.scaling.standbys.kept = True

    def keep_no_minimum(self) -> None:
        """Let idle instances go: LATEST is another version."""
        self.pool.policy = replace(self.pool.policy, min=0)
        self.scaling.standbys.kept = False

    @property
    def waiting(self) -> bool:
        """Whether calls wait."""
        return bool(self.pool.waiting)

    @property
    def closed(self) -> bool:
        """Whether it is being removed and takes nothing new."""
        return self.pool.closed

    # -- on the timer

    def tick(self, now: float) -> None:
        """Refuse waiters whose time is over, end what is idle, start what is wanted."""
        late = self.pool.expired(now)
        if late:
            waited_s = self.version.spec.queue_timeout_s
            why = Failure(
                FailureKind.QUEUE_TIMEOUT,
                f"no instance was free within {waited_s:g} s",
                waited_s=waited_s,
                retry_after_s=1.0,
            )
            self._refuse(late, why)
        if self._fleet.mode.owns_instances:
            for member in self.pool.idle(now):
                self.scaling.retire(member)
            self.scaling.scale(now)
            self.scaling.maintain(now)

    async def stop(self, *, grace_s: float | None) -> None:
        """Take no more calls, refuse those that wait, drain and stop every instance."""
        why = Failure(FailureKind.DRAINING, "the function is being removed")
        self._refuse(self.pool.close(), why)
        await self.scaling.stop(grace_s=grace_s)
        self.scaling.forget_answers()
