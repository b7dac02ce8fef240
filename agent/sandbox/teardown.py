"""Taking containers apart: everything one holds is given back once, whatever fails on the way.

What still has processes, or a root that cannot be unmounted, keeps its slots: given to another
function they would be shared. It stays on a list here and is tried again by every control cycle. A
containerd that does not answer holds nothing up: what it forgot is found as an orphan later.

`builder.py` puts together what is taken apart here; who decides that is
`agent/instances` and `agent/recovery`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

from agent.aio.tasks import finish
from agent.core.anchor import ANCHOR_PREFIX
from agent.errors import FailedPrecondition, NotFound, RuntimeUnavailable
from agent.linux import trees
from agent.model.records import InstanceRecord
from agent.sandbox.backends import Backends
from agent.sandbox.container import Container

log = logging.getLogger(__name__)

WITHIN_S = 30.0  # more than all the bounds below together
CALL_S = 5.0  # one answer of containerd's
AT_ONCE = 16  # a few shims serve all: hundreds of calls at once only stand in line there
FILES_S = 5.0  # a handful of the agent's and the runtime's own files
SCRUB_TRIES = 40
SCRUB_PAUSE_S = 0.05


class Teardown:
    """Ends containers, our own and those that a dead worker left."""

    def __init__(self, rooms: Backends, fifos: Path, state: Path) -> None:
        self._rooms = rooms
        self._fifos = fifos
        self._state = state
        self._unfinished: dict[str, Container] = {}
        self.reserved: dict[str, InstanceRecord] = {}
        """What is set aside: instances of other workers, and those that could not be ended."""
        self._turns = asyncio.Semaphore(AT_ONCE)

    def __repr__(self) -> str:
        return f"<Teardown unfinished={sorted(self._unfinished)}>"

    async def destroy(self, container: Container) -> None:
        """Give back everything a container holds; its process has ended or is killed now.

        Safe to call again, also while it is at work. Goes on to its end when the caller is
        cancelled, and never raises: what cannot be ended now is kept for `retry`.
        """
        await finish(f"destroy {container.id}", self._destroy(container), within_s=WITHIN_S)

    async def _destroy(self, container: Container) -> None:
        if container.gone:
            return
        self._unfinished[container.id] = container  # also while it waits for its turn
        async with self._turns:
            await self._take_apart(container)

    async def _take_apart(self, container: Container) -> None:
        rooms, id = self._rooms, container.id
        async with container.ending:
            if container.gone:
                return
            await self._tried(id, "task", lambda: self._delete_task(id, exited=container.exited))
            # The record's end is a commit on disk, which the mount does not wait for.
            _, unmounted = await asyncio.gather(
                self._tried(id, "record", lambda: self._delete_record(id)), self._unmount(id)
            )
            if not unmounted:
                return
            del self._unfinished[id]
            container.gone = True
            container.close()
            rooms.shims.removed(id)
            # Before its slots can be another's: no two records may name one slot.
            rooms.forget(id)
            # Once only, whatever comes of it; and nothing above waits any more if this is late.
            network, layer = container.slot, container.layer
            await self._tried(id, "network slot", lambda: rooms.network.release(network))
            await self._tried(id, "writable layer", lambda: rooms.layers.release(layer))

    async def _unmount(self, id: str) -> bool:
        """End what still runs in there, then unmount its root; say whether both are done."""
        rootfs = self._rooms.rootfs
        if not await self._tried(id, "cgroup", lambda: asyncio.to_thread(self._scrub, id)):
            return False
        return await self._tried(id, "rootfs", lambda: rootfs.teardown(id))

    async def retry(self) -> None:
        """Try again what could not be ended before, all within the time of one."""
        await asyncio.gather(*(self.destroy(each) for each in list(self._unfinished.values())))

    def holds(self, id: str) -> bool:
        """Whether something of a container of that id could not be ended yet."""
        return id in self._unfinished

    async def remove_leftover(self, id: str) -> None:
        """Remove a container nobody owns: a left-over of a worker that died.

        Raises RuntimeUnavailable when something of it is still there; ask again then.
        """
        rooms = self._rooms
        steps: tuple[tuple[str, Callable[[], Awaitable[object]]], ...] = (
            ("task", lambda: self._delete_task(id)),
            ("record", lambda: self._delete_record(id)),
            ("cgroup", lambda: asyncio.to_thread(self._scrub, id)),
            ("rootfs", lambda: rooms.rootfs.teardown(id)),
        )
        left = [what for what, step in steps if not await self._tried(id, what, step)]
        rooms.shims.removed(id)
        if left:
            raise RuntimeUnavailable(f"{id}: {', '.join(left)} could not be removed")
        await asyncio.to_thread(trees.remove, self._fifos / id, within_s=FILES_S)
        rooms.forget(id)
        await self.unreserve(id)

    async def unreserve(self, id: str) -> None:
        """Give back what was set aside for an instance that is gone; unknown ones are ignored."""
        record = self.reserved.pop(id, None)
        if record is not None:
            network, layers = self._rooms.network, self._rooms.layers
            number, kind = record.network_slot, record.layer_kind
            network.unreserve(number)
            await self._tried(
                id, "writable layer", lambda: layers.unreserve(id, kind, record.layer_slot)
            )

    async def end_strays(self, known: Collection[str]) -> None:
        """End what runs in control groups of instances that nobody knows."""
        kept = self._unfinished.keys() | self.reserved.keys()
        for id in self._rooms.cgroups.instances() - set(known) - kept:
            if not id.startswith(ANCHOR_PREFIX):
                log.warning("%s runs without anybody knowing it: ended", id)
                await self._end_stray(id)

    async def _end_stray(self, id: str) -> None:
        await self._tried(id, "cgroup", lambda: asyncio.to_thread(self._scrub, id))

    async def _tried(self, id: str, what: str, step: Callable[[], Awaitable[object]]) -> bool:
        """Take one step; False when it failed, whyever: the others must be taken too."""
        try:
            await step()
        except Exception as error:
            log.warning("%s: %s not given back: %s", id, what, error)
            return False
        return True

    async def _delete_task(self, id: str, *, exited: bool = False) -> None:
        """Delete a task whatever its state; killed first unless it has exited.

        Killed by its cgroup: a created task's deletion would wait for the end of its output first,
        and a shim may be too busy to pass a signal on.
        """
        tasks = self._rooms.containerd.tasks
        if not exited:
            with contextlib.closing(self._rooms.cgroups.instance(id)) as group:
                group.kill()
        deadline = asyncio.get_running_loop().time() + CALL_S
        with contextlib.suppress(NotFound):
            try:
                await tasks.delete(id, deadline=deadline)
            except FailedPrecondition:
                await tasks.kill(id, 9, everyone=True, deadline=deadline)
                await tasks.wait(id, deadline=deadline)
                await tasks.delete(id, deadline=deadline)
            except RuntimeUnavailable:
                # containerd forgets a task whose shim is dead, but only reports the dead shim. One
                # let go by its FIFO it believes created, and passes on at once what the runtime
                # refuses as long as the shim has not collected its process.
                with contextlib.suppress(RuntimeUnavailable):
                    await tasks.wait(id, deadline=deadline)
                await tasks.delete(id, deadline=deadline)

    async def _delete_record(self, id: str) -> None:
        deadline = asyncio.get_running_loop().time() + CALL_S
        with contextlib.suppress(NotFound):
            await self._rooms.containerd.containers.delete(id, deadline=deadline)

    def _scrub(self, id: str) -> None:
        """Kill and remove what a dead shim or a late create left in the instance's cgroup.

        Neither lets the runtime forget the container, so its state goes here as well.
        """
        group = self._rooms.cgroups.instance(id)
        try:
            for _ in range(SCRUB_TRIES):
                if self._rooms.cgroups.remove(id):
                    trees.remove(self._state / id, within_s=FILES_S)
                    return
                group.kill()
                time.sleep(SCRUB_PAUSE_S)
            raise RuntimeUnavailable(f"processes of {id} cannot be ended")
        finally:
            group.close()
