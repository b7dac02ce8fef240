"""Functions over a fake builder: real fleet, targets, instances, ledger, records and loopback.

Containers are made of futures; whether one's server listens, how its hook answers and how it dies
is the test's choice. Time is the real clock plus what a test skips.
"""

from __future__ import annotations

import asyncio
import socket
import time
from types import SimpleNamespace
from typing import cast

from agent.calls.job import JobRunner
from agent.calls.target import FunctionTarget
from agent.config import LimitsSettings, NodeConfig, PathsSettings, RuntimeSettings, StandbySettings
from agent.contracts.base import Call, NodeFacts
from agent.contracts.bind import bind
from agent.core.mode import NodeMode
from agent.errors import AgentError, FunctionFailed
from agent.instances.admission import Admission, Bounds
from agent.instances.capacity_queue import CapacityQueue
from agent.instances.eviction import Eviction
from agent.instances.fleet import Fleet
from agent.instances.freezing import Freezing
from agent.instances.permits import StartPermits
from agent.instances.ports import InstancePorts
from agent.instances.standby_share import StandbyShare
from agent.instances.timer import Timer
from agent.model.failure import Failure, FailureKind
from agent.model.records import Exit, FunctionVersion, ImageFacts, InstanceRecord
from agent.model.spec_parse import parse_spec
from agent.sandbox.builder import Builder
from agent.sandbox.order import Timings
from agent.store.instances import InstanceFiles
from agent.store.ledger import Ledger
from agent.telemetry.logs import Logs
from tests.component.sandbox_house import Points

MB = 1 << 20
IMAGE = ImageFacts("x:1", "sha256:1", "sha256:2", 1, entrypoint=("/bin/app",))


async def turns(count=20):
    """Let everything that is ready run."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(done, *, within_s=5.0):
    """Let others run until `done()`; for what has no event of its own."""
    async with asyncio.timeout(within_s):
        while not done():  # noqa: ASYNC110 - rooms that tell nobody
            await asyncio.sleep(0.001)


async def at_rest(figure, *, for_s=0.2):
    """Wait until a figure moves no more, and return it: nobody tells that nothing more comes."""
    before = object()
    while before != (now := figure()):
        before = now
        await asyncio.sleep(for_s)
    return now


class FakeCgroup:
    """Its freezer is the house's, as the kernel's outlives a worker."""

    def __init__(self, house, id):
        self.house = house
        self.id = id

    def cpu_ns(self):
        return 3_000_000

    def peak_bytes(self):
        return 5 * MB

    def freeze(self):
        self.house.did.append(("freeze", self.id))
        self.house.cold.add(self.id)
        return True

    def thaw(self):
        self.house.did.append(("thaw", self.id))
        self.house.cold.discard(self.id)
        return True

    def is_told_to_freeze(self):
        return self.id in self.house.cold


class FakeContainer:
    def __init__(self, house, id, number):
        self.house = house
        self.id = id
        self.address = "127.0.0.1"
        self.slot = SimpleNamespace(number=number)
        self.layer = SimpleNamespace(kind="slot512", number=number)
        self.pid = 4711
        self.source = ""
        self.exit = asyncio.get_running_loop().create_future()
        self.unread = asyncio.get_running_loop().create_future()
        self.output = SimpleNamespace(drain=lambda: None)
        self.cgroup = FakeCgroup(house, id)
        self.detached = False
        self.gone = False

    @property
    def exited(self):
        return self.exit.done()

    has_exited = exited

    def leave(self, wanted):
        self.detached = True

    def die(self, code=0, *, signal=None, out_of_memory=False):
        if not self.exit.done():
            self.exit.set_result(Exit(code, signal, out_of_memory, time.time_ns(), 5 * MB))

    async def signal(self, number, *, deadline):
        self.house.did.append((f"signal {number}", self.id))
        await self.house.points.at("signal")
        if self.house.obeys_term:
            self.die(128 + number, signal=number)

    async def kill(self, *, deadline):
        self.house.did.append(("kill", self.id))
        await self.house.points.at("kill")
        self.die(137, signal=9)


class FakeBuilder:
    def __init__(self, house):
        self.house = house
        self.built = []
        self.alive = {}
        self.room = 1000
        self.numbers = 0
        self.fails = []
        self.forgotten = []
        self.foreign = []
        self.reserved = {}
        self.shims = "<shims>"
        self.unfit = None
        """What the image is found to lack when somebody asks."""

    async def check(self, version):
        await self.house.points.at("check")

    async def why_not_executed(self, version, exit_code=None):
        return self.unfit if exit_code in (None, 126, 127) else None

    def forget(self, version):
        self.forgotten.append(version.key)

    async def build(self, order):
        self.built.append(order.id)
        await self.house.points.at("build")
        if self.fails:
            raise self.fails.pop(0)
        if len(self.alive) >= self.room:
            raise self.house.no_slots()
        self.numbers += 1
        container = FakeContainer(self.house, order.id, self.numbers)
        self.alive[order.id] = container
        try:
            order.leased(container)
            await self.house.points.at("create")
        except BaseException:
            await self.destroy(container)
            raise
        self.house.sinks[order.id] = order.sink
        return container, Timings(image_ms=order.laps.ms(), cached=["image"])

    async def start(self, container):
        await self.house.points.at("start")
        self.house.on_start(container)

    async def destroy(self, container):
        if container.gone:
            return
        self.house.did.append(("destroy", container.id))
        await self.house.points.at("destroy")
        self.alive.pop(container.id, None)
        container.gone = True
        self.house.files.remove(container.id)

    def reserve(self, record, egress):
        self.reserved[record.id] = record.layer_slot

    async def unreserve(self, id):
        self.reserved.pop(id, None)

    async def adopt(self, record, sink, egress):
        await self.house.points.at("adopt")
        if self.fails:
            raise self.fails.pop(0)
        self.reserved.pop(record.id, None)
        container = FakeContainer(self.house, record.id, record.network_slot)
        self.alive[record.id] = container
        return container

    async def remove_leftover(self, id):
        self.foreign.append(id)
        await self.house.points.at("remove_leftover")
        self.alive.pop(id, None)
        self.house.files.remove(id)
        self.reserved.pop(id, None)

    async def tidy(self, known):
        await self.house.points.at("tidy")


class FakeConnection:
    def __init__(self, house, sock):
        self.house = house
        self.sock = sock
        self.usable = True

    def close(self):
        self.usable = False
        self.sock.close()

    async def roundtrip(self, head, body, deadline):
        path = head.split(b" ", 2)[1].decode()
        self.house.did.append(("hook", path))
        async with asyncio.timeout_at(deadline):
            await self.house.points.at(f"hook {path}")
        answer = self.house.answers.get(path, 200)
        if isinstance(answer, Exception):
            raise answer
        return answer, [], b""


class Told:
    """The fleet's listener."""

    def __init__(self):
        self.ready = []
        self.ended = []
        self.frozen = []

    def instance_ready(self, instance):
        self.ready.append(instance.id)

    def instance_frozen(self, instance):
        self.frozen.append(instance.id)

    def instance_ended(self, instance, failure):
        self.ended.append((instance.id, failure.kind if failure else None))


class Caller:
    """A waiting call; checks that it is told exactly once."""

    request_id = "r-1"
    waited_s = 0.0

    def __init__(self):
        self.lease = None
        self.failure: Failure | None = None
        self._told = asyncio.get_running_loop().create_future()

    def granted(self, lease):
        self.lease = lease
        self._told.set_result(None)

    def refused(self, failure):
        self.failure = failure
        self._told.set_result(None)

    @property
    def told(self):
        return self._told.done()

    async def answer(self):
        async with asyncio.timeout(5):
            await self._told
        if self.lease is not None:
            return self.lease
        assert self.failure is not None
        return self.failure.kind


def call(id="r-1", **fields):
    return Call(id, "http", b"GET", b"/", [], **fields)


class House:
    """Everything of the functions room over fakes; make it with `async with`."""

    def __init__(self, path, *, memory_mb=4096, instances=64, parallel=8):
        self.points = Points()
        self.path = path
        self.did = []
        self.cold = set()
        """The ids of what stands still."""
        self.sinks = {}
        self.answers = {}
        self.obeys_term = True
        self.on_start = lambda container: None
        self.skipped_s = 0.0
        self.targets = []
        """Those whose idle instances may give way."""
        self.config = NodeConfig(
            paths=PathsSettings(run=path, data=path),
            runtime=RuntimeSettings(max_instances=instances, parallel_starts=parallel),
            limits=LimitsSettings(log_bytes=1 << 16),
        )
        self.mode = NodeMode()
        self.builder = FakeBuilder(self)
        self.ledger = Ledger.open(path / "ledger", 128)
        self.files = InstanceFiles(path / "instances")
        self.left_states: list[str] = []
        self.connections = []
        self.told = Told()
        self.ports = InstancePorts(
            builder=cast(Builder, self.builder),
            connector=SimpleNamespace(adopt=self._adopt),
            open_socket=self._socket,
            save=self.files.save,
            forget=self.files.remove,
            worker=self.ledger.generation,
            mode=self.mode,
            row=lambda row: self.ledger.row(row),
            observe=lambda state, spent_s: self.left_states.append(state.value),
        )
        self.share = StandbyShare(StandbySettings(auto=False))
        self.fleet = self._fleet(instances, memory_mb * MB, parallel)
        self.saved = {}
        self.save_fails = []
        self.jobs = JobRunner(self.fleet, self._save)
        self.logs = Logs(1 << 16, 1 << 20)
        # The kernel accepts for it: to listen is all that a function has to do here.
        self.server = socket.socket()
        self.server.bind(("127.0.0.1", 0))
        self.server.listen(512)
        self.port = self.server.getsockname()[1]

    def _fleet(self, instances, memory_bytes, parallel):
        room = CapacityQueue(self.now)
        bounds = Bounds(instances, memory_bytes)
        admission = Admission(bounds, self.ports, room, (self.told,))
        eviction = Eviction(admission, room, self.mode, self.now, self._idle)
        permits = StartPermits(parallel)
        self.freezing = Freezing(self.now, self.mode, self.told.instance_frozen)
        timer = Timer(self.now)
        parts = (timer, self.freezing, permits, self.share)
        return Fleet(self.now, self.mode, admission, eviction, *parts)

    def now(self):
        return time.monotonic() + self.skipped_s

    def _idle(self, now):
        return [one for target in self.targets for one in target.scaling.idle(now)]

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self.freezing.close()
        for connection in self.connections:
            connection.close()
        self.server.close()
        self.ledger.close()

    async def _adopt(self, sock):
        await self.points.at("adopt connection")
        self.connections.append(FakeConnection(self, sock))
        return self.connections[-1]

    async def _socket(self):
        await self.points.at("socket")
        sock = socket.socket()
        sock.setblocking(False)
        return sock

    async def _save(self, record):
        await self.points.at("save")
        error = self.save_fails.pop(0) if self.save_fails else None
        if error is not None:
            raise error
        self.saved[record.id] = record

    def no_slots(self):
        from agent.errors import Overloaded

        return Overloaded("all slots are taken", reason="slots")

    def skip(self, seconds):
        """Let time pass for the fleet and its pools."""
        self.skipped_s += seconds

    def target(self, name="f", **fields):
        data = {"name": name, "image": "x:1", "contract": "fc", "kind": "http", "memory_mb": 256}
        if fields.get("contract") not in ("scf-job", "scf-web") and fields.get("kind") != "job":
            data["port"] = self.port
        number = fields.pop("version", 1)
        spec = parse_spec({**data, **fields})
        version = FunctionVersion(name, number, spec, IMAGE, "Ready", created_ns=number)
        return self.target_of(version)

    def target_of(self, version):
        return FunctionTarget(
            version, bind(version, NodeFacts()), self.fleet, self.jobs, self.logs.of(version.name)
        )

    def instance(self, target):
        """An instance that belongs to no pool."""
        return self.fleet.admission.new_instance(target.version, target.contract, target.log)

    async def start(self, instance):
        environment = instance.contract.environment(instance.id)
        await instance.start(environment, time.monotonic(), self.fleet.permits.of("f"))

    async def lease(self, target):
        """Acquire as a caller does; the lease, or the kind of failure."""
        caller = Caller()
        try:
            lease = target.acquire(caller)
        except FunctionFailed as error:
            return error.failure.kind
        return lease if lease is not None else await caller.answer()

    def wait(self, target):
        """Acquire and return the caller, which must have been queued."""
        caller = Caller()
        assert target.acquire(caller) is None
        return caller

    def held(self):
        """What is held now, by what holds it."""
        found = {
            "instances": list(self.fleet.admission.instances),
            "containers": list(self.builder.alive),
            "records": [one.id for one in self.files.each() if isinstance(one, InstanceRecord)],
            "memory": self.fleet.admission.use.memory_bytes,
            "cpu": self.fleet.admission.use.cpu_millis,
            "ledger": [row for row in range(self.ledger.rows) if self.ledger.row(row).inflight],
        }
        return {what: things for what, things in found.items() if things}


def failing(kind=FailureKind.FILE_NOT_FOUND):
    return FunctionFailed(Failure(kind, "failpoint"))


async def gone(house, *targets):
    await asyncio.gather(*(target.stop(grace_s=0.0) for target in targets))
    assert house.held() == {}


def container_of(house, lease):
    return house.builder.alive[lease.endpoint.id]


__all__ = [
    "AgentError",
    "Caller",
    "House",
    "call",
    "container_of",
    "failing",
    "gone",
    "turns",
    "until",
]
