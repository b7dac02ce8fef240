"""Other workers that live beside this one: the calls they finish, the instances they start or end.

A worker that has handed over goes on with what it holds, for as long as that takes, while others
come after it. Their calls take places on our instances until their lanes of the ledger say that
they ended. What they start, end or keep is theirs: it is counted here, its slots are set aside, and
it is adopted as soon as its record says that it serves. When one of them dies, an instance of
concurrency 1 that was in its call is recycled, because nobody knows what it is doing; above 1 the
places are given back. What it left half done is the next control cycle's to clear.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.aio.tasks import finish
from agent.core.instance import BEFORE_READY, State
from agent.errors import AgentError
from agent.instances.fleet import Fleet

if TYPE_CHECKING:
    from agent.calls.target import FunctionTarget
    from agent.core.pool import Member
    from agent.instances.instance import Instance
    from agent.model.records import InstanceRecord
    from agent.store.ledger import Ledger

log = logging.getLogger(__name__)

LOOK_S = 0.02
ADOPT_S = 10.0  # an adoption asks containerd once
REST_S = 0.5  # between two looks while no other worker is known

Adopted = Callable[["InstanceRecord", "Theirs"], Coroutine[Any, Any, bool]]
Gone = Callable[[str], Coroutine[Any, Any, None]]
Records = Callable[[Iterable[str]], "dict[str, InstanceRecord]"]


@dataclass(slots=True)
class TakenPlaces:
    """Places on one of our instances that other workers' calls take, by generation."""

    target: FunctionTarget
    member: Member[Instance]
    by: Counter[int]


@dataclass(slots=True)
class Theirs:
    """An instance that another worker starts, ends or keeps.

    `instance` stands for it in our counts, `member` in its version's pool while it is starting;
    both are None for a version that is not deployed here any more.
    """

    owner: int
    target: FunctionTarget | None = None
    instance: Instance | None = None
    member: Member[Instance] | None = None


class OtherWorkers:
    """What other workers hold of this node."""

    def __init__(self, fleet: Fleet, ledger: Ledger, adopt: Adopted, gone: Gone) -> None:
        self._fleet = fleet
        self._ledger = ledger
        self._adopt = adopt
        self._gone = gone
        self._taken: dict[int, TakenPlaces] = {}
        self._theirs: dict[str, Theirs] = {}

    def __repr__(self) -> str:
        return f"<OtherWorkers calls on {len(self._taken)}, instances {sorted(self._theirs)}>"

    # -- what a look at the node finds

    def living(self) -> frozenset[int]:
        """Return the generations of the other workers that run."""
        return frozenset(one.generation for one in self._ledger.others() if one.alive)

    def calls(self, *, alive: bool) -> Counter[int]:
        """Return the calls of living, or of dead, workers by row of the ledger."""
        found: Counter[int] = Counter()
        for worker in self._ledger.others():
            if worker.alive is alive:
                found += self._ledger.calls(worker.generation)
        return found

    def taken_on(self, row: int) -> Counter[int]:
        """Return the calls in flight on a row by generation of the worker that makes them."""
        found = {w.generation: self._ledger.calls(w.generation)[row] for w in self._ledger.others()}
        return +Counter(found)

    # -- what is known from then on

    def take(self, target: FunctionTarget, member: Member[Instance], by: Counter[int]) -> None:
        """Remember whose calls take places on an adopted instance."""
        if by:
            self._taken[member.instance.row] = TakenPlaces(target, member, by)

    def leave(self, record: InstanceRecord, target: FunctionTarget | None) -> None:
        """Count an instance that its owner starts, ends or keeps."""
        theirs = self._theirs[record.id] = Theirs(record.owner, target)
        if target is None:
            return
        instance = self._fleet.admission.make(
            record.id, target.version, target.contract, target.log
        )
        instance.expected(record)
        self._fleet.admission.adopt(instance)
        theirs.instance = instance
        if instance.state in BEFORE_READY and target.version.spec.kind != "job":
            theirs.member = target.scaling.expect(instance)

    @property
    def instances(self) -> frozenset[str]:
        """The ids of what is left to its owners."""
        return frozenset(self._theirs)

    async def follow(self, records: Records) -> None:
        """Look again and again, for ever: places come back, instances arrive or are gone."""
        while True:
            await asyncio.sleep(LOOK_S if self._taken or self._theirs else REST_S)
            try:
                self._look_at_calls()
                if self._theirs:
                    await self._look_at_instances(records(self._theirs))
                self.forget_dead()
            except Exception:  # the next look is another try
                log.exception("following other workers")

    # -- calls

    def _look_at_calls(self) -> None:
        living = {one.generation: one.alive for one in self._ledger.others()}
        left = {generation: self._ledger.calls(generation) for generation in living}
        for row, places in list(self._taken.items()):
            for generation, count in list(places.by.items()):
                now = min(left[generation][row], count) if generation in left else 0
                if now < count:
                    places.by[generation] = now
                    places.target.give_back(places.member, count - now)
                if now and not living[generation]:
                    self._died_in_call(places, now)
                    places.by[generation] = 0
            places.by = +places.by
            if not places.by:
                del self._taken[row]

    def _died_in_call(self, places: TakenPlaces, count: int) -> None:
        if places.target.version.spec.concurrency == 1:
            log.warning("%s was in a call of a worker that died", places.member.instance.id)
            places.target.scaling.retire(places.member, grace_s=0.0)
        places.target.give_back(places.member, count)

    def forget_dead(self) -> None:
        """Free the ledger lanes of workers that have ended, unless their calls still count."""
        counted = {generation for places in self._taken.values() for generation in places.by}
        # What one has just made ready may be in a call of its own when it is found here.
        counted |= {theirs.owner for theirs in self._theirs.values()}
        for worker in self._ledger.others():
            if worker.generation not in counted and not worker.alive:
                self._ledger.forget(worker.generation)

    # -- instances

    async def _look_at_instances(self, records: dict[str, InstanceRecord]) -> None:
        living = self.living()
        for id, theirs in list(self._theirs.items()):
            record = records.get(id)
            if record is None:
                await self._let_go(id, theirs)
            elif record.state == State.READY.value and not (record.kept and record.owner in living):
                await self._take_over(record, theirs)
            elif theirs.owner not in living:
                # What it left is nobody's: the control cycle judges it by its record.
                del self._theirs[id]
                self._uncount(theirs)

    async def _take_over(self, record: InstanceRecord, theirs: Theirs) -> None:
        """Adopt what serves now, to the end: cut short, its container would be nobody's."""
        del self._theirs[record.id]
        adopted: bool | None = False
        try:
            adopting = self._adopt(record, theirs)
            adopted = await finish(f"adopt {record.id}", adopting, within_s=ADOPT_S)
        except AgentError as error:  # the control cycle judges it by its record
            log.warning("%s is not taken over yet: %s", record.id, error)
        if not adopted:
            self._uncount(theirs)

    async def _let_go(self, id: str, theirs: Theirs) -> None:
        """Its owner has ended it: its slots are free again."""
        del self._theirs[id]
        await self._gone(id)
        self._uncount(theirs)

    def _uncount(self, theirs: Theirs) -> None:
        if theirs.instance is not None:
            self._fleet.admission.ended(theirs.instance, None)
        if theirs.member is not None and theirs.target is not None:
            theirs.target.scaling.failed_to_arrive(theirs.member)
