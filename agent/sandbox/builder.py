"""From an order and ready slots to a running container, step by step.

Once the two slots are leased there is a `Container`, and a failure or a cancellation at any later
step takes apart what there is of it by the same `Teardown` as every other end: in order, shielded
and bounded. A start that fails leaves nothing.

No pulling here (`agent/deployments`) and no readiness (`agent/instances`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import stat
from collections.abc import Collection
from functools import partial
from pathlib import Path

from agent.aio.tasks import finish
from agent.config import NodeConfig
from agent.containerd.client import NAMESPACE
from agent.containerd.containers import ContainerRecord, RuntimeOptions
from agent.containerd.tasks import TaskOutput
from agent.core.executables import FIRST_NOT_EXECUTED, NOT_EXECUTED
from agent.core.oci import InstancePlan, merged_env
from agent.errors import AgentError, FailedPrecondition, RuntimeUnavailable
from agent.model.failure import Failure
from agent.model.limits import MAX_STRING_BYTES
from agent.model.records import FunctionVersion, InstanceRecord
from agent.network.network import Egress
from agent.sandbox.backends import Backends
from agent.sandbox.blueprint import Blueprint, blueprint_of
from agent.sandbox.container import Container
from agent.sandbox.diagnosis import why_not
from agent.sandbox.exec_fifo import ExecFifo
from agent.sandbox.furniture import HOSTNAME, HOSTS, RESOLV_CONF
from agent.sandbox.image_files import ImageFiles
from agent.sandbox.order import Order, Timings
from agent.sandbox.output import Output, Sink, held_open
from agent.sandbox.shims import KIND_LABEL, Shims
from agent.sandbox.teardown import Teardown

INSTANCE_KIND = "instance"
FUNCTION_LABEL = "kindling.function"
VERSION_LABEL = "kindling.version"
CREATE_SLACK_S = 2.0
DIAGNOSIS_S = 5.0
HOSTS_TEXT = """\
127.0.0.1 localhost
::1 localhost ip6-localhost ip6-loopback
{address} {name}
"""


log = logging.getLogger(__name__)


class ShimDied(RuntimeUnavailable):
    """The shim that was to make a container has died over it."""


class Builder:
    """Builds, adopts and destroys the containers of instances."""

    def __init__(self, config: NodeConfig, rooms: Backends, options: RuntimeOptions) -> None:
        self._config = config
        self._rooms = rooms
        self._options = options
        self._fifos = config.paths.run / "fifo"
        state = options.root / NAMESPACE
        self._teardown = Teardown(rooms, self._fifos, state)
        self.exec_fifo = ExecFifo(rooms.containerd, state, wanted=config.runtime.fifo)
        self._blueprints: dict[tuple[str, int, int], Blueprint] = {}

    def __repr__(self) -> str:
        return f"<Builder {len(self._blueprints)} blueprints {self._teardown!r}>"

    @property
    def shims(self) -> Shims:
        """The anchored shims containers are made through."""
        return self._rooms.shims

    # -- blueprints

    async def check(self, version: FunctionVersion) -> None:
        """Work out a version's blueprint at deploy, so that its mistakes show then.

        Raises InvalidSpec for a user, volume or command that does not exist.
        """
        deadline = asyncio.get_running_loop().time() + self._config.runtime.create_timeout_s
        await self._blueprint(version, Timings(), deadline)

    def forget(self, version: FunctionVersion) -> None:
        """Drop what was kept for a removed version."""
        self._blueprints.pop(_identity(version), None)

    async def _blueprint(
        self, version: FunctionVersion, timings: Timings, deadline: float
    ) -> Blueprint:
        found = self._blueprints.get(_identity(version))
        if found is not None and self._rooms.images.is_current(found.image):
            timings.cached += ["image", "spec"]
            return found
        if version.image is None:
            raise RuntimeUnavailable(f"{version.name} version {version.version} has no image yet")
        image, cached = await self._rooms.images.prepare(version.image, deadline=deadline)
        if cached:
            timings.cached.append("image")
        annotations, shown = self._rooms.shims.annotations, self._rooms.cgroups.shown
        work = partial(blueprint_of, version, image, self._config, annotations, shown)
        try:
            async with asyncio.timeout_at(deadline):  # it looks at volumes, on any file system
                blueprint = await self._rooms.images.look(image, work, deadline=deadline)
        except TimeoutError as error:
            raise RuntimeUnavailable(f"the volumes of {version.name} do not answer") from error
        self._blueprints[_identity(version)] = blueprint
        return blueprint

    async def why_not_executed(
        self, version: FunctionVersion, exit_code: int | None = None
    ) -> Failure | None:
        """Say what keeps a version's program from being executed; None when nothing is seen.

        To be asked when the runtime has refused it, or with the status it has ended with: nothing
        is looked for when that is a program's own.
        """
        blueprint = self._blueprints.get(_identity(version))
        if blueprint is None:
            return None
        if exit_code is not None:
            first = not blueprint.template.version.init_path
            if exit_code not in (FIRST_NOT_EXECUTED if first else NOT_EXECUTED):
                return None
        image = blueprint.image
        deadline = asyncio.get_running_loop().time() + DIAGNOSIS_S
        look = partial(why_not, ImageFiles(image.layers), blueprint.program)
        try:
            return await self._rooms.images.look(image, look, deadline=deadline)
        except RuntimeUnavailable as error:  # a lazy image whose registry is away
            log.warning("%s: why it was not executed is not known: %s", version.name, error)
            return None

    # -- up

    async def build(self, order: Order) -> tuple[Container, Timings]:
        """Create the container of an order, not started yet.

        Returns the container and what each phase took, counted on `order.laps`. Raises Overloaded
        without a free slot, RuntimeUnavailable when the runtime fails; nothing is left behind then.
        A shim that dies meanwhile costs one more try: nothing of the function has run yet.
        """
        try:
            return await self._build(order)
        except ShimDied as error:
            if self._teardown.holds(order.id):
                raise
            log.warning("%s: %s; made again through another one", order.id, error)
            return await self._build(order)

    async def _build(self, order: Order) -> tuple[Container, Timings]:
        deadline = asyncio.get_running_loop().time() + self._config.runtime.create_timeout_s
        timings, lap = Timings(), order.laps
        blueprint = await self._blueprint(order.version, timings, deadline)
        timings.image_ms = lap.ms()
        container = await self._lease(order)
        try:
            if not self._rooms.images.is_current(blueprint.image):  # it may have waited for slots
                blueprint = await self._blueprint(order.version, timings, deadline)
            # From here on these mounts are known to be in use.
            container.source = blueprint.image.source
            order.leased(container)
            record = await self._record(order, container, blueprint)
            await self._furnish_and_record(container, blueprint, record, deadline)
            timings.slots_ms = lap.ms()
            await self._create(container, deadline)
            timings.create_ms = lap.ms()
        except BaseException:
            await self.destroy(container)
            raise
        return container, timings

    async def _lease(self, order: Order) -> Container:
        """Lease what a container holds from its first moment on: both slots or neither."""
        rooms, id, spec = self._rooms, order.id, order.version.spec
        slot = await rooms.network.lease(spec.egress)
        try:
            layer = await rooms.layers.lease(id, spec.disk_mb)
        except BaseException:
            await rooms.network.release(slot)
            raise
        output = Output(self._fifos / id, order.sink)
        return Container(id, rooms.containerd, rooms.cgroups.instance(id), output, slot, layer)

    async def _record(
        self, order: Order, container: Container, blueprint: Blueprint
    ) -> ContainerRecord:
        """Return the record of a container and choose the shim it is made through."""
        own = await own_environment(order.version)
        # Under everybody's own, as Docker has it; shells alone would set it themselves.
        env = {"HOSTNAME": order.id} | merged_env(blueprint.env, order.environment, own)
        spec = blueprint.template.encode(
            InstancePlan(
                hostname=order.id,
                rootfs=str(self._rooms.rootfs.path(order.id)),
                netns=container.slot.netns_path,
                cgroups_path=self._rooms.cgroups.path(order.id),
                env=env,
            )
        )
        labels = {
            KIND_LABEL: INSTANCE_KIND,
            FUNCTION_LABEL: order.version.name,
            VERSION_LABEL: str(order.version.version),
        }
        anchor = self._rooms.shims.pick(order.id, container.shim_died)
        return ContainerRecord(id=order.id, spec=spec, labels=labels, sandbox=anchor)

    async def _furnish_and_record(
        self, container: Container, blueprint: Blueprint, record: ContainerRecord, deadline: float
    ) -> None:
        """Furnish the root while containerd writes the record; returns when both have ended."""
        ends = await asyncio.gather(
            self._furnish(container, blueprint),
            self._rooms.containerd.containers.create(record, self._options, deadline=deadline),
            return_exceptions=True,
        )
        for end in ends:
            if end is not None:
                raise end

    async def _furnish(self, container: Container, blueprint: Blueprint) -> None:
        """Mount the root with its own files, open the FIFOs."""
        await self._rooms.images.reachable(blueprint.image)
        await self._rooms.rootfs.prepare(
            container.id,
            blueprint.image.layers,
            container.layer,
            lambda upper: blueprint.furniture.place(upper, self._files(container)),
        )
        container.output.open()

    def _files(self, container: Container) -> dict[str, str]:
        """Return the texts of the files of /etc that are the instance's own. Blocks."""
        return {
            HOSTNAME: f"{container.id}\n",
            HOSTS: HOSTS_TEXT.format(address=container.address, name=container.id),
            RESOLV_CONF: self._rooms.network.resolv_conf.read_text(),
        }

    async def _create(self, container: Container, deadline: float) -> None:
        shims, id, output = self._rooms.shims, container.id, container.output
        try:
            pid = await self._create_task(
                id, TaskOutput(output.path("stdout"), output.path("stderr")), deadline
            )
        except AgentError as error:
            if shims.lost(id):
                raise ShimDied(error.message) from error
            raise
        finally:
            shims.created(id, late=asyncio.get_running_loop().time() >= deadline)
        container.watch(pid)

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
        if self.exec_fifo.start(container.id):
            return
        deadline = asyncio.get_running_loop().time() + self._config.runtime.create_timeout_s
        await self._rooms.containerd.tasks.start(container.id, deadline=deadline)

    def outputs_held(self) -> contextlib.AbstractContextManager[None]:
        """Keep shims going whose containers' output nobody reads yet, while a worker starts."""
        return held_open(self._fifos)

    async def adopt(self, record: InstanceRecord, sink: Sink, egress: Egress) -> Container:
        """Take over a running container of the worker before from its record.

        Raises NotFound when its process or one of its slots is gone, RuntimeUnavailable when it
        cannot be watched. None of its slots is held here then; `remove_leftover` clears the rest.
        """
        rooms, id = self._rooms, record.id
        slot = await rooms.network.adopt(record.network_slot, record.pid, egress)
        try:
            layer = rooms.layers.adopt(id, record.layer_kind, record.layer_slot)
        except BaseException:
            await rooms.network.release(slot)
            raise
        output = Output(self._fifos / id, sink)
        container = Container(id, rooms.containerd, rooms.cgroups.instance(id), output, slot, layer)
        container.source = record.source
        try:
            output.open()
            anchor = (await rooms.containerd.containers.get(id)).sandbox
            rooms.shims.adopted(id, anchor, container.shim_died)
            container.watch(record.pid, adopted=True)
        except OSError as error:
            await self.destroy(container)
            raise RuntimeUnavailable(f"{id} cannot be watched: {error.strerror}") from error
        except BaseException:
            await self.destroy(container)
            raise
        self._teardown.reserved.pop(id, None)
        return container

    def reserve(self, record: InstanceRecord, egress: Egress) -> None:
        """Set aside the slots that a record names and nobody here holds; before the rooms open.

        Given to another instance they would be shared with what may still run in them.
        """
        rooms = self._rooms
        rooms.network.reserve(record.network_slot, egress)
        rooms.layers.reserve(record.id, record.layer_kind, record.layer_slot)
        self._teardown.reserved[record.id] = record

    def known(self, ids: Collection[str]) -> set[str]:
        """Return `ids` and those whose slots are set aside: nothing of them is to be swept."""
        return {*ids, *self._teardown.reserved}

    async def unreserve(self, id: str) -> None:
        """Give back what was set aside for an instance that is gone; unknown ones are ignored."""
        await self._teardown.unreserve(id)

    # -- down

    async def destroy(self, container: Container) -> None:
        """Give back everything a container holds; its process has ended or is killed now.

        Safe to call again; never raises but when the caller is cancelled, after its end.
        """
        await self._teardown.destroy(container)

    async def remove_leftover(self, id: str) -> None:
        """Remove a container nobody owns: a left-over of a worker that died.

        Raises RuntimeUnavailable when something of it is still there.
        """
        await self._teardown.remove_leftover(id)

    async def tidy(self, known: Collection[str]) -> None:
        """Mend the shims, end what could not be ended before, and what nobody knows."""
        await self._rooms.shims.mend()
        await self._teardown.retry()
        await self._teardown.end_strays(known)


def _identity(version: FunctionVersion) -> tuple[str, int, int]:
    """Return what tells a version from a later one that got the same number."""
    return (*version.key, version.created_ns)


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
                own[secret.name] = await asyncio.to_thread(_secret, Path(secret.file))
            except (OSError, ValueError) as error:
                why = error.strerror if isinstance(error, OSError) else error
                raise FailedPrecondition(
                    f"secret {secret.name}: {secret.file} cannot be read by the agent: {why}"
                ) from error
    return own


def _secret(file: Path) -> str:
    """Return what a file holds, without its last newlines; ValueError if no variable can hold it.

    Never waits, whatever the path leads to.
    """
    with os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as opened:
        if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
            raise ValueError("it is no regular file")
        data = opened.read(MAX_STRING_BYTES)
    if len(data) == MAX_STRING_BYTES:
        raise ValueError(f"a variable takes less than {MAX_STRING_BYTES} bytes")
    if b"\0" in data:
        raise ValueError("a variable cannot hold its NUL bytes")
    return data.decode("utf-8").rstrip("\n")
