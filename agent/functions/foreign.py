"""Calls of the worker before this one, which still finishes them while it makes room.

Their places count as taken here until the other worker's lane of the ledger says that they ended.
If that worker dies meanwhile, an instance of concurrency 1 that was in a call is recycled, because
nobody knows what it is doing; above 1 the places are given back. Polls only while such calls exist.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.functions.fleet import Fleet

if TYPE_CHECKING:
    from agent.core.pool import Member
    from agent.functions.instance import Instance
    from agent.functions.target import FunctionTarget

log = logging.getLogger(__name__)

LOOK_S = 0.05


@dataclass(slots=True)
class Held:
    """Places on one instance taken by another worker's calls."""

    target: FunctionTarget
    member: Member[Instance]
    count: int


class ForeignCalls:
    """The places that other workers' calls take on our instances, by ledger row."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._held: dict[int, Held] = {}

    def add(self, target: FunctionTarget, member: Member[Instance], count: int) -> None:
        """Remember an adopted instance with `count` places taken."""
        if count:
            self._held[member.instance.row] = Held(target, member, count)

    def workers_alive(self) -> bool:
        """Whether a worker before this one still runs."""
        return any(_alive(pid) for pid in self._fleet.ledger.workers().values())

    def counts(self) -> Counter[int]:
        """Return other workers' calls by row, dead workers' included."""
        found: Counter[int] = Counter()
        for calls in self._fleet.ledger.foreign():
            found[calls.row] += calls.inflight
        return found

    async def follow(self) -> None:
        """Give places back as their calls end; returns when no other worker is left."""
        while self._held and self.workers_alive():
            self._give_back(self.counts())
            await asyncio.sleep(LOOK_S)
        left = self.counts()
        self._give_back(left)
        for row, held in self._held.items():
            if held.target.version.spec.concurrency == 1 and left[row]:
                log.warning("%s was in a call of a worker that died", held.member.instance.id)
                held.target.scaling.retire(held.member, grace_s=0.0)
            else:
                held.target.give_back(held.member, held.count)
        self._held.clear()
        self.forget_dead()

    def _give_back(self, left: Counter[int]) -> None:
        for row, held in list(self._held.items()):
            ended = held.count - left[row]
            if ended > 0:
                held.count -= ended
                held.target.give_back(held.member, ended)
            if not held.count:
                del self._held[row]

    def forget_dead(self) -> None:
        """Free the ledger lanes of workers that have ended, unless `follow` still reads them."""
        if self._held:
            return
        for generation, pid in self._fleet.ledger.workers().items():
            if not _alive(pid):
                self._fleet.ledger.forget(generation)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
