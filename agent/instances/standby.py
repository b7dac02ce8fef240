"""Containers of one version that are created and not started, so that a start is one write.

How many is `agent/core/standby.py`'s to say. They are made one at a time on the whole node, and
only while no start is under way or waits for room; they are the first to go when another version
needs theirs. A standby's environment is that of its making, secrets read from files included: it is
replaced when it is `max_age_s` old. What died, or lost its image's files or its shim, is never
started. None outlives its worker: the next one clears what it finds and makes its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from agent.aio.tasks import spawn, stop
from agent.containerd.lazy import is_lost
from agent.core import standby
from agent.core.eviction import Idle
from agent.core.instance import BEFORE_READY, State
from agent.core.standby import EACH_BYTES, RETRY_S, Demand
from agent.errors import AgentError, Overloaded
from agent.linux.meminfo import available_share
from agent.model.failure import Failure

if TYPE_CHECKING:
    from agent.contracts.base import Contract
    from agent.core.pool import Pool
    from agent.instances.eviction import Retire
    from agent.instances.fleet import Fleet
    from agent.instances.instance import Instance
    from agent.model.records import FunctionVersion
    from agent.telemetry.logs import FunctionLog

log = logging.getLogger(__name__)

PRESSED = 0.05  # of the host's memory left: standbys go


class Standbys:
    """The standbys of one version, and the one that is being made."""

    def __init__(self, contract: Contract, fleet: Fleet, out: FunctionLog) -> None:
        self._contract = contract
        self._fleet = fleet
        self._share = fleet.standby
        self._out = out
        self._waiting: dict[Instance, float] = {}
        """Those that can be started, oldest first, with the time they were made."""
        self._making: asyncio.Task[None] | None = None
        self._ends: set[asyncio.Task[None]] = set()
        self._retry_at = 0.0
        self._busy_until = 0.0
        self._over = False
        self.kept = True
        """Whether this version is LATEST, as with `scaling.min`."""

    def __repr__(self) -> str:
        return f"<Standbys {len(self._waiting)} making={self._making is not None}>"

    def __len__(self) -> int:
        return len(self._waiting)

    # -- up

    def demanded(self, now: float) -> None:
        """Note that a call waits for a start."""
        self._busy_until = now + self._share.settings.busy_s

    def take(self) -> Instance | None:
        """Return the newest one for a start, with all its memory counted; None without any.

        Raises Overloaded when the node has no room for it as an instance that runs.
        """
        for instance in reversed(list(self._waiting)):
            if not _is_sound(instance):
                self._drop(instance)
                continue
            self._fleet.admission.runs(instance)
            del self._waiting[instance]
            return instance
        return None

    def maintain(self, version: FunctionVersion, pool: Pool[Instance, Any], now: float) -> None:
        """Drop what is too old, lost or too many, and begin to make one that lacks."""
        fleet = self._fleet
        if self._over or not fleet.mode.owns_instances:
            return
        demand = Demand(
            asked=version.spec.scaling.standby,
            serving=pool.ready_count + pool.starting,
            most=pool.policy.max,
            busy_until=self._busy_until,
            kept=self.kept and version.state == "Ready" and version.spec.kind != "job",
            auto=self._share.settings.auto,
        )
        count = standby.wanted(demand, now) if fleet.mode.takes_calls and not pool.closed else 0
        if (count or self._waiting) and available_share() < PRESSED:
            count = 0
        oldest = now - self._share.settings.max_age_s
        for instance, made_at in list(self._waiting.items()):
            if len(self._waiting) > count or made_at < oldest or not _is_sound(instance):
                self._drop(instance)
        if len(self._waiting) < count and now >= self._retry_at and self._may_make():
            self._share.made_now = True
            self._making = spawn(
                f"standby of {version.name}", self._make(version, partial(self.maintain, pool=pool))
            )

    def _may_make(self) -> bool:
        fleet = self._fleet
        return not (
            self._share.made_now
            or len(fleet.eviction.queue)
            or fleet.permits.all_taken
            or any(one.state in BEFORE_READY for one in fleet.admission.instances.values())
        )

    async def _make(self, version: FunctionVersion, again: Callable[..., None]) -> None:
        admission = self._fleet.admission
        instance: Instance | None = None
        try:
            instance = admission.new_standby(version, self._contract, self._out, self._share.most)
            permit = self._fleet.permits.of(version.name)
            await instance.prepare(self._contract.environment(instance.id), permit)
        except asyncio.CancelledError:
            if instance is not None:
                admission.ended(instance, None)
            raise
        except Overloaded:
            self._failed(instance)
        except AgentError as error:
            log.warning("no standby of %s: %s", version.name, error)
            self._failed(instance)
        else:
            self._waiting[instance] = self._fleet.now()
            self._watch(instance)
        finally:
            self._share.made_now = False
            self._making = None
        again(version, now=self._fleet.now())

    def _failed(self, instance: Instance | None) -> None:
        self._retry_at = self._fleet.now() + RETRY_S
        if instance is not None:
            self._fleet.admission.ended(instance, None, frees_capacity=False)

    def _watch(self, instance: Instance) -> None:
        assert instance.container is not None
        for over in (instance.container.exit, instance.container.unread):
            over.add_done_callback(lambda _: self._died(instance))

    def _died(self, instance: Instance) -> None:
        if instance in self._waiting:
            log.warning("standby %s has died", instance.id)
            self._retry_at = self._fleet.now() + RETRY_S
            self._drop(instance)

    # -- down

    def idle(self, disk_mb: int) -> list[Idle[Retire]]:
        """Return them as what gives its room to another version first of all."""
        return [
            Idle(partial(self._give_way, one), float("-inf"), EACH_BYTES, disk_mb)
            for one in self._waiting
        ]

    def _give_way(self, instance: Instance) -> str:
        self._drop(instance)
        return f"standby {instance.id}"

    def _drop(self, instance: Instance) -> None:
        if self._waiting.pop(instance, None) is None:
            return
        instance.drain_began()  # at once: whoever looks for room sees that some will come
        end = spawn(f"end standby {instance.id}", self._end(instance))
        self._ends.add(end)
        end.add_done_callback(self._ends.discard)

    async def _end(self, instance: Instance) -> None:
        failure: Failure | None = None
        try:
            await instance.stop(grace_s=0.0)
        finally:
            self._fleet.admission.ended(instance, failure)

    async def leave(self) -> None:
        """Make none any more, and begin to end them all: a worker leaves none behind."""
        self._over = True
        await stop(self._making)
        for instance in list(self._waiting):
            self._drop(instance)

    async def stop(self) -> None:
        """End them all; returns when nothing of them is left."""
        await self.leave()
        if self._ends:
            await asyncio.wait(self._ends)


def _is_sound(instance: Instance) -> bool:
    """Say whether one can still be started: it waits, somebody reads it, its files are there."""
    container = instance.container
    return (
        instance.state is State.STANDBY
        and container is not None
        and not (container.exited or container.has_exited or container.unread.done())
        and not is_lost(container.source)
    )
