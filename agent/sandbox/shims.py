"""Anchored shims: a few shim processes that serve all containers, least busy first.

An anchor is a container that is created and never started; its shim serves every container that
names the anchor as its sandbox. A shim serialises creates, so there are several; one that misses a
deadline takes no more containers and is removed when its last one has gone. One that dies takes the
reading end of its containers' output with it: each is told, and another shim takes its place. Where
anchors cannot be made (containerd before 2.1, or turned off) `pick` returns "" and every container
gets its own shim, whose death containerd answers by ending the container.

Never deletes an anchor that still has containers: their exit and removal go through its shim.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent.aio.tasks import finish, launch
from agent.cgroups.tree import CgroupTree
from agent.containerd.client import NAMESPACE, Containerd
from agent.containerd.containers import ContainerRecord, RuntimeOptions
from agent.containerd.tasks import TaskStatus
from agent.core.anchor import ANCHOR_PREFIX, anchor_spec
from agent.errors import AgentError, AlreadyExists, NotFound
from agent.linux.process import parent_of
from agent.sandbox import seccomp
from agent.sandbox.exits import ProcessExit

log = logging.getLogger(__name__)

KIND_LABEL = "kindling.kind"
CREATE_S = 15.0
REMOVE_S = 5.0
CREATE_COST = 8  # a create under way delays the next one far more than a container that just runs

Lost = Callable[[], None]


@dataclass(slots=True)
class Anchor:
    """One shim of ours and how busy it is."""

    id: str
    creating: set[str] = field(default_factory=set)
    containers: set[str] = field(default_factory=set)
    draining: bool = False
    process: ProcessExit | None = None

    @property
    def dead(self) -> bool:
        """Whether its shim has ended, noticed or not."""
        return self.process is not None and self.process.exited

    @property
    def load(self) -> int:
        """What decides between anchors: lower is better."""
        return len(self.creating) * CREATE_COST + len(self.containers)


class Shims:
    """The anchors of one node."""

    def __init__(
        self,
        containerd: Containerd,
        options: RuntimeOptions,
        cgroups: CgroupTree,
        *,
        count: int,
        run: Path,
        init: Path,
    ) -> None:
        self._containerd = containerd
        self._options = options
        self._count = count
        self._rootfs = run / "anchor"
        self._init = init
        self._cgroups = cgroups
        self._anchors: dict[str, Anchor] = {}
        self._of: dict[str, Anchor] = {}
        """The anchor that serves a container, by the container's id."""
        self._lost: dict[str, Lost] = {}
        """Whom to tell, once, when that anchor's shim has died; by the container's id, too."""
        self._mending = asyncio.Lock()
        self._numbers = 0
        self._works = False
        self.annotations: Mapping[str, str] = {}
        """What every container is to carry: the filter as an anchor's runtime compiled it."""

    def __repr__(self) -> str:
        each = ", ".join(
            f"{a.id}:{len(a.containers)}+{len(a.creating)}{' draining' if a.draining else ''}"
            for a in self._anchors.values()
        )
        return f"<Shims {each or 'none: a shim per container'}>"

    @property
    def anchored(self) -> bool:
        """Whether containers share shims."""
        return bool(self._anchors)

    async def start(self) -> None:
        """Take over anchors that are alive and make the missing ones.

        If not even one can be made, says so once and lets every container have its own shim.
        """
        for directory in ("dev", "proc"):
            (self._rootfs / directory).mkdir(parents=True, exist_ok=True)
        (self._rootfs / "init").touch()
        await self._adopt()
        for _ in range(self._count - len(self._anchors)):
            try:
                await self._make()
            except AgentError as error:
                log.warning("no anchored shim: %s", error)
                break
        self._works = bool(self._anchors)

    async def _adopt(self) -> None:
        tasks = {task.id: task for task in await self._containerd.tasks.list()}
        records = await self._containerd.containers.list([f'labels."{KIND_LABEL}"==anchor'])
        sandboxes = await self._containerd.sandboxes.list()
        for record in records:
            number = record.id.removeprefix(ANCHOR_PREFIX)
            self._numbers = max(self._numbers, int(number) if number.isdecimal() else 0)
            task = tasks.get(record.id)
            alive = task is not None and task.status is TaskStatus.CREATED
            if task is not None and alive and record.id in sandboxes:
                self._add(record.id, task.pid)
            else:
                await self._remove(record.id)

    async def _make(self) -> None:
        self._numbers += 1
        id = f"{ANCHOR_PREFIX}{self._numbers}"
        deadline = asyncio.get_running_loop().time() + CREATE_S
        record = self._record(id)
        ours = False
        try:
            await self._containerd.containers.create(record, self._options, deadline=deadline)
            ours = True
            pid = await self._containerd.tasks.create(id, deadline=deadline)
            await self._containerd.sandboxes.create(id, self._options, {}, deadline=deadline)
        except (AgentError, asyncio.CancelledError) as error:
            # A name that is taken is the anchor of a worker beside this one.
            if ours or not isinstance(error, AlreadyExists):
                await finish(f"remove {id}", self._remove(id), within_s=REMOVE_S * 2)
            raise
        self._add(id, pid)

    def _record(self, id: str, sandbox: str = "") -> ContainerRecord:
        data = anchor_spec(
            str(self._rootfs),
            str(self._init),
            self._cgroups.path(id),
            seccomp=seccomp.PROFILE,
            annotations=self.annotations,
        )
        spec = json.dumps(data).encode()
        return ContainerRecord(id=id, spec=spec, labels={KIND_LABEL: "anchor"}, sandbox=sandbox)

    async def spare(self, deadline: float) -> str:
        """Create one more container like an anchor's, through one of them, and return its id.

        `remove_spare` it. What a worker leaves by its death the next one's start removes.
        """
        id = f"{ANCHOR_PREFIX}spare"
        record = self._record(id, next(iter(self._anchors), ""))
        await self._containerd.containers.create(record, self._options, deadline=deadline)
        try:
            await self._containerd.tasks.create(id, deadline=deadline)
        except (AgentError, asyncio.CancelledError):
            await finish(f"remove {id}", self._remove(id), within_s=REMOVE_S * 2)
            raise
        return id

    async def remove_spare(self, id: str) -> None:
        """Remove what `spare` has made, to the end."""
        await finish(f"remove {id}", self._remove(id), within_s=REMOVE_S * 2)

    def _add(self, id: str, pid: int) -> None:
        """Take an anchor into use and watch the shim above its process."""
        self.annotations = self.annotations or seccomp.compiled(self._options.root / NAMESPACE / id)
        anchor = self._anchors[id] = Anchor(id)
        try:
            anchor.process = ProcessExit(parent_of(pid))
        except (OSError, ValueError):
            anchor.draining = True
        else:
            anchor.process.done.add_done_callback(lambda _: self._died(anchor))

    def _died(self, anchor: Anchor) -> None:
        """A shim is gone: its containers run on, but only their cgroups can end them now."""
        if self._anchors.get(anchor.id) is anchor:
            anchor.draining = True
            served = anchor.creating | anchor.containers
            log.warning("the shim of %s has ended with %d containers", anchor.id, len(served))
            launch(f"mend shims after {anchor.id}", self.mend())
            for container in served:
                self._tell(container)

    def _tell(self, container: str) -> None:
        lost = self._lost.pop(container, None)
        if lost is not None:
            lost()

    def pick(self, container: str, lost: Lost) -> str:
        """Choose the least busy anchor for a container that is created now; "" for none at all.

        `created` tells that this has ended, `removed` that the container is gone. `lost` is called
        when the shim dies before that.
        """
        open_anchors = [a for a in self._anchors.values() if not a.draining and not a.dead]
        if not open_anchors:
            return ""
        anchor = self._of[container] = min(open_anchors, key=lambda a: a.load)
        self._lost[container] = lost
        anchor.creating.add(container)
        return anchor.id

    def lost(self, container: str) -> bool:
        """Whether the shim of a container that is not removed yet has died."""
        anchor = self._of.get(container)
        return anchor is not None and anchor.dead

    def created(self, container: str, *, late: bool = False) -> None:
        """Note that the creation has ended, well or not; a late one closes its anchor.

        The container counts until `removed`: a half-made one also lives in the shim.
        """
        anchor = self._of.get(container)
        if anchor is None:
            return
        anchor.creating.discard(container)
        anchor.containers.add(container)
        if late and not anchor.draining:
            anchor.draining = True
            log.warning("shim of %s missed a deadline: it takes no more containers", anchor.id)

    def adopted(self, container: str, id: str, lost: Lost) -> None:
        """Note that a running container found after a restart was made through anchor `id`.

        `lost` is called when its shim dies, and now if it has died before. With "" the container
        has a shim of its own.
        """
        if not id:
            return
        self._lost[container] = lost
        anchor = self._anchors.get(id)
        if anchor is not None:
            self._of[container] = anchor
            anchor.containers.add(container)
        if anchor is None or anchor.dead:
            self._tell(container)

    def removed(self, container: str) -> None:
        """Note that a container is gone; safe to call twice."""
        self._lost.pop(container, None)
        anchor = self._of.pop(container, None)
        if anchor is not None:
            anchor.creating.discard(container)
            anchor.containers.discard(container)

    async def mend(self) -> None:
        """Remove drained anchors and make new ones up to the count; called now and then."""
        async with self._mending:
            drained = [a for a in self._anchors.values() if a.draining and not a.load]
            for anchor in drained if self._works else ():
                await self._remove(anchor.id)
            while self._works and self.usable < self._count:
                try:
                    await self._make()
                except AgentError as error:
                    log.warning("no further anchored shim: %s", error)
                    return

    @property
    def usable(self) -> int:
        """How many shims take containers."""
        return sum(not a.draining for a in self._anchors.values())

    def leave(self) -> None:
        """Leave all anchors to the next worker: it answers for their deaths from now on."""
        self._works = False
        for anchor in self._anchors.values():
            if anchor.process is not None:
                anchor.process.close()

    async def stop(self) -> None:
        """Remove all anchors; every container is gone by now."""
        await asyncio.gather(*(self._remove(id) for id in list(self._anchors)))

    async def _remove(self, id: str) -> None:
        anchor = self._anchors.pop(id, None)
        if anchor is not None and anchor.process is not None:
            anchor.process.close()
        door = self._containerd
        deadline = asyncio.get_running_loop().time() + REMOVE_S
        steps = (
            ("kill", lambda: door.tasks.kill(id, 9, deadline=deadline)),
            ("wait", lambda: door.tasks.wait(id, deadline=deadline)),
            ("delete task", lambda: door.tasks.delete(id, deadline=deadline)),
            ("delete sandbox", lambda: door.sandboxes.delete(id, deadline=deadline)),
            ("delete container", lambda: door.containers.delete(id, deadline=deadline)),
        )
        for what, step in steps:
            try:
                await step()
            except (NotFound, AlreadyExists):
                continue
            except AgentError as error:
                log.warning("anchor %s: %s: %s", id, what, error)
