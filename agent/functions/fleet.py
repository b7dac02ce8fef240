"""All instances of the node together: admission, start permits, the timer, who is told.

Admission is one sum: the memory of every instance that holds slots must fit into what the node
gives to functions, and their number into `runtime.max_instances`. For a start that finds no room,
idle instances of other versions give way, as `agent/core/room.py` decides. The timer visits only
targets that have something to do soon; idle ones are looked at once a second.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from agent.config import NodeConfig
from agent.contracts.base import Contract
from agent.core.instance import SERVING, State
from agent.core.mode import NodeMode
from agent.core.room import Need, who_gives_way
from agent.errors import Overloaded
from agent.functions.instance import Doors, Instance
from agent.model.failure import Failure
from agent.model.records import FunctionVersion
from agent.telemetry.logs import FunctionLog

if TYPE_CHECKING:
    from agent.functions.target import FunctionTarget

log = logging.getLogger(__name__)

TICK_S = 0.05  # how late a waiting call may hear that its time is over
IDLE_LOOK_S = 1.0
SLOT_LOOK_S = 0.002
ID_BYTES = 4
MB = 1 << 20
LEAVING = (State.DRAINING, State.STOPPING)


class Listener(Protocol):
    """Whoever is told what happens to instances: events, metrics, the job runner."""

    def instance_ready(self, instance: Instance) -> None:
        """An instance serves now; its cold start is known."""

    def instance_ended(self, instance: Instance, failure: Failure | None) -> None:
        """An instance is gone; `failure` says why if nobody wanted that."""


class InLine(Protocol):
    """Whoever came away without room and tries again when there may be some."""

    def room_again(self, now: float) -> bool:
        """Try now; say whether to be asked once more as long as there is room."""


class Wait:
    """One wait for room: `over` is resolved when there may be some."""

    def __init__(self) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def room_again(self, now: float) -> bool:
        """See `InLine.room_again`."""
        del now
        if not self.over.done():
            self.over.set_result(None)
        return False


@dataclass(frozen=True, slots=True)
class Use:
    """What is taken of the node: instances that hold slots, and their memory limits' sum."""

    instances: int
    memory_bytes: int
    cpu_millis: int


class Fleet:
    """Every instance of this node, by id."""

    def __init__(
        self,
        config: NodeConfig,
        doors: Doors,
        mode: NodeMode,
        listeners: tuple[Listener, ...],
        memory_bytes: int,
    ) -> None:
        self.mode = mode
        self.memory_bytes = memory_bytes
        self.now: Callable[[], float] = time.monotonic  # the loop's own clock ticks in whole ms
        self.instances: dict[str, Instance] = {}
        self._config = config
        self._doors = doors
        self._listeners = listeners
        self._permits = asyncio.Semaphore(config.runtime.parallel_starts)
        self._waiting: dict[FunctionTarget, None] = {}
        self._targets: Callable[[], list[FunctionTarget]] = list
        self._short: dict[InLine, None] = {}
        self._nobody_until = 0.0
        self._memory_taken = 0
        self._cpu_taken = 0

    def __repr__(self) -> str:
        taken = f"{len(self.instances)} instances {self._memory_taken // MB} MB"
        return f"<Fleet {taken} {self.mode.mode.value}>"

    @property
    def use(self) -> Use:
        """What is taken now."""
        return Use(len(self.instances), self._memory_taken, self._cpu_taken)

    def new_instance(
        self, version: FunctionVersion, contract: Contract, out: FunctionLog
    ) -> Instance:
        """Admit one more instance of a version. Raises Overloaded when it does not fit."""
        most = self._config.runtime.max_instances
        if len(self.instances) >= most:
            raise Overloaded(
                f"the node runs {most} instances already (runtime.max_instances)",
                reason="instances",
            )
        wanted = version.spec.memory_bytes
        if self._memory_taken + wanted > self.memory_bytes:
            raise Overloaded(
                f"{version.name} wants {wanted // MB} MB, "
                f"{(self.memory_bytes - self._memory_taken) // MB} MB are free on this node",
                reason="memory",
            )
        id = f"{version.name.replace('_', '-').strip('-')[:40]}-{secrets.token_hex(ID_BYTES)}"
        instance = Instance(id.lstrip("-"), version, contract, self._doors, out)
        self._count(instance)
        return instance

    def adopt(self, instance: Instance) -> None:
        """Count a running instance of the worker before."""
        self._count(instance)

    def again(self, instance: Instance, out: FunctionLog) -> Instance:
        """Return a new instance in the place of one that ended without ever having run."""
        fresh = self.make(instance.id, instance.version, instance.contract, out)
        self.instances[instance.id] = fresh
        return fresh

    def make(
        self, id: str, version: FunctionVersion, contract: Contract, out: FunctionLog
    ) -> Instance:
        """Return an instance with a known id, not counted yet; for adoption only."""
        return Instance(id, version, contract, self._doors, out)

    def _count(self, instance: Instance) -> None:
        self.instances[instance.id] = instance
        self._memory_taken += instance.version.spec.memory_bytes
        self._cpu_taken += instance.version.spec.cpu_millis

    def started(self, instance: Instance) -> None:
        """Tell everybody that an instance serves."""
        for listener in self._listeners:
            listener.instance_ready(instance)

    def ended(
        self, instance: Instance, failure: Failure | None, *, gives_room: bool = True
    ) -> None:
        """Uncount an instance that has given everything back; safe to call twice.

        Without `gives_room` it never held what others wait for: they need not look again.
        """
        if self.instances.pop(instance.id, None) is None:
            return
        self._memory_taken -= instance.version.spec.memory_bytes
        self._cpu_taken -= instance.version.spec.cpu_millis
        if self._short and gives_room:
            asyncio.get_running_loop().call_soon(self._offer_room)
        for listener in self._listeners:
            listener.instance_ended(instance, failure)

    def leaving(self) -> bool:
        """Say whether some instance is about to give its place back."""
        return any(instance.state in LEAVING for instance in self.instances.values())

    def tell_of_room(self, one: InLine) -> None:
        """Have somebody try again, once, as soon as an instance has given its place back."""
        self._short[one] = None

    def make_room(self, version: FunctionVersion, error: Overloaded) -> None:
        """Let idle instances of other versions give way to one that is wanted.

        `error` is what its start found. Nobody does while as many as stand in line are on their
        way out already, without calls that could hold them up.
        """
        going = sum(
            instance.state in LEAVING and not instance.calls.inflight
            for instance in self.instances.values()
        )
        now = self.now()
        if (
            not self.mode.owns_instances
            or going >= max(1, len(self._short))
            or now < self._nobody_until
        ):
            return
        short_bytes = self._memory_taken + version.spec.memory_bytes - self.memory_bytes
        need = Need(error.reason, short_bytes, version.spec.disk_mb)
        idle = [one for target in self._targets() for one in target.scaling.idle(now)]
        if not idle:
            self._nobody_until = now + TICK_S
        for scaling, member in who_gives_way(need, idle):
            log.info("%s gives way to %s", member.instance.id, version.name)
            scaling.retire(member)

    def wait_for_room(self, version: FunctionVersion, error: Overloaded) -> Wait | None:
        """Return a wait for what a start lacked, or None when no instance is about to end."""
        if error.reason == "draining":
            return None
        wait = Wait()
        self.tell_of_room(wait)
        self.make_room(version, error)
        if self.leaving():
            return wait
        self.wait_no_more(wait)
        return None

    def wait_no_more(self, one: InLine) -> None:
        """Take somebody out of the line; safe to repeat."""
        self._short.pop(one, None)

    def _offer_room(self) -> None:
        """Let those who came away empty start one instance each, in turn, until nobody can.

        Who fails stands in line again: the less somebody got, the further in front.
        """
        line, self._short = list(self._short), {}
        now = self.now()
        while line:
            line = [one for one in line if one.room_again(now)]

    @asynccontextmanager
    async def start_permit(self) -> AsyncIterator[None]:
        """Return what a start holds while the runtime works: more would slow each other down."""
        async with self._permits:
            yield

    async def starts_have_slots(self, within_s: float) -> bool:
        """Wait until every start under way holds its slots; say whether that came to pass.

        Then it can go on beside another worker, which leaves alone what a record names.
        """
        deadline = asyncio.get_running_loop().time() + within_s
        while any(one.wants_slots for one in self.instances.values()):
            if asyncio.get_running_loop().time() >= deadline:
                return False
            await asyncio.sleep(SLOT_LOOK_S)
        return True

    def hand_over(self, kept: Collection[str]) -> None:
        """Leave every instance that serves, and its output, to the next worker.

        Calls in flight go on. What starts or ends here goes on to its end here, and so do the
        instances in `kept`: jobs whose callers wait here.
        """
        self.mode.hand_over()
        for instance in self.instances.values():
            if instance.id in kept:
                instance.keep()
            elif instance.state in SERVING and not instance.handed_over:
                instance.hand_over()

    @property
    def unsettled(self) -> int:
        """How many instances start or end here, or are kept, once others have been handed over."""
        return sum(one.is_ours for one in self.instances.values())

    # -- the timer

    def waiting(self, target: FunctionTarget) -> None:
        """Have the timer look at a target on its next tick."""
        self._waiting[target] = None

    async def run_timer(self, targets: Callable[[], list[FunctionTarget]]) -> None:
        """Visit the targets for ever; the one timer of all queues and idle times."""
        self._targets = targets
        look_at_all = self.now()
        while True:
            await asyncio.sleep(TICK_S)
            now = self.now()
            if now >= look_at_all:
                look_at_all = now + IDLE_LOOK_S
                due = targets()
            else:
                due = list(self._waiting)
            self._waiting.clear()
            for target in due:
                try:
                    target.tick(now)
                except Exception:  # one function's trouble must not stop all the others' timers
                    log.exception("timer of %r", target)
                if target.pool.waiting:
                    self._waiting[target] = None
