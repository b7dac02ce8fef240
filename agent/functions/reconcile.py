"""Start-up and control cycle: what runs is made what is wanted. The plan is `core/reconcile.py`'s.

A new worker loads what is deployed, lists what exists, adopts the instances that serve and removes
what nobody owns; then the same look is repeated on a timer. Every cycle ends in one sentence.
Adoption happens once, before the doors open; the timer only removes and starts.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from dataclasses import dataclass, replace

from agent.containerd.tasks import TaskStatus as Status
from agent.core import reconcile
from agent.core.instance import BEFORE_READY, SERVING, State
from agent.core.reconcile import (
    Adopt,
    DropRecord,
    Effect,
    RecycleMidCall,
    StartMin,
    StopHalfStarted,
    StopOrphan,
    StopUnwanted,
    TaskStatus,
    Wanted,
    World,
)
from agent.errors import AgentError, NotFound
from agent.functions.deploy import Deployer, Runners, Stores
from agent.functions.foreign import ForeignCalls
from agent.functions.registry import Registry
from agent.model.records import CallRecord, InstanceRecord
from agent.sandbox.shims import KIND_LABEL
from agent.store.instances import InstanceFiles

log = logging.getLogger(__name__)

CYCLE_S = 30.0
LOST = "the job was lost when the agent was killed"
STATUS: dict[Status, TaskStatus] = {
    Status.CREATED: "created",
    Status.RUNNING: "running",
    Status.PAUSED: "paused",
    Status.PAUSING: "paused",
    Status.STOPPED: "stopped",
}
BUSY = frozenset(BEFORE_READY | {State.DRAINING, State.STOPPING})


@dataclass(slots=True)
class Found:
    """One look: what is recorded and what exists."""

    world: World
    records: dict[str, InstanceRecord]


class Reconciler:
    """Brings this node to what is deployed, at start and for ever."""

    def __init__(
        self,
        registry: Registry,
        deployer: Deployer,
        runners: Runners,
        stores: Stores,
        files: InstanceFiles,
    ) -> None:
        self._registry = registry
        self._deployer = deployer
        self._fleet = runners.fleet
        self._builder = runners.builder
        self._jobs = runners.jobs
        self._calls: dict[str, CallRecord] = {}
        self._stores = stores
        self._files = files
        self._left: list[Effect] = []
        self.foreign = ForeignCalls(runners.fleet)
        self.sentence = "the node has just started"

    async def load(self) -> None:
        """Put every stored function into the registry."""
        for function in await self._stores.functions.load():
            for version in function.versions:
                try:
                    target = self._deployer.target(version)
                except AgentError as error:
                    log.warning("%s version %d: %s", function.name, version.version, error)
                    continue
                self._deployer.install(target, latest=version.version == function.latest)

    async def adopt(self) -> None:
        """Take over what the worker before left, and remove what cannot be taken over.

        Network and writable layers are open, but give nothing out yet.
        """
        self._calls = {call.instance: call for call in await self._stores.calls.unfinished()}
        found = await self._look()
        effects = reconcile.plan(found.world)
        for effect in effects:
            if isinstance(effect, Adopt):
                await self._adopt(found.records[effect.id], effect.foreign)
        await self._settle_lost_calls()
        if not self.foreign.workers_alive():
            self.foreign.forget_dead()
        self.sentence = reconcile.sentence(effects)
        log.info("start: %s", self.sentence)
        self._left = [effect for effect in effects if not isinstance(effect, Adopt)]

    async def _settle_lost_calls(self) -> None:
        """End the records of jobs whose instance did not outlive the worker."""
        for call in self._calls.values():
            if self._jobs.find(call.id) is None:
                await self._stores.calls.save(
                    replace(call, state="Failed", ended_ns=time.time_ns(), error=LOST)
                )

    async def clear(self) -> None:
        """Do the removals of the plan made by `adopt`; only then are slots given out again.

        First starts are the timer's: it looks at every target that was just installed.
        """
        removals = [effect for effect in self._left if not isinstance(effect, StartMin)]
        await asyncio.gather(*(self._act(effect) for effect in removals))
        self._left = []

    async def run(self) -> None:
        """Follow the worker before until it is gone, then look again every CYCLE_S seconds."""
        await self.foreign.follow()
        while True:
            await asyncio.sleep(CYCLE_S)
            try:
                await self.cycle()
            except AgentError as error:
                self.sentence = f"the control cycle failed: {error}"
                log.warning("%s", self.sentence)

    async def cycle(self) -> None:
        """Look once and do what follows."""
        effects = reconcile.plan((await self._look()).world)
        wanted = [effect for effect in effects if not isinstance(effect, Adopt)]
        await asyncio.gather(*(self._act(effect) for effect in wanted))
        await self._builder.tidy(self._fleet.instances)
        self.sentence = reconcile.sentence(wanted)
        if wanted:
            log.info("cycle: %s", self.sentence)

    async def _look(self) -> Found:
        door = self._stores.containerd
        listed, damaged = self._files.load()
        for file in damaged:
            log.warning("%s", file)
        containers = await door.containers.list([f'labels."{KIND_LABEL}"==instance'])
        statuses = {task.id: STATUS.get(task.status, "none") for task in await door.tasks.list()}
        instances = self._fleet.instances.values()
        rows = {record.row: record.id for record in listed}
        counts = self.foreign.counts()
        foreign = {rows[row]: count for row, count in counts.items() if row in rows}
        world = World(
            wanted={
                t.version.key: _wanted(
                    t.pool.policy.min, t.version.spec.concurrency, t.version.spec.kind
                )
                for t in self._registry.targets()
            },
            records=listed,
            tasks={c.id: statuses.get(c.id, "none") for c in containers},
            foreign=foreign,
            foreign_alive=self.foreign.workers_alive(),
            held={i.id: i.version.key for i in instances if i.state in SERVING},
            busy=frozenset(i.id for i in instances if i.state in BUSY),
            starting=Counter(i.version.key for i in instances if i.state in BEFORE_READY),
        )
        return Found(world, {record.id: record for record in listed})

    async def _adopt(self, record: InstanceRecord, foreign: int) -> None:
        target = self._registry.find(record.function, str(record.version))
        instance = self._fleet.make(record.id, target.version, target.contract, target.log)
        try:
            container = await self._builder.adopt(record, instance.sink, target.version.spec.egress)
        except AgentError as error:
            log.warning("%s cannot be adopted: %s", record.id, error)
            await self._builder.remove_foreign(record.id)
            self._files.remove(record.id)
            return
        instance.adopted(container, record)
        self._fleet.adopt(instance)
        call = self._calls.get(record.id)
        if target.version.spec.kind == "job" and call is not None:
            self._jobs.adopt(target, instance, call)
            return
        self.foreign.add(target, target.adopt(instance, foreign), foreign)

    async def _act(self, effect: Effect) -> None:
        match effect:
            case StopOrphan(id) | DropRecord(id) | RecycleMidCall(id) | StopHalfStarted(id):
                await self._remove(id)
            case StopUnwanted(id):
                await self._remove(id)
            case StartMin(function, version, _):
                try:
                    target = self._registry.find(function, str(version))
                except NotFound:
                    return
                target.scale(self._fleet.now())
            case Adopt():
                pass

    async def _remove(self, id: str) -> None:
        if id in self._fleet.instances:
            return
        try:
            await self._builder.remove_foreign(id)
        except AgentError as error:
            log.warning("%s: not removed: %s", id, error)
            return
        self._files.remove(id)


def _wanted(least: int, concurrency: int, kind: str) -> Wanted:
    return Wanted(min=least, concurrency=concurrency, kind=kind)
