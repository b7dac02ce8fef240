"""Fake rooms below the sandbox that count what is given out, and fail where a test says.

Every awaited call into a room passes a named failpoint; `Points` can let it raise, or cancel the
task under test there. Shims, teardown and builder above them are the real ones.
"""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from agent.cgroups.tree import CgroupTree
from agent.config import NodeConfig, PathsSettings, RuntimeSettings
from agent.containerd.client import NAMESPACE
from agent.containerd.containers import ContainerRecord, RuntimeOptions
from agent.containerd.tasks import Task, TaskExit, TaskStatus
from agent.core.oci import ShownCgroups
from agent.errors import Bug, FailedPrecondition, NotFound, RuntimeUnavailable
from agent.model.records import FunctionVersion, ImageFacts
from agent.model.spec_parse import parse_spec
from agent.network.network import Network, NetworkSlot
from agent.sandbox.backends import Backends
from agent.sandbox.builder import Builder
from agent.sandbox.order import Laps, Order
from agent.sandbox.prepared_images import PreparedImage, PreparedImages
from agent.sandbox.shims import Shims
from agent.storage.layer import WritableLayer
from agent.storage.rootfs import RootFilesystems
from agent.storage.slots import WritableLayers

ID = "f-00000001"


class Points:
    """Failpoints by name: each call passes one, and what was passed is remembered."""

    def __init__(self):
        self.passed = []
        self.fail = {}
        self.cancel = set()
        self.hang = {}
        self.victim: asyncio.Task[Any] | None = None
        self._reached = defaultdict(asyncio.Event)

    async def reached(self, name):
        """Wait until a failpoint has been passed."""
        async with asyncio.timeout(5):
            await self._reached[name].wait()

    def forget(self):
        """Begin anew: nothing has been passed."""
        self.passed.clear()
        self._reached.clear()

    async def at(self, name):
        self.passed.append(name)
        self._reached[name].set()
        if name in self.cancel:
            self.cancel.discard(name)
            assert self.victim is not None
            self.victim.cancel()
            await asyncio.sleep(0)
        gate = self.hang.get(name)
        if gate is not None:
            await gate.wait()
        if name in self.fail:
            raise self.fail.pop(name)


class FakeNetwork:
    def __init__(self, points, run):
        self.points = points
        self.resolv_conf = run / "resolv.conf"
        self.leased = set()
        self._next = 0

    def _slot(self, number):
        slot = NetworkSlot(number, f"172.30.0.{number}", "/proc/self/ns/net", -1, "all")
        self.leased.add(slot)
        return slot

    async def lease(self, egress):
        await self.points.at("network.lease")
        self._next += 1
        return self._slot(self._next)

    async def adopt(self, number, pid, egress):
        await self.points.at("network.adopt")
        return self._slot(number)

    async def release(self, slot):
        if slot not in self.leased:
            raise Bug("released twice")
        self.leased.discard(slot)
        await self.points.at("network.release")


class FakeLayers:
    def __init__(self, points):
        self.points = points
        self.leased = set()

    def _layer(self, id):
        layer = WritableLayer(id, Path("/upper"), Path("/work"), "slot512", len(self.leased))
        self.leased.add(layer)
        return layer

    async def lease(self, id, disk_mb):
        await self.points.at("layers.lease")
        return self._layer(id)

    def adopt(self, id, kind, number):
        self.points.passed.append("layers.adopt")
        if "layers.adopt" in self.points.fail:
            raise self.points.fail.pop("layers.adopt")
        return self._layer(id)

    async def release(self, layer):
        if layer not in self.leased:
            raise Bug("released twice")
        self.leased.discard(layer)
        await self.points.at("layers.release")


class FakeRootfs:
    def __init__(self, points, run):
        self.points = points
        self.mounted = set()
        self.root = run / "rootfs"
        (self.root / "bin").mkdir(parents=True)
        (self.root / "bin" / "app").touch(mode=0o755)

    def path(self, id):
        return self.root

    async def prepare(self, id, layers, layer, furnish=None):
        await self.points.at("rootfs.prepare")
        self.mounted.add(id)
        return self.root

    async def teardown(self, id):
        await self.points.at("rootfs.teardown")
        self.mounted.discard(id)


class FakeCgroup:
    def __init__(self, tree, id):
        self.tree = tree
        self.id = id
        self.oom = 0

    def peak_bytes(self):
        return 7 << 20

    def oom_kills(self):
        return self.oom

    def cpu_ns(self):
        return 5_000_000

    def kill(self):
        self.tree.killed.append(self.id)
        return 0

    def close(self):
        pass


class FakeCgroups:
    """`stuck` groups cannot be removed: something in them cannot be ended."""

    shown = ShownCgroups(())

    def __init__(self):
        self.groups = set()
        self.stuck = set()
        self.killed = []

    def path(self, id):
        return f"/kindling/test/{id}"

    def instance(self, id):
        return FakeCgroup(self, id)

    def instances(self):
        return set(self.groups)

    def remove(self, id):
        if id in self.stuck:
            return False
        self.groups.discard(id)
        return True


class FakeContainers:
    def __init__(self, points):
        self.points = points
        self.records = {}

    async def create(self, record, options, *, deadline=None):
        await self.points.at("containers.create")
        self.records[record.id] = record

    async def get(self, id, *, deadline=None):
        await self.points.at("containers.get")
        if id not in self.records:
            raise NotFound(id)
        return self.records[id]

    async def list(self, filters=(), *, deadline=None):
        wanted = [f.partition("==")[2] for f in filters]
        return [
            r for r in self.records.values() if not wanted or r.labels["kindling.kind"] in wanted
        ]

    async def delete(self, id, *, deadline=None):
        await self.points.at("containers.delete")
        if self.records.pop(id, None) is None:
            raise NotFound(id)


class FakeTasks:
    """Tasks whose process is `pid`; with 0 this very process, which outlives every test."""

    def __init__(self, points, cgroups):
        self.points = points
        self.cgroups = cgroups
        self.pid = 0
        self.status = {}
        self.exit_code = 0
        self.signals = []

    async def create(self, id, output=None, *, rootfs=(), deadline=None):
        await self.points.at("tasks.create")
        self.status[id] = TaskStatus.CREATED
        self.cgroups.groups.add(id)
        return self.pid or os.getpid()

    async def start(self, id, *, deadline=None):
        await self.points.at("tasks.start")
        self.status[id] = TaskStatus.RUNNING
        return self.pid or os.getpid()

    async def kill(self, id, signal, *, everyone=False, deadline=None):
        await self.points.at("tasks.kill")
        self.signals.append((id, signal))
        if signal == 9 and id in self.status:
            self.status[id] = TaskStatus.STOPPED
            if self.pid:
                with suppress(ProcessLookupError):
                    os.kill(self.pid, 9)
        return id in self.status

    async def wait(self, id, *, deadline):
        await self.points.at("tasks.wait")
        if id not in self.status:
            raise NotFound(id)
        return TaskExit(self.exit_code, 0)

    async def delete(self, id, *, deadline=None):
        await self.points.at("tasks.delete")
        if id not in self.status:
            raise NotFound(id)
        if self.status[id] is TaskStatus.RUNNING:
            raise FailedPrecondition(f"{id} runs")
        del self.status[id]
        self.cgroups.groups.discard(id)
        return TaskExit(self.exit_code, 0)

    async def list(self, *, deadline=None):
        return [Task(id, os.getpid(), status) for id, status in self.status.items()]


class FakeSandboxes:
    def __init__(self, points):
        self.points = points
        self.ids = set()

    async def create(self, id, options, labels, *, deadline=None):
        await self.points.at("sandboxes.create")
        self.ids.add(id)

    async def delete(self, id, *, deadline=None):
        self.ids.discard(id)
        return True

    async def list(self, *, deadline=None):
        return {id: {} for id in self.ids}


class FakeImages:
    def __init__(self, points, layer):
        self.points = points
        self.layer = layer
        layer.mkdir()

    async def prepare(self, facts, *, deadline):
        await self.points.at("images.prepare")
        return PreparedImage(facts, (self.layer,)), False

    def is_current(self, image):
        return True

    async def reachable(self, image):
        pass

    async def look(self, image, work, *, deadline):
        return await asyncio.to_thread(work)


class House:
    """A builder over fake rooms."""

    def __init__(self, run, *, shims=2, fifo=True):
        self.points = points = Points()
        options = RuntimeOptions(binary="/usr/bin/true", root=run / "runtime")
        self.run = run
        self.state = run / "runtime" / NAMESPACE
        self.network = FakeNetwork(points, run)
        self.layers = FakeLayers(points)
        self.rootfs = FakeRootfs(points, run)
        self.cgroups = FakeCgroups()
        self.containers = FakeContainers(points)
        self.tasks = FakeTasks(points, self.cgroups)
        self.sandboxes = FakeSandboxes(points)
        containerd: Any = SimpleNamespace(
            containers=self.containers, tasks=self.tasks, sandboxes=self.sandboxes
        )
        cgroups = cast(CgroupTree, self.cgroups)
        self.shims = Shims(
            containerd, options, cgroups, count=shims, run=run, init=Path("/bin/true")
        )
        self.forgotten: list[str] = []
        self.rooms = Backends(
            containerd,
            cast(Network, self.network),
            cast(WritableLayers, self.layers),
            cast(RootFilesystems, self.rootfs),
            cgroups,
            cast(PreparedImages, FakeImages(points, run / "layer")),
            self.shims,
            self.forgotten.append,
        )
        config = NodeConfig(paths=PathsSettings(run=run), runtime=RuntimeSettings(fifo=fifo))
        self.builder = Builder(config, self.rooms, options)
        self.lines = []
        self.leased = []

    def order(self, id=ID, **fields):
        return Order(id, version(**fields), {}, self.lines.append, self.leased.append, Laps())

    def held(self):
        """Everything that is given out now; anchors are nobody's."""
        anchors = set(self.shims._anchors)
        found = {
            "network": self.network.leased,
            "layers": self.layers.leased,
            "rootfs": self.rootfs.mounted,
            "records": self.containers.records.keys() - anchors,
            "tasks": self.tasks.status.keys() - anchors,
            "cgroups": self.cgroups.groups - anchors,
            "shims": {id for a in self.shims._anchors.values() for id in a.containers | a.creating},
            "fifos": set(map(str, (self.run / "fifo").glob("*"))),
        }
        return {what: sorted(map(str, things)) for what, things in found.items() if things}


def version(**fields):
    number, created_ns = fields.pop("version", 1), fields.pop("created_ns", 1)
    data = {"name": "f", "image": "x:1", "contract": "fc", "kind": "http"}
    image = ImageFacts("x:1", "sha256:1", "sha256:2", 1, entrypoint=("/bin/app",))
    spec = parse_spec({**data, **fields})
    return FunctionVersion(spec.name, number, spec, image, "Ready", created_ns=created_ns)


def unavailable(what):
    return RuntimeUnavailable(f"failpoint {what}")


def record_of(id):
    return ContainerRecord(id=id, spec=b"{}", labels={"kindling.kind": "instance"})


async def built(house, **fields):
    container, _ = await house.builder.build(house.order(**fields))
    await house.builder.start(container)
    return container


def descriptors():
    return len(os.listdir("/proc/self/fd"))
