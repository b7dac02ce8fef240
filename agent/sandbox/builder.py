"""From an order and ready slots to a running container, step by step, and back.

Each step that acquires something pushes its undoing onto one exit stack: a failure or a
cancellation at any point takes back exactly what was done, in reverse, shielded and bounded. A
container that was built is taken apart by `destroy`, which is safe to call more than once and goes
on past single failures, because a slot that is never given back is worse than a message in the log.

No pulling, no readiness, no retries here: see `agent/functions`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent.aio.tasks import finish
from agent.cgroups.tree import CgroupTree
from agent.config import NodeConfig
from agent.containerd.client import Containerd
from agent.containerd.containers import Container as Record
from agent.containerd.containers import RuntimeOptions
from agent.containerd.tasks import Output as TaskOutput
from agent.core.anchor import ANCHOR_PREFIX
from agent.core.oci import InstancePlan, merged_env
from agent.errors import (
    AgentError,
    FailedPrecondition,
    FunctionFailed,
    NotFound,
    RuntimeUnavailable,
)
from agent.model.failure import Failure, FailureKind
from agent.model.records import FunctionVersion, InstanceRecord
from agent.network.room import Egress, Network
from agent.sandbox.blueprint import Blueprint, blueprint_of
from agent.sandbox.container import Container
from agent.sandbox.images import Images, find_executable
from agent.sandbox.output import Output, Sink
from agent.sandbox.shims import KIND_LABEL, Shims
from agent.storage.rootfs import RootFilesystems
from agent.storage.slots import WritableLayers

log = logging.getLogger(__name__)

INSTANCE_KIND = "instance"
FUNCTION_LABEL = "kindling.function"
VERSION_LABEL = "kindling.version"
UNDO_S = 20.0
TASK_GONE_S = 5.0
CREATE_SLACK_S = 2.0
SCRUB_TRIES = 40
SCRUB_PAUSE_S = 0.05


class Laps:
    """A stopwatch whose laps follow each other without a gap, so that they add up to the whole."""

    def __init__(self, began: float | None = None) -> None:
        """Start now, or at an earlier reading of time.monotonic()."""
        self._mark = time.monotonic() if began is None else began

    def ms(self) -> float:
        """End a lap and return its milliseconds."""
        before, self._mark = self._mark, time.monotonic()
        return (self._mark - before) * 1000


@dataclass(frozen=True, slots=True)
class Order:
    """One instance to build.

    `environment` is the contract's, `sink` gets the lines of output, `leased` is told once the
    slots are held and before the container exists.
    """

    id: str
    version: FunctionVersion
    environment: Mapping[str, str]
    sink: Sink
    leased: Callable[[Container], None]
    laps: Laps


@dataclass(slots=True)
class Timings:
    """Milliseconds of the builder's phases, and what was found ready."""

    image_ms: float = 0.0
    slots_ms: float = 0.0
    create_ms: float = 0.0
    start_ms: float = 0.0
    cached: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Rooms:
    """The doors the builder works through."""

    containerd: Containerd
    network: Network
    layers: WritableLayers
    rootfs: RootFilesystems
    cgroups: CgroupTree
    images: Images
    shims: Shims


class Builder:
    """Builds, adopts and destroys the containers of instances."""

    def __init__(self, config: NodeConfig, rooms: Rooms, options: RuntimeOptions) -> None:
        self._config = config
        self._rooms = rooms
        self._options = options
        self._fifos = config.paths.run / "fifo"
        self._blueprints: dict[tuple[str, int], Blueprint] = {}

    @property
    def shims(self) -> Shims:
        """The anchored shims containers are made through."""
        return self._rooms.shims

    # -- up

    async def check(self, version: FunctionVersion) -> None:
        """Work out a version's blueprint at deploy, so that its mistakes show then.

        Raises InvalidSpec for a user, volume or command that does not exist.
        """
        deadline = asyncio.get_running_loop().time() + self._config.runtime.create_timeout_s
        await self._blueprint(version, Timings(), deadline)

    async def build(self, order: Order) -> tuple[Container, Timings]:
        """Create the container of an order, not started yet.

        Returns the container and what each phase took, counted on `order.laps`. Raises Overloaded
        without a free slot, FunctionFailed when the image has no such executable,
        RuntimeUnavailable when the runtime fails; nothing is left behind then.
        """
        deadline = asyncio.get_running_loop().time() + self._config.runtime.create_timeout_s
        timings = Timings()
        async with contextlib.AsyncExitStack() as undo:
            lap = order.laps
            blueprint = await self._blueprint(order.version, timings, deadline)
            timings.image_ms = lap.ms()
            container, rootfs = await self._slots(order, blueprint, undo)
            order.leased(container)
            timings.slots_ms = lap.ms()
            spec = blueprint.template.encode(
                InstancePlan(
                    hostname=order.id,
                    rootfs=str(rootfs),
                    netns=container.slot.netns_path,
                    cgroups_path=self._rooms.cgroups.path(order.id),
                    env=merged_env(
                        blueprint.image.facts.env,
                        order.environment,
                        await own_environment(order.version),
                    ),
                    etc_dir=str(self._etc(container)),
                )
            )
            await self._create(container, order.version, spec, undo, deadline)
            timings.create_ms = lap.ms()
            undo.pop_all()
        return container, timings

    async def _blueprint(
        self, version: FunctionVersion, timings: Timings, deadline: float
    ) -> Blueprint:
        found = self._blueprints.get(version.key)
        if found is not None:
            timings.cached += ["image", "spec"]
            return found
        if version.image is None:
            raise RuntimeUnavailable(f"{version.name} version {version.version} has no image yet")
        image, cached = await self._rooms.images.prepare(version.image, deadline=deadline)
        if cached:
            timings.cached.append("image")
        blueprint = blueprint_of(version, image, self._config)
        self._blueprints[version.key] = blueprint
        return blueprint

    async def _slots(
        self, order: Order, blueprint: Blueprint, undo: contextlib.AsyncExitStack
    ) -> tuple[Container, Path]:
        rooms, id, version = self._rooms, order.id, order.version
        slot = await rooms.network.lease(version.spec.egress)
        _later(undo, f"network slot of {id}", lambda: rooms.network.release(slot))
        layer = await rooms.layers.lease(id, version.spec.disk_mb)
        _later(undo, f"writable layer of {id}", lambda: rooms.layers.release(layer))
        rootfs = await rooms.rootfs.prepare(id, blueprint.image.layers, layer)
        _later(undo, f"rootfs of {id}", lambda: rooms.rootfs.teardown(id))
        why = find_executable(rootfs, blueprint.executable, blueprint.search, blueprint.workdir)
        if why is not None:
            raise FunctionFailed(_no_executable(why, blueprint.executable))
        cgroup = rooms.cgroups.instance(id)
        undo.callback(cgroup.close)
        output = Output(self._fifos / id, order.sink)
        undo.callback(output.close)
        output.open()
        return Container(id, rooms.containerd, cgroup, output, slot, layer), rootfs

    def _etc(self, container: Container) -> Path:
        """Write hosts, hostname and resolv.conf of the instance beside its FIFOs, on tmpfs."""
        id, directory = container.id, container.output.directory
        (directory / "hostname").write_text(f"{id}\n")
        (directory / "hosts").write_text(
            f"127.0.0.1 localhost\n::1 localhost\n{container.address} {id}\n"
        )
        with contextlib.suppress(FileExistsError):
            (directory / "resolv.conf").symlink_to(self._rooms.network.resolv_conf)
        return directory

    async def _create(
        self,
        container: Container,
        version: FunctionVersion,
        spec: bytes,
        undo: contextlib.AsyncExitStack,
        deadline: float,
    ) -> None:
        door, shims = self._rooms.containerd, self._rooms.shims
        id = container.id
        anchor = shims.pick()
        container.anchor = anchor
        labels = {
            KIND_LABEL: INSTANCE_KIND,
            FUNCTION_LABEL: version.name,
            VERSION_LABEL: str(version.version),
        }
        ok = False
        try:
            record = Record(id=id, spec=spec, labels=labels, sandbox=anchor)
            await door.containers.create(record, self._options, deadline=deadline)
            _later(undo, f"container {id}", lambda: self._delete_record(id))
            output = container.output
            _later(undo, f"task of {id}", lambda: self._delete_task(id))
            container.pid = await self._create_task(
                id, TaskOutput(output.path("stdout"), output.path("stderr")), deadline
            )
            ok = True
        finally:
            late = asyncio.get_running_loop().time() >= deadline
            shims.created(anchor, ok=ok, late=late)
        undo.callback(container.unwatch)
        container.watch(container.pid)

    async def _create_task(self, id: str, output: TaskOutput, deadline: float) -> int:
        """Create the task and return its pid, to the end even when the caller is cancelled.

        A create that is given up half-way may still come into being in the shim, where nobody
        would find it.
        """
        create = self._rooms.containerd.tasks.create(id, output, deadline=deadline)
        within_s = self._config.runtime.create_timeout_s + CREATE_SLACK_S
        pid = await finish(f"create {id}", create, within_s=within_s)
        if pid is None:
            raise RuntimeUnavailable(f"create task {id}: no answer within {within_s:g} s")
        return pid

    async def start(self, container: Container) -> None:
        """Let a created container run. Raises RuntimeUnavailable; `destroy` it then."""
        deadline = asyncio.get_running_loop().time() + self._config.runtime.create_timeout_s
        await self._rooms.containerd.tasks.start(container.id, deadline=deadline)

    # -- over

    async def adopt(self, record: InstanceRecord, sink: Sink, egress: Egress) -> Container:
        """Take over a running container of the worker before from its record.

        Raises NotFound when its process is gone; then `remove_foreign` clears what is left.
        """
        rooms = self._rooms
        slot = await rooms.network.adopt(record.network_slot, record.pid, egress)
        layer = rooms.layers.adopt(record.id, record.layer_kind, record.layer_slot)
        output = Output(self._fifos / record.id, sink)
        output.open()
        cgroup = rooms.cgroups.instance(record.id)
        container = Container(record.id, rooms.containerd, cgroup, output, slot, layer)
        container.anchor = (await rooms.containerd.containers.get(record.id)).sandbox
        rooms.shims.adopted(container.anchor)
        container.watch(record.pid)
        return container

    async def remove_foreign(self, id: str) -> None:
        """Remove a container nobody owns: a left-over of a worker that died."""
        with contextlib.suppress(NotFound):
            await self._rooms.containerd.tasks.kill(id, 9, everyone=True)
        await self._delete_task(id)
        await self._delete_record(id)
        await asyncio.to_thread(self._scrub, id)
        await self._rooms.rootfs.teardown(id)
        await asyncio.to_thread(shutil.rmtree, self._fifos / id, ignore_errors=True)

    async def tidy(self, known: Collection[str]) -> None:
        """Mend the shims, and end what runs in cgroups of instances that nobody knows."""
        await self._rooms.shims.mend()
        for id in self._rooms.cgroups.instances() - set(known):
            if not id.startswith(ANCHOR_PREFIX):
                log.warning("%s runs without anybody knowing it: ended", id)
                await asyncio.to_thread(self._scrub, id)

    # -- down

    async def destroy(self, container: Container) -> None:
        """Give back everything a container holds; its process has ended or is killed now."""
        await finish(f"destroy {container.id}", self._destroy(container), within_s=UNDO_S)

    async def _destroy(self, container: Container) -> None:
        rooms, id = self._rooms, container.id
        steps: tuple[tuple[str, Callable[[], Awaitable[object]]], ...] = (
            ("task", lambda: self._delete_task(id)),
            ("record", lambda: self._delete_record(id)),
            ("cgroup", lambda: asyncio.to_thread(self._scrub, id)),
            ("rootfs", lambda: rooms.rootfs.teardown(id)),
            ("writable layer", lambda: rooms.layers.release(container.layer)),
            ("network slot", lambda: rooms.network.release(container.slot)),
        )
        for what, step in steps:
            try:
                await step()
            except AgentError as error:
                log.warning("%s: %s not given back: %s", id, what, error)
        container.unwatch()
        container.output.close()
        container.cgroup.close()
        rooms.shims.removed(container.anchor)

    def _scrub(self, id: str) -> None:
        """Kill and remove what a dead shim or a late create left in the instance's cgroup."""
        group = self._rooms.cgroups.instance(id)
        try:
            if not group.exists():
                return
            for _ in range(SCRUB_TRIES):
                group.kill()
                if self._rooms.cgroups.remove(id):
                    return
                time.sleep(SCRUB_PAUSE_S)
            raise RuntimeUnavailable(f"processes of {id} cannot be ended")
        finally:
            group.close()

    async def _delete_task(self, id: str) -> None:
        """Delete a task whatever its state; killed first if it still runs."""
        tasks = self._rooms.containerd.tasks
        deadline = asyncio.get_running_loop().time() + TASK_GONE_S
        try:
            await tasks.delete(id, deadline=deadline)
        except NotFound:
            return
        except FailedPrecondition:
            await tasks.kill(id, 9, everyone=True, deadline=deadline)
            with contextlib.suppress(NotFound):
                await tasks.wait(id, deadline=deadline)
                await tasks.delete(id, deadline=deadline)

    async def _delete_record(self, id: str) -> None:
        with contextlib.suppress(NotFound):
            await self._rooms.containerd.containers.delete(id)

    def forget(self, version: FunctionVersion) -> None:
        """Drop what was kept for a removed version."""
        self._blueprints.pop(version.key, None)


def _later(
    undo: contextlib.AsyncExitStack, what: str, step: Callable[[], Awaitable[object]]
) -> None:
    """Push one undoing that survives cancellation and only logs its failure."""

    async def run() -> None:
        try:
            await step()
        except AgentError as error:
            log.warning("%s not given back: %s", what, error)

    async def shielded() -> None:
        await finish(what, run(), within_s=UNDO_S)

    undo.push_async_callback(shielded)


async def own_environment(version: FunctionVersion) -> dict[str, str]:
    """Return the function's own variables, secrets included; their files are read at every start.

    Raises FailedPrecondition naming a secret whose file cannot be read.
    """
    own = dict(version.spec.env)
    for secret in version.spec.secrets:
        if secret.value is not None:
            own[secret.name] = secret.value
        elif secret.file is not None:
            try:
                text = await asyncio.to_thread(Path(secret.file).read_text, "utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise FailedPrecondition(
                    f"secret {secret.name}: {secret.file} cannot be read by the agent"
                ) from error
            own[secret.name] = text.rstrip("\n")
    return own


def _no_executable(why: str, executable: str) -> Failure:
    if why == "permission":
        return Failure(FailureKind.FILE_PERMISSION, f"{executable} is not executable")
    return Failure(FailureKind.FILE_NOT_FOUND, f"{executable} is not in the image")
