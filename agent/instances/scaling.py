"""The instances of one function version: started when the pool wants one, ended when it does not.

How many and which is `agent/core/pool.py`'s decision; this carries it out, in one background task
per start and per end, and keeps both so that a stop can wait for all of them. Who has a place on an
instance is `agent/calls/target.py`'s. A start for which the node has no room is tried again as soon
as some instance has given its place back; callers wait for that only while one is about to, and
idle ones of other versions are made to.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from signal import SIGKILL
from typing import Generic, TypeVar

from agent.aio.deadline import ShrinkingDeadline
from agent.aio.tasks import launch, spawn, stop
from agent.contracts.base import Contract
from agent.contracts.failures import from_error
from agent.core.eviction import Idle
from agent.core.instance import LifecycleEvent, State
from agent.core.pool import Member, Pool
from agent.errors import (
    AgentError,
    FailedPrecondition,
    FunctionFailed,
    InvalidSpec,
    Overloaded,
    RuntimeUnavailable,
)
from agent.instances.end import KILL_S
from agent.instances.eviction import Retire
from agent.instances.fleet import Fleet
from agent.instances.instance import Instance
from agent.instances.standby import Standbys
from agent.model.failure import Failure, FailureKind
from agent.model.records import FunctionVersion
from agent.telemetry.logs import FunctionLog

log = logging.getLogger(__name__)

NO_CAPACITY_PAUSE_S = 1.0  # slots may get free without an instance's end: look again after this

W = TypeVar("W")


@dataclass(slots=True, eq=False)
class End:
    """One instance on its way out. `cutoff` has come when it need not wait for calls any more."""

    member: Member[Instance]
    event: LifecycleEvent
    grace_s: float | None
    cutoff: ShrinkingDeadline
    task: asyncio.Task[None] | None = None


@dataclass(frozen=True, slots=True)
class Answers(Generic[W]):
    """Who is told of waiters: that they have a place on an instance, or that they get none."""

    served: Callable[[Member[Instance], list[W]], None]
    refused: Callable[[list[W], Failure], None]


class Scaling(Generic[W]):
    """Starts and ends the instances of one version."""

    def __init__(
        self,
        version: FunctionVersion,
        contract: Contract,
        fleet: Fleet,
        pool: Pool[Instance, W],
        answers: Answers[W],
        out: FunctionLog,
    ) -> None:
        self.last_failure: Failure | None = None
        """Why the last start failed; None once one succeeded."""
        self.version = version
        self._contract = contract
        self._fleet = fleet
        self._pool = pool
        self._out = out
        self._starts: dict[Member[Instance], asyncio.Task[None]] = {}
        self._ends: dict[Member[Instance], End] = {}
        self.standbys = Standbys(contract, fleet, out)
        self._look_again = 0.0
        self._served = answers.served
        self._refused = answers.refused

    def __repr__(self) -> str:
        return f"<Scaling starts={len(self._starts)} ends={len(self._ends)}>"

    # -- up

    def scale(self, now: float) -> None:
        """Start as many instances as are wanted now."""
        if self._may_start(now):
            while self._start_one(now):
                pass

    def maintain(self, now: float) -> None:
        """Keep as many standbys as are wanted, after the starts that are wanted now."""
        self.standbys.maintain(self.version, self._pool, now)

    def try_again(self, now: float) -> bool:
        """Try for one instance more, as somebody's end has made room; say whether it starts."""
        self._look_again = now
        return self._may_start(now) and self._start_one(now)

    def _start_one(self, now: float) -> bool:
        if not self._pool.starts_wanted(now):
            return False
        if self._pool.waiting:
            self.standbys.demanded(now)
        try:
            instance = self.standbys.take() or self._fleet.admission.new_instance(
                self.version, self._contract, self._out
            )
        except Overloaded as error:
            self._no_capacity(error, now)
            return False
        member = self._pool.added(instance, now)
        self._starts[member] = spawn(f"start {instance.id}", self._start(member, now))
        return True

    def _may_start(self, now: float) -> bool:
        fleet, pool = self._fleet, self._pool
        if not fleet.mode.owns_instances or self.version.state != "Ready":
            return False
        if not fleet.mode.takes_calls and not pool.waiting:
            return False
        return now >= self._look_again or not self._some_hope()

    def _some_hope(self) -> bool:
        """Say whether those who wait may yet get a place without a start of their own."""
        return bool(
            self._pool.ready_count or self._pool.starting or self._fleet.admission.leaving()
        )

    def _no_capacity(self, error: Overloaded, now: float) -> None:
        self.last_failure = from_error(error)
        self._look_again = now + NO_CAPACITY_PAUSE_S
        self._fleet.eviction.queue.join(self)
        self._fleet.eviction.evict_for(self.version, error)
        if not self._some_hope():
            self._refused(self._pool.expired(float("inf")), self.last_failure)

    async def _start(self, member: Member[Instance], asked_at: float) -> None:
        admission = self._fleet.admission
        try:
            await self._begin(member, asked_at)
        except asyncio.CancelledError:
            self._pool.gone(member)
            admission.ended(member.instance, None)
            raise
        except Overloaded as error:
            self._pool.gone(member)
            admission.ended(member.instance, from_error(error), frees_capacity=False)
            self._no_capacity(error, self._fleet.now())
        except AgentError as error:
            self._failed(member, _why(error))
        except Exception as error:
            log.exception("start of %s", member.instance.id)
            self._failed(member, Failure(FailureKind.INTERNAL, f"start failed: {error}"))
        else:
            self._serve(member)
        finally:
            self._starts.pop(member, None)

    async def _begin(self, member: Member[Instance], asked_at: float) -> None:
        """Start a member's instance; a standby that cannot be started any more is built anew."""
        instance, permits = member.instance, self._fleet.permits
        name = self.version.name
        is_standby = instance.state is State.STANDBY
        environment = self._contract.environment(instance.id)
        try:
            await instance.start(environment, asked_at, permits.of(name))
        except (RuntimeUnavailable, FailedPrecondition, FunctionFailed) as error:
            if not (is_standby and _was_lost(error)):
                raise
            log.warning("standby %s was lost as a call came: %s", instance.id, error)
            member.instance = self._fleet.admission.again(instance, self._out)
            await member.instance.start(environment, asked_at, permits.of(name))

    def _failed(self, member: Member[Instance], failure: Failure) -> None:
        self.last_failure = failure
        log.info("%s did not start: %s", member.instance.id, failure.message)
        refused = self._pool.failed(member, self._fleet.now())
        self._fleet.admission.ended(member.instance, failure)
        self._refused(refused, failure)

    def _serve(self, member: Member[Instance]) -> None:
        self.last_failure = None
        self._watch(member)
        self._served(member, self._pool.ready(member, self._fleet.now()))
        self._fleet.admission.started(member.instance)
        if not self._fleet.mode.owns_instances:  # only now: those who waited here come first
            member.instance.hand_over()

    def adopt(self, instance: Instance, taken: int) -> Member[Instance]:
        """Count a running instance of the worker before as READY, `taken` places in its calls."""
        member, waiters = self._pool.adopted(instance, self._fleet.now(), taken)
        self._watch(member)
        self._served(member, waiters)
        return member

    # -- what another worker starts

    def expect(self, instance: Instance) -> Member[Instance]:
        """Count an instance that another worker is starting, so that none too many is started."""
        return self._pool.added(instance, self._fleet.now())

    def arrived(self, member: Member[Instance], taken: int) -> None:
        """Note that an expected instance serves now, `taken` places in its starter's calls."""
        self._watch(member)
        self._served(member, self._pool.ready(member, self._fleet.now(), taken))

    def failed_to_arrive(self, member: Member[Instance]) -> None:
        """Note that an expected instance is gone; who waits for it gets another one."""
        self._pool.gone(member)
        self.scale(self._fleet.now())

    async def give_up_starts(self) -> None:
        """Cancel the starts that hold no slots yet: they cannot go on beside another worker."""
        late = [member for member in self._starts if member.instance.wants_slots]
        await self._cancel(late)

    async def _cancel(self, members: list[Member[Instance]]) -> None:
        await stop(*(self._starts[member] for member in members))
        for member in members:
            if self._starts.pop(member, None) is not None:  # cancelled before its first step
                self._pool.gone(member)
                self._fleet.admission.ended(member.instance, None)

    # -- down

    def idle(self, now: float) -> list[Idle[Retire]]:
        """Return the instances that could give their room to another version, standbys first."""
        spec = self.version.spec
        found = self.standbys.idle(spec.disk_mb)
        for member in self._pool.idle(now, 0.0):
            retire = partial(self._give_way, member)
            took = (spec.memory_bytes, spec.disk_mb, member.instance.frozen)
            found.append(Idle(retire, member.idle_since, *took))
        return found

    def _give_way(self, member: Member[Instance]) -> str:
        self.retire(member)
        return member.instance.id

    def _watch(self, member: Member[Instance]) -> None:
        container = member.instance.container
        assert container is not None
        container.exit.add_done_callback(lambda _: self._exited(member))
        # What it writes fails now, and kills programs that do not expect it: another takes over.
        container.unread.add_done_callback(lambda _: self.retire(member))

    def _exited(self, member: Member[Instance]) -> None:
        """Take out a member whose process has ended by itself."""
        if member.instance.state not in (State.READY, State.DRAINING):
            return
        now = self._fleet.now()
        self._pool.crashed(member, now)
        if not self._fleet.mode.owns_instances and not member.instance.is_ours:
            return  # the next worker clears it
        end = self._ends.get(member)
        if end is None:
            self._end(member, LifecycleEvent.EXITED, None)
        else:
            end.event = LifecycleEvent.EXITED
            end.cutoff.at_most(0)
        self.scale(now)

    def retire(self, member: Member[Instance], *, grace_s: float | None = None) -> None:
        """Give a member no more calls and stop it once its calls have ended.

        `grace_s` bounds how long its calls, and then its process, may still take; 0 kills now.
        """
        instance = member.instance
        if member in self._ends or instance.state is not State.READY:
            return
        self._pool.drain(member)
        instance.drain_began()
        if self._fleet.mode.owns_instances:
            self._end(member, LifecycleEvent.STOP_BEGAN, grace_s)
            self.scale(self._fleet.now())
        elif grace_s == 0 and instance.container is not None:
            # The next worker has it already and clears it when it sees the exit.
            deadline = asyncio.get_running_loop().time() + KILL_S
            launch(f"kill {instance.id}", instance.container.kill(deadline=deadline))

    def left(self, member: Member[Instance]) -> None:
        """Note that a call has left a member: a retired one may stop after its last."""
        end = self._ends.get(member)
        if end is not None and self._pool.is_empty(member):
            end.cutoff.at_most(0)

    def _end(self, member: Member[Instance], event: LifecycleEvent, grace_s: float | None) -> None:
        end = self._ends[member] = End(member, event, grace_s, ShrinkingDeadline())
        empty = self._pool.is_empty(member)
        longest_s = self._contract.limits.call_s if grace_s is None else grace_s
        end.cutoff.at_most(0 if empty else longest_s)
        end.task = spawn(f"end {member.instance.id}", self._run_end(end))

    async def _run_end(self, end: End) -> None:
        member, instance = end.member, end.member.instance
        failure: Failure | None = None
        try:
            await end.cutoff.wait_for()
            await instance.stop(grace_s=end.grace_s, event=end.event)
            if end.event is LifecycleEvent.EXITED:
                failure = await instance.explain_exit(FailureKind.EXITED, 0.0)
        finally:
            del self._ends[member]
            self._pool.gone(member)
            self._fleet.admission.ended(instance, failure)

    async def stop(self, *, grace_s: float | None) -> None:
        """Start and keep nothing any more; returns when every instance is gone.

        A shorter `grace_s` also holds for those that were on their way out before.
        """
        self._fleet.eviction.queue.leave(self)
        await self._cancel(list(self._starts))
        await self.standbys.leave()
        for member in self._pool.members:
            self.retire(member, grace_s=grace_s)
        for end in list(self._ends.values()):
            self._hasten(end, grace_s)
        tasks = [end.task for end in self._ends.values() if end.task is not None]
        if tasks:
            await asyncio.wait(tasks)
        await self.standbys.stop()

    def forget_answers(self) -> None:
        """Tell nobody anything any more, once stopped: else both would hold each other for ever."""
        self._served = self._refused = _nobody

    def _hasten(self, end: End, grace_s: float | None) -> None:
        if grace_s is None:
            return
        end.grace_s = grace_s if end.grace_s is None else min(end.grace_s, grace_s)
        end.cutoff.at_most(grace_s)
        instance = end.member.instance
        if instance.state is State.STOPPING:
            launch(f"hasten {instance.id}", instance.stop(grace_s=grace_s))


def _nobody(*_: object) -> None:
    """Hear what a version says that is gone."""


def _was_lost(error: AgentError) -> bool:
    """Say whether a standby that did not start was gone before: refused, or killed from outside.

    The byte reaches also an init that is being killed; its program has not run then.
    """
    if not isinstance(error, FunctionFailed):
        return True
    failure = error.failure
    killed = failure.signal == SIGKILL and not failure.out_of_memory
    return failure.kind is FailureKind.EXITED_AT_START and killed


def _why(error: AgentError) -> Failure:
    """Return why a start failed, as callers are told: what the node lacks is no fault of theirs."""
    if isinstance(error, FunctionFailed | Overloaded | InvalidSpec):
        return from_error(error)
    return Failure(FailureKind.INTERNAL, error.message)
