"""One function version as calls see it: leases, waiting calls, and the instances behind them.

Decisions are `agent/core/pool.py`'s; this does them: starts and stops instances in background
tasks, tells waiters, keeps the ledger and the meters. `acquire` and `release` are the warm path and
touch neither gRPC nor disk nor tasks. Jobs are `agent/functions/job.py`'s.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from agent.aio.tasks import launch, spawn, stop
from agent.contracts.base import Call, CallReport, Contract, Reply
from agent.core.billing import gb_s
from agent.core.instance import Event, State
from agent.core.pool import Member, Policy, Pool
from agent.errors import AgentError, Bug, FunctionFailed, InvalidSpec, Overloaded
from agent.functions.instance import Instance
from agent.functions.ports import Lease, Waiter
from agent.model.failure import Failure, FailureKind
from agent.model.limits import LOG_TAIL_BYTES
from agent.model.records import ColdStart, FunctionVersion, Meters
from agent.telemetry.logs import FunctionLog

if TYPE_CHECKING:
    from agent.functions.fleet import Fleet
    from agent.functions.job import JobRunner

log = logging.getLogger(__name__)

EXPLAIN_S = 0.5
MS = 1000.0

_OVERLOAD_KINDS = {
    "queue": FailureKind.QUEUE_FULL,
    "queue_timeout": FailureKind.QUEUE_TIMEOUT,
    "draining": FailureKind.DRAINING,
}


@dataclass(slots=True, eq=False)
class PoolLease(Lease):
    """A lease with what the pool needs to take it back."""

    member: Member[Instance] | None = None
    cpu_ns: int = 0
    released: bool = False


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
        self.version = version
        self.contract = contract
        self.log = out
        self._fleet = fleet
        self.pool: Pool[Instance, Waiter] = Pool(self.policy_of(spec.scaling.min, spec.scaling.max))
        self._jobs = jobs
        self.last_failure: Failure | None = None
        """Why the last start failed; None once one succeeded."""
        self._causes: dict[Instance, Waiter] = {}
        self._starts: dict[Member[Instance], asyncio.Task[None]] = {}

    def __repr__(self) -> str:
        return f"<Target {self.version.name}:{self.version.version} {self.pool!r}>"

    def policy_of(self, least: int, most: int) -> Policy:
        """Return the pool's policy with these bounds on the number of instances."""
        spec = self.version.spec
        return Policy(
            concurrency=spec.concurrency,
            min=least if spec.kind != "job" else 0,
            max=most,
            max_queue=spec.max_queue,
            idle_s=spec.scaling.idle_s,
            zombie_s=self._fleet.zombie_s,
        )

    # -- the warm path

    def acquire(self, waiter: Waiter) -> Lease | None:
        """See `ports.Target.acquire`."""
        now = self._fleet.now()
        if self._fleet.draining:
            raise FunctionFailed(Failure(FailureKind.DRAINING, "the node takes no new calls"))
        member = self.pool.take(now)
        if member is not None:
            return self._lease(member, now)
        if self.version.state == "Failed":
            raise FunctionFailed(Failure(FailureKind.IMAGE_UNAVAILABLE, self.version.reason))
        try:
            self.pool.enqueue(waiter, now, now + self.version.spec.queue_timeout_s)
        except Overloaded as error:
            raise FunctionFailed(failure_of(error)) from error
        self._fleet.waiting(self)
        self.scale(now, cause=waiter)
        return None

    def _lease(self, member: Member[Instance], now: float, waiter: Waiter | None = None) -> Lease:
        instance = member.instance
        cold: ColdStart | None = None
        if waiter is not None and self._causes.get(instance) is waiter:
            cold = instance.cold_start
            del self._causes[instance]
        if instance.row >= 0:
            self._fleet.ledger.begin(instance.row)
        return PoolLease(instance.endpoint, now, cold, member=member, cpu_ns=instance.cpu_ns())

    def release(
        self, lease: Lease, call: Call, failure: Failure | None = None, *, recycle: bool = False
    ) -> CallReport:
        """See `ports.Target.release`."""
        if not isinstance(lease, PoolLease) or lease.member is None or lease.released:
            raise Bug(f"a lease of {self!r} was released twice")
        lease.released = True
        now = self._fleet.now()
        member = lease.member
        instance = member.instance
        if instance.row >= 0:
            self._fleet.ledger.end(instance.row)
        report = self._report(lease, call, now)
        for line in self.contract.log_after(call, report, failure.message if failure else ""):
            instance.note(line)
        if call.want_log_tail:
            report = replace(report, log_tail=self._tail(instance))
        if recycle or instance.state not in (State.READY, State.FROZEN):
            self.retire(member, grace_s=0.0 if recycle else None)
        waiter = self.pool.release(member, now)
        if waiter is not None:
            waiter.granted(self._lease(member, now, waiter))
        return report

    def _report(self, lease: PoolLease, call: Call, now: float) -> CallReport:
        assert lease.member is not None
        instance = lease.member.instance
        wall_ms = (now - lease.taken_at) * MS
        billed_ms = self.contract.billed_ms(wall_ms)
        meters = Meters(
            wall_ms=wall_ms,
            billed_ms=billed_ms,
            memory_gb_s=gb_s(self.version.spec.memory_mb, billed_ms / MS),
            cpu_ms=max(0, instance.cpu_ns() - lease.cpu_ns) / 1e6,
            cpu_exact=lease.member.inflight <= 1,
            peak_memory_bytes=instance.peak_bytes(),
        )
        return CallReport(meters, lease.cold_start, b"", instance.id)

    def _tail(self, instance: Instance) -> bytes:
        if instance.container is not None:
            instance.container.output.drain()
        lines = [line.text for line in self.log.tail(0) if line.instance == instance.id]
        return "\n".join(lines).encode()[-LOG_TAIL_BYTES:]

    def deliver_log_before(self, lease: Lease, call: Call) -> None:
        """See `ports.Target.deliver_log_before`."""
        line = self.contract.log_before(call)
        if line is not None and isinstance(lease, PoolLease) and lease.member is not None:
            lease.member.instance.note(line)

    def abandon(self, waiter: Waiter) -> None:
        """See `ports.Target.abandon`."""
        self.pool.abandon(waiter)

    async def explain(self, lease: Lease, waited_s: float) -> Failure:
        """See `ports.Target.explain`."""
        instance = lease.member.instance if isinstance(lease, PoolLease) and lease.member else None
        if instance is None or instance.container is None:
            return Failure(FailureKind.EXITED, "the instance is gone", waited_s=waited_s)
        exit = instance.container.exit
        await asyncio.wait({exit}, timeout=EXPLAIN_S)
        if exit.done():
            return await instance.explain_exit(FailureKind.EXITED, waited_s)
        return Failure(
            FailureKind.BAD_RESPONSE,
            "the function closed the connection without a whole answer",
            address=instance.endpoint.address,
            port=instance.endpoint.port,
            waited_s=waited_s,
            log_lines=instance.quote(),
        )

    async def run_job(self, call: Call, event: bytes) -> tuple[Reply, CallReport]:
        """See `ports.Target.run_job`."""
        return await self._jobs.answer(self, call, event)

    # -- instances

    def scale(self, now: float, cause: Waiter | None = None) -> None:
        """Start as many instances as are wanted now; `cause` is the call that asks for one."""
        if self._fleet.draining or self.version.state != "Ready":
            return
        for _ in range(self.pool.starts_wanted(now)):
            try:
                instance = self._fleet.new_instance(self.version, self.contract, self.log)
            except Overloaded as error:
                self._refuse_uncovered(error)
                return
            member = self.pool.added(instance, now)
            if cause is not None:
                self._causes[instance] = cause
                cause = None
            self._starts[member] = spawn(f"start {instance.id}", self._start(member, now))

    def _refuse_uncovered(self, error: Overloaded) -> None:
        """Refuse the waiters when nothing serves or starts that could ever take them."""
        if self.pool.ready_count or self.pool.starting:
            return
        for waiter in self.pool.expired(float("inf")):
            waiter.refused(failure_of(error))

    async def _start(self, member: Member[Instance], asked_at: float) -> None:
        instance = member.instance
        try:
            async with self._fleet.start_permit():
                await instance.start(self.contract.environment(instance.id), asked_at)
        except asyncio.CancelledError:
            self._failed(member, Failure(FailureKind.DRAINING, "the node stops"))
            raise
        except AgentError as error:
            self._failed(member, failure_of(error))
            return
        except Exception as error:
            log.exception("start of %s", instance.id)
            self._failed(member, Failure(FailureKind.INTERNAL, f"start failed: {error}"))
            return
        finally:
            self._starts.pop(member, None)
        self._serve(member)

    def _failed(self, member: Member[Instance], failure: Failure) -> None:
        instance = member.instance
        self._causes.pop(instance, None)
        self._fleet.ended(instance, failure)
        self.last_failure = failure
        log.info("%s did not start: %s", instance.id, failure.message)
        now = self._fleet.now()
        for waiter in self.pool.failed(member, now):
            waiter.refused(failure)
        self._fleet.waiting(self)

    def _serve(self, member: Member[Instance]) -> None:
        instance = member.instance
        self.last_failure = None
        self._fleet.started(instance)
        self.watch(member)
        now = self._fleet.now()
        for waiter in self.pool.ready(member, now):
            waiter.granted(self._lease(member, now, waiter))

    def watch(self, member: Member[Instance]) -> None:
        """Take the member out of the pool when its process exits by itself."""
        container = member.instance.container
        assert container is not None
        container.exit.add_done_callback(lambda _: self._exited(member))

    def adopt(self, instance: Instance, foreign: int) -> Member[Instance]:
        """Count a running instance of the worker before as READY, `foreign` places taken."""
        now = self._fleet.now()
        member, waiters = self.pool.adopted(instance, now, foreign)
        self.watch(member)
        for waiter in waiters:
            waiter.granted(self._lease(member, now, waiter))
        return member

    def give_back(self, member: Member[Instance], places: int) -> None:
        """Free places that another worker's calls had taken."""
        now = self._fleet.now()
        for _ in range(places):
            waiter = self.pool.release(member, now)
            if waiter is not None:
                waiter.granted(self._lease(member, now, waiter))

    def _exited(self, member: Member[Instance]) -> None:
        if member.instance.state in (State.READY, State.FROZEN, State.DRAINING):
            self.pool.gone(member)
            launch(f"clear {member.instance.id}", self._stop(member, None, Event.EXITED))

    def retire(self, member: Member[Instance], *, grace_s: float | None = None) -> None:
        """Give a member no more calls and stop it."""
        if member.instance.state not in (State.READY, State.FROZEN):
            return
        self.pool.drain(member)
        member.instance.drain_began()
        launch(f"stop {member.instance.id}", self._drain_and_stop(member, grace_s))

    async def _drain_and_stop(self, member: Member[Instance], grace_s: float | None) -> None:
        limit = self._fleet.now() + self.contract.limits.call_s
        pause_s = 0.005
        while not self.pool.is_empty(member) and self._fleet.now() < limit and grace_s != 0:
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, 0.2)
        await self._stop(member, grace_s, Event.STOP_BEGAN)

    async def _stop(self, member: Member[Instance], grace_s: float | None, event: Event) -> None:
        instance = member.instance
        await instance.stop(grace_s=grace_s, event=event)
        self.pool.gone(member)
        failure = None
        if event is Event.EXITED:
            failure = await instance.explain_exit(FailureKind.EXITED, 0.0)
        self._fleet.ended(instance, failure)
        self._fleet.waiting(self)

    # -- on the timer

    def tick(self, now: float) -> None:
        """Refuse waiters whose time is over, give up held places, start what is wanted."""
        for waiter in self.pool.expired(now):
            waited_s = self.version.spec.queue_timeout_s
            waiter.refused(
                Failure(
                    FailureKind.QUEUE_TIMEOUT,
                    f"no instance was free within {waited_s:g} s",
                    waited_s=waited_s,
                    retry_after_s=1.0,
                )
            )
        for member in self.pool.idle(now):
            self.retire(member)
        self.scale(now)

    async def stop(self, *, grace_s: float | None) -> None:
        """Take no more calls, refuse those that wait, drain and stop every instance."""
        for waiter in self.pool.close():
            waiter.refused(Failure(FailureKind.DRAINING, "the function is being removed"))
        await stop(*self._starts.values())
        members = self.pool.members
        for member in members:
            self.pool.drain(member)
            member.instance.drain_began()
        await asyncio.gather(*(self._drain_and_stop(m, grace_s) for m in members))


def failure_of(error: AgentError) -> Failure:
    """Return the failure a contract words when the agent could not serve a call."""
    match error:
        case FunctionFailed():
            return error.failure
        case Overloaded():
            kind = _OVERLOAD_KINDS.get(error.reason, FailureKind.NO_CAPACITY)
            return Failure(kind, error.message, retry_after_s=error.retry_after_s)
        case InvalidSpec():
            return Failure(FailureKind.BAD_REQUEST, error.message)
        case _:
            return Failure(FailureKind.INTERNAL, error.message)
