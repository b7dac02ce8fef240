"""Making room: idle instances of other versions end for a start that finds none.

Which is `agent/core/eviction.py`'s decision; each is retired by the scaling of its own version.
Nobody ends in vain, and nobody while enough are on their way out already.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TypeVar

from agent.core.eviction import Idle, Need, choose_victims
from agent.core.mode import NodeMode
from agent.errors import Overloaded
from agent.instances.admission import LEAVING, Admission
from agent.instances.capacity_queue import CapacityQueue, CapacityWait
from agent.model.records import FunctionVersion

log = logging.getLogger(__name__)

PAUSE_S = 0.05  # after a look that found nobody idle

Retire = Callable[[], str]
"""Ends one idle instance, whose id it returns."""
IdleOnes = Callable[[float], Iterable[Idle[Retire]]]

T = TypeVar("T")


class Eviction:
    """Who gives way on this node. `idle` returns every idle instance beyond its version's `min`."""

    def __init__(
        self,
        admission: Admission,
        queue: CapacityQueue,
        mode: NodeMode,
        now: Callable[[], float],
        idle: IdleOnes,
    ) -> None:
        self.queue = queue
        self._admission = admission
        self._mode = mode
        self._now = now
        self._idle = idle
        self._nobody_until = 0.0

    def evict_for(self, version: FunctionVersion, error: Overloaded) -> None:
        """Let idle instances of other versions give way to one that is wanted.

        `error` is what its start found. Nobody does while as many as stand in the queue are on
        their way out already, without calls that could hold them up.
        """
        going = sum(
            instance.state in LEAVING and not instance.calls.inflight
            for instance in self._admission.instances.values()
        )
        now = self._now()
        enough = going >= max(1, len(self.queue))
        if not self._mode.owns_instances or enough or now < self._nobody_until:
            return
        need = Need(error.reason, self._admission.short_bytes(version), version.spec.disk_mb)
        idle = list(self._idle(now))
        if not idle:
            self._nobody_until = now + PAUSE_S
        for retire in choose_victims(need, idle):
            log.info("%s gives way to %s", retire(), version.name)

    def wait_for_capacity(self, version: FunctionVersion, error: Overloaded) -> CapacityWait | None:
        """Return a wait for what a start lacked, or None when no instance is about to end.

        Have it leave the queue when the wait is given up.
        """
        if error.reason == "draining":
            return None
        wait = CapacityWait()
        self.queue.join(wait)
        self.evict_for(version, error)
        if self._admission.leaving():
            return wait
        self.queue.leave(wait)
        return None
