"""Start-up and control cycle: what runs is made what is wanted. The plan is `core/reconcile.py`'s.

A new worker loads what is deployed, lists what exists, adopts the instances that serve and removes
what nobody owns; then the same look is repeated on a timer. Every cycle ends in one sentence.
What another worker still starts is adopted when it serves (`other_workers.py`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from agent.aio.slices import Slices
from agent.aio.tasks import spawn, stop
from agent.containerd.tasks import TaskStatus as Status
from agent.core import reconcile
from agent.core.instance import BEFORE_READY, State
from agent.core.reconcile import (
    Adopt,
    DropRecord,
    Effect,
    LeaveToOwner,
    RecycleMidCall,
    StartMin,
    StopHalfStarted,
    StopOrphan,
    StopUnwanted,
    TaskStatus,
    WantedVersion,
    World,
)
from agent.deployments.catalog import Catalog
from agent.deployments.deploy import Deployer, Runners, Stores
from agent.deployments.lazy_image import LOCAL_HOST
from agent.errors import AgentError, NotFound
from agent.model.image_ref import parse_image_ref
from agent.model.records import CallRecord, FunctionVersion, InstanceRecord
from agent.network.network import Egress
from agent.recovery.other_workers import OtherWorkers, Theirs
from agent.sandbox.shims import KIND_LABEL
from agent.store.instances import InstanceFiles
from agent.store.ledger import Ledger

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


@dataclass(slots=True)
class Found:
    """One look: what is recorded and what exists."""

    world: World
    records: dict[str, InstanceRecord]


class Reconciler:
    """Brings this node to what is deployed, at start and for ever."""

    def __init__(
        self,
        catalog: Catalog,
        deployer: Deployer,
        runners: Runners,
        stores: Stores,
        files: InstanceFiles,
        ledger: Ledger,
    ) -> None:
        self._catalog = catalog
        self._deployer = deployer
        self._fleet = runners.fleet
        self._builder = runners.builder
        self._jobs = runners.jobs
        self._calls: dict[str, CallRecord] = {}
        self._stores = stores
        self._files = files
        self._left: list[Effect] = []
        self.others = OtherWorkers(runners.fleet, ledger, self._arrived, self._gone)
        self.sentence = "the node has just started"

    async def load(self) -> None:
        """Put every stored function into the catalog.

        A version that cannot run stays what it is, LATEST or not, and tells everybody why.
        """
        stored = await self._stores.functions.load()
        unpacked = {shot.key for shot in await self._stores.containerd.snapshots.list()}
        versions = [version for function in stored for version in function.versions]
        ready = [one for one in versions if one.state == "Ready"]
        mounted = await self._stores.lazy.resume(unpacked, ready)
        for function in stored:
            for found in function.versions:
                version = found
                image = version.image
                coming = version.state == "Preparing"  # its image is fetched again, below
                here = image is None or image.chain_id in unpacked or image.chain_id in mounted
                if not coming and not here:
                    version = replace(version, state="Failed", reason=_vanished(version))
                if version.state == "Failed":
                    log.error("%s", version.reason)
                target = self._deployer.target(version)
                self._deployer.install(target, latest=version.version == function.latest)
                if version.state == "Preparing":
                    self._deployer.prepare(target)

    async def adopt(self) -> None:
        """Take over what the worker before left, and remove what cannot be taken over.

        Network and writable layers are open, but give nothing out yet.
        """
        if not self.others.living():
            self._files.remove_drafts()
        found = await self._look()
        effects = reconcile.plan(found.world)
        for effect in effects:
            if isinstance(effect, LeaveToOwner):
                record = found.records[effect.id]
                self.others.leave(record, self._catalog.target((record.function, record.version)))
        adopted = {effect.id for effect in effects if isinstance(effect, Adopt)}
        # What stays another's, or cannot be cleared, keeps its slots.
        for record in found.records.values():
            if record.id not in adopted:
                self._builder.reserve(record, self._egress_of(record))
        await self._note_calls()
        await asyncio.gather(*(self._adopt(found.records[id]) for id in adopted))
        await self._settle_lost_calls()
        self.sentence = reconcile.sentence(effects)
        log.info("start: %s", self.sentence)
        done = (Adopt, LeaveToOwner)
        self._left = [effect for effect in effects if not isinstance(effect, done)]

    def _egress_of(self, record: InstanceRecord) -> Egress:
        """Return what an instance may reach; nothing, when its version is not deployed any more."""
        target = self._catalog.target((record.function, record.version))
        return target.version.spec.egress if target is not None else "none"

    async def _note_calls(self) -> None:
        unfinished = await self._stores.calls.unfinished()
        self._calls = {call.instance: call for call in unfinished}

    async def _settle_lost_calls(self) -> None:
        """End the records of jobs whose instance did not outlive the worker."""
        theirs = self.others.instances
        for call in self._calls.values():
            if self._jobs.find(call.id) is None and call.instance not in theirs:
                await self._stores.calls.lost(call.id, time.time_ns(), LOST)

    async def clear(self) -> None:
        """Do the removals of the plan made by `adopt`; only then are slots given out again.

        First starts are the timer's: it looks at every target that was just installed.
        """
        removals = [effect for effect in self._left if not isinstance(effect, StartMin)]
        await asyncio.gather(*(self._act(effect) for effect in removals))
        self._left = []
        # Not before: a start that is cut short must find again whose calls were lost on what.
        self.others.forget_dead()

    async def run(self) -> None:
        """Look again every CYCLE_S seconds, and follow other workers as long as there are any."""
        following = spawn("other workers", self.others.follow(self._files.some))
        try:
            while True:
                await asyncio.sleep(CYCLE_S)
                await self._next_cycle()
        finally:
            await stop(following)

    async def _next_cycle(self) -> None:
        try:
            await self.cycle()
        except Exception as error:  # the next cycle looks anew
            self.sentence = f"the control cycle failed: {error}"
            log.warning("%s", self.sentence, exc_info=not isinstance(error, AgentError))

    async def cycle(self) -> None:
        """Look once and do what follows."""
        found = await self._look()
        effects = reconcile.plan(found.world)
        await self._note_calls()
        for effect in effects:
            if isinstance(effect, Adopt):
                await self._adopt(found.records[effect.id])
        await asyncio.gather(*(self._act(effect) for effect in effects))
        await self._settle_lost_calls()
        await self._builder.tidy(self._fleet.admission.instances)
        self.sentence = reconcile.sentence(effects)
        if effects:
            log.info("cycle: %s", self.sentence)

    async def _look(self) -> Found:
        """Look at everything.

        What was ours when the look began is not judged by it, though it may be gone at its end:
        what was read of it in between is neither here nor there.
        """
        door = self._stores.containerd
        ours = frozenset(self._fleet.admission.instances)
        listed: list[InstanceRecord] = []
        slices = Slices()
        for one in self._files.each():
            if isinstance(one, InstanceRecord):
                listed.append(one)
            else:
                log.warning("%s", one)
            await slices.pause()
        containers = await door.containers.list([f'labels."{KIND_LABEL}"==instance'])
        statuses = {task.id: STATUS.get(task.status, "none") for task in await door.tasks.list()}
        instances = self._fleet.admission.instances.values()
        rows = {record.row: record.id for record in listed}
        world = World(
            wanted={
                t.version.key: WantedVersion(
                    t.pool.policy.min if t.version.state == "Ready" else 0,
                    t.version.spec.concurrency,
                    t.version.spec.kind,
                )
                for t in self._catalog.targets()
                if t.version.image is not None  # else it could not be read: what it ran is unknown
            },
            records=listed,
            tasks={c.id: statuses.get(c.id, "none") for c in containers},
            living=self.others.living(),
            taken=_by_instance(rows, self.others.calls(alive=True)),
            lost=_by_instance(rows, self.others.calls(alive=False)),
            held={i.id: i.version.key for i in instances if i.state is State.READY},
            busy=(ours | self._fleet.admission.instances.keys() | self.others.instances)
            - {i.id for i in instances if i.state is State.READY},
            starting=Counter(i.version.key for i in instances if i.state in BEFORE_READY),
        )
        return Found(world, {record.id: record for record in listed})

    async def _adopt(self, record: InstanceRecord, theirs: Theirs | None = None) -> bool:
        """Take one instance over, or remove it; never fails, for the others must be taken too."""
        target = self._catalog.target((record.function, record.version))
        call = self._calls.get(record.id)
        if target is None or (target.version.spec.kind == "job" and call is None):
            log.warning("%s is nobody's any more: ended", record.id)
            await self._remove(record.id)
            return False
        instance = theirs.instance if theirs is not None else None
        if instance is None:
            instance = self._fleet.admission.make(
                record.id, target.version, target.contract, target.log
            )
        try:
            container = await self._builder.adopt(record, instance.sink, target.version.spec.egress)
        except Exception as error:
            trace = not isinstance(error, AgentError)
            log.warning("%s cannot be adopted: %s", record.id, error, exc_info=trace)
            self._builder.reserve(record, target.version.spec.egress)
            await self._remove(record.id)
            return False
        instance.adopted(container, record)
        if theirs is None or theirs.instance is None:
            self._fleet.admission.adopt(instance)
        if target.version.spec.kind == "job" and call is not None:
            self._jobs.adopt(target, instance, call)
            return True
        by = self.others.taken_on(record.row)
        if theirs is not None and theirs.member is not None:
            member = theirs.member
            target.scaling.arrived(member, by.total())
        else:
            member = target.scaling.adopt(instance, by.total())
        self.others.take(target, member, by)
        return True

    async def _arrived(self, record: InstanceRecord, theirs: Theirs) -> bool:
        """Take over what another worker has started, or kept to its end."""
        await self._note_calls()
        return await self._adopt(record, theirs)

    async def _gone(self, id: str) -> None:
        """Give back what was set aside for an instance that its owner has ended."""
        await self._builder.unreserve(id)

    async def _act(self, effect: Effect) -> None:
        match effect:
            case (
                StopOrphan(id)
                | DropRecord(id)
                | RecycleMidCall(id)
                | StopHalfStarted(id)
                | StopUnwanted(id)
            ):
                await self._remove(id)
            case StartMin(function, version, _):
                try:
                    target = self._catalog.find(function, str(version))
                except NotFound:
                    return
                target.scaling.scale(self._fleet.now())
            case Adopt() | LeaveToOwner():
                pass

    async def _remove(self, id: str) -> None:
        """Remove what nobody here owns; what serves under us is its target's to end."""
        if id in self._fleet.admission.instances:
            return
        try:
            await self._builder.remove_leftover(id)
        except AgentError as error:
            log.warning("%s: not removed: %s", id, error)


def _by_instance(rows: Mapping[int, str], counts: Counter[int]) -> dict[str, int]:
    return {rows[row]: count for row, count in counts.items() if row in rows}


def _vanished(version: FunctionVersion) -> str:
    """Say that a version's image is gone from the node, and how to bring it back."""
    ref = version.spec.image
    local = parse_image_ref(ref).host == LOCAL_HOST
    first = "run 'kindling image import FILE' and " if local else ""
    return f"image {ref} is not on this node any more: {first}deploy {version.name} again"
