"""Which instances there are, and whether one more fits: one sum over the whole node.

The memory of every instance that holds slots must fit into what the node gives to functions, and
their number into `runtime.max_instances`. A standby is one of them, with a megabyte until it runs.
Who gives way when one does not fit is `eviction.py`'s, how many a version wants `scaling.py`'s.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Protocol

from agent.contracts.base import Contract
from agent.core.instance import State
from agent.core.standby import EACH_BYTES
from agent.errors import Overloaded
from agent.instances.capacity_queue import CapacityQueue
from agent.instances.instance import Instance
from agent.instances.ports import InstancePorts
from agent.model.failure import Failure
from agent.model.records import FunctionVersion
from agent.telemetry.logs import FunctionLog

ID_BYTES = 4
MB = 1 << 20
LEAVING = (State.DRAINING, State.STOPPING)


class Observer(Protocol):
    """Whoever is told what happens to instances: events and metrics."""

    def instance_ready(self, instance: Instance) -> None:
        """An instance serves now; its cold start is known."""

    def instance_ended(self, instance: Instance, failure: Failure | None) -> None:
        """An instance is gone; `failure` says why if nobody wanted that."""


@dataclass(frozen=True, slots=True)
class Use:
    """What is taken of the node: instances that hold slots, and their limits' sums.

    The frozen among them take memory and no CPU.
    """

    instances: int
    memory_bytes: int
    cpu_millis: int
    frozen: int = 0


@dataclass(frozen=True, slots=True)
class Bounds:
    """What there is to take: the most instances, and their memory limits' largest sum."""

    instances: int
    memory_bytes: int


class Admission:
    """Every instance of this node, by id."""

    def __init__(
        self,
        bounds: Bounds,
        ports: InstancePorts,
        room: CapacityQueue,
        observers: tuple[Observer, ...],
    ) -> None:
        self.bounds = bounds
        self.instances: dict[str, Instance] = {}
        self._ports = ports
        self._room = room
        self._observers = observers
        self._standbys: set[str] = set()
        self._memory_taken = 0
        self._cpu_taken = 0

    def __repr__(self) -> str:
        return f"<Admission {len(self.instances)} instances {self._memory_taken // MB} MB>"

    @property
    def use(self) -> Use:
        """What is taken now."""
        frozen = [one for one in self.instances.values() if one.frozen]
        cpu_millis = self._cpu_taken - sum(one.version.spec.cpu_millis for one in frozen)
        return Use(len(self.instances), self._memory_taken, cpu_millis, len(frozen))

    def new_instance(
        self, version: FunctionVersion, contract: Contract, out: FunctionLog
    ) -> Instance:
        """Admit one more instance of a version. Raises Overloaded when it does not fit."""
        self._check_number()
        self._check_memory(version, self.short_bytes(version))
        instance = self._new(version, contract, out)
        self.adopt(instance)
        return instance

    def new_standby(
        self, version: FunctionVersion, contract: Contract, out: FunctionLog, most: int
    ) -> Instance:
        """Admit one more standby, of `most` on the node. Raises Overloaded when it does not fit."""
        self._check_number()
        if len(self._standbys) >= most:
            raise Overloaded(f"the node has {most} standbys (standby.memory_mb)", reason="memory")
        self._check_memory(version, self._memory_taken + EACH_BYTES - self.bounds.memory_bytes)
        instance = self._new(version, contract, out)
        self.instances[instance.id] = instance
        self._standbys.add(instance.id)
        self._memory_taken += EACH_BYTES
        return instance

    def runs(self, instance: Instance) -> None:
        """Count a standby as an instance that runs. Raises Overloaded when it does not fit."""
        self._check_memory(instance.version, self.short_bytes(instance.version) - EACH_BYTES)
        self._standbys.discard(instance.id)
        self._memory_taken -= EACH_BYTES
        self.adopt(instance)

    @property
    def standbys(self) -> int:
        """How many standbys there are, those being made included."""
        return len(self._standbys)

    def _check_number(self) -> None:
        most = self.bounds.instances
        if len(self.instances) >= most:
            raise Overloaded(
                f"the node runs {most} instances already (runtime.max_instances)",
                reason="instances",
            )

    def _check_memory(self, version: FunctionVersion, short_bytes: int) -> None:
        if short_bytes > 0:
            wanted = version.spec.memory_bytes
            raise Overloaded(
                f"{version.name} wants {wanted // MB} MB, "
                f"{(wanted - short_bytes) // MB} MB are free on this node",
                reason="memory",
            )

    def _new(self, version: FunctionVersion, contract: Contract, out: FunctionLog) -> Instance:
        id = f"{version.name.replace('_', '-').strip('-')[:40]}-{secrets.token_hex(ID_BYTES)}"
        return Instance(id.lstrip("-"), version, contract, self._ports, out)

    def short_bytes(self, version: FunctionVersion) -> int:
        """Return the memory that is missing for one more instance of a version."""
        return self._memory_taken + version.spec.memory_bytes - self.bounds.memory_bytes

    def adopt(self, instance: Instance) -> None:
        """Count an instance that is there already."""
        self.instances[instance.id] = instance
        self._memory_taken += instance.version.spec.memory_bytes
        self._cpu_taken += instance.version.spec.cpu_millis

    def again(self, instance: Instance, out: FunctionLog) -> Instance:
        """Return a new instance in the place of one that ended without ever having run."""
        fresh = self.make(instance.id, instance.version, instance.contract, out)
        self.instances[instance.id] = fresh
        return fresh

    def make(
        self, id: str, version: FunctionVersion, contract: Contract, out: FunctionLog
    ) -> Instance:
        """Return an instance with a known id, not counted yet; for adoption only."""
        return Instance(id, version, contract, self._ports, out)

    def started(self, instance: Instance) -> None:
        """Tell everybody that an instance serves."""
        for observer in self._observers:
            observer.instance_ready(instance)

    def ended(
        self, instance: Instance, failure: Failure | None, *, frees_capacity: bool = True
    ) -> None:
        """Uncount an instance that has given everything back; safe to call twice.

        Without `frees_capacity` it never held what others wait for: they need not look again.
        """
        if self.instances.pop(instance.id, None) is None:
            return
        if instance.id in self._standbys:
            self._standbys.discard(instance.id)
            self._memory_taken -= EACH_BYTES
        else:
            self._memory_taken -= instance.version.spec.memory_bytes
            self._cpu_taken -= instance.version.spec.cpu_millis
        if frees_capacity:
            self._room.freed()
        for observer in self._observers:
            observer.instance_ended(instance, failure)

    def leaving(self) -> bool:
        """Say whether some instance is about to give its place back."""
        return any(instance.state in LEAVING for instance in self.instances.values())
