"""One running container of ours: its exit, its signals, and everything it holds.

`exit` is resolved once, with the real exit status, whether the kernel killed it for memory
(`agent/core/memory_kills.py`), and its memory peak; both are read from the cgroup before the task
is deleted, because tasks of anchored shims send no OOM event. Kills of other processes are lines in
its log: once a second a kept file is read, 0.6 us, which is less than any notification costs a
start. Once it is left to another worker, that one tells them; here they are counted as long as a
call may still want to know how it ended. `unread` is resolved when its shim has died: it runs on,
but what it writes to its output fails from then on. Taking it apart is
`agent/sandbox/teardown.py`'s business.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from signal import SIGKILL

from agent.aio.tasks import launch
from agent.cgroups.instance import InstanceCgroup
from agent.containerd.client import Containerd
from agent.core import memory_kills
from agent.core.memory_kills import UNKNOWN, MemoryKills
from agent.errors import AgentError
from agent.model.records import Exit
from agent.network.network import NetworkSlot
from agent.sandbox.exits import ProcessExit
from agent.sandbox.output import Output
from agent.storage.slots import WritableLayer

log = logging.getLogger(__name__)

OUTPUT_S = 1.0  # how long the last lines of a process that has exited may take to come
STATUS_S = 5.0  # how long containerd may take to tell the status of a process that has exited
LOOK_S = 1.0  # how often the counter of kills for memory is read
STEP_S = 0.1
SIGNALLED = 128  # a shell's and an init's way to say that a signal ended the process
LAST_SIGNAL = 64


class Container:
    """A created or running container. Made by the builder only, on the loop's thread."""

    def __init__(
        self,
        id: str,
        containerd: Containerd,
        cgroup: InstanceCgroup,
        output: Output,
        slot: NetworkSlot,
        layer: WritableLayer,
    ) -> None:
        self.id = id
        self.slot = slot
        self.layer = layer
        self.output = output
        self.cgroup = cgroup
        self.pid = 0
        self.source = ""
        """The process that serves its image's files, as text; "" when they are unpacked."""
        self.ending = asyncio.Lock()
        self.gone = False
        """Whether everything it held has been given back."""
        self._loop = asyncio.get_running_loop()
        self.exit: asyncio.Future[Exit] = self._loop.create_future()
        self.unread: asyncio.Future[None] = self._loop.create_future()
        self._containerd = containerd
        self._process: ProcessExit | None = None
        self._kills = MemoryKills()
        self._killed = False
        self._next_look: asyncio.TimerHandle | None = None
        self._wanted: Callable[[], bool] | None = None
        """Whether calls here still want to know how it ends, once another worker has it."""

    def __repr__(self) -> str:
        state = "exited" if self.exit.done() else "running"
        return f"<Container {self.id} pid={self.pid} {self.slot.address} {state}>"

    @property
    def address(self) -> str:
        """The container's own IPv4 address."""
        return self.slot.address

    @property
    def exited(self) -> bool:
        """Whether its first process has ended."""
        return self.exit.done()

    @property
    def has_exited(self) -> bool:
        """Whether its process has ended, asked of the kernel: `exit` tells how a moment later."""
        return self._process is not None and self._process.exited

    def watch(self, pid: int, *, adopted: bool = False) -> None:
        """Begin to watch the first process; a process already gone counts as an exit now.

        What was killed for memory in an adopted one before, the worker before has told.
        """
        self.pid = pid
        if adopted:
            self._kills.know(self.cgroup.oom_kills())
        try:
            self._process = ProcessExit(pid)
        except ProcessLookupError:
            self._reap()
        else:
            self._process.done.add_done_callback(lambda _: self._reap())
            self._look_later()

    def leave(self, wanted: Callable[[], bool]) -> None:
        """Leave it and its output to another worker; `wanted` says whether calls are left here."""
        if self._next_look is not None:
            self._look_for_kills()
        self.output.detach()
        self._wanted = wanted

    def _look_later(self) -> None:
        # In step with other containers: hundreds of them wake the loop ten times a second at most.
        at = self._loop.time() // STEP_S * STEP_S + LOOK_S
        self._next_look = self._loop.call_at(at, self._look)

    def _look(self) -> None:
        if self._wanted is not None and not self._wanted():
            return
        self._look_for_kills()
        self._look_later()

    def _look_for_kills(self) -> None:
        new = self._kills.look(self.cgroup.oom_kills(), self._loop.time())
        if new and self._wanted is None:
            self.output.say(memory_kills.line(new, self._kills.count))

    def _stop_looking(self) -> None:
        if self._next_look is not None:
            self._next_look.cancel()

    def shim_died(self) -> None:
        """Note that its shim is gone, and with it the other end of its output."""
        if not self.unread.done():
            self.unread.set_result(None)

    def _reap(self) -> None:
        launch(f"exit of {self.id}", self._find_status())

    async def _find_status(self) -> None:
        self._stop_looking()
        peak_bytes = self.cgroup.peak_bytes()
        self._look_for_kills()
        seen_at = self._loop.time()
        code = UNKNOWN
        try:
            code = await self._ask_status()
            await self.output.ended(OUTPUT_S)
        finally:
            out_of_memory = self._kills.explain(code, seen_at, by_us=self._killed)
            self._ended(code, out_of_memory=out_of_memory, peak_bytes=peak_bytes)

    async def _ask_status(self) -> int:
        deadline = asyncio.get_running_loop().time() + STATUS_S
        try:
            return (await self._containerd.tasks.wait(self.id, deadline=deadline)).status
        except AgentError as error:
            log.warning("%s: exit status unknown: %s", self.id, error)
            return UNKNOWN

    def _ended(self, code: int, *, out_of_memory: bool = False, peak_bytes: int = 0) -> None:
        if not self.exit.done():
            signal = code - SIGNALLED if SIGNALLED < code <= SIGNALLED + LAST_SIGNAL else None
            self.exit.set_result(Exit(code, signal, out_of_memory, time.time_ns(), peak_bytes))

    async def signal(self, number: int, *, deadline: float) -> None:
        """Send a signal to the container's init, which passes it on; nothing if it has ended.

        A container whose shim has died gets it from us: the process is ours all the same.
        """
        if self.exit.done():
            return
        self._killed = self._killed or (number == SIGKILL and not self.has_exited)
        why: AgentError | None = None
        try:
            if await self._containerd.tasks.kill(self.id, number, deadline=deadline):
                return
        except AgentError as error:
            why = error
        sent = self._process is not None and self._process.send(number)
        if why is not None and not sent:
            raise why

    async def kill(self, *, deadline: float) -> None:
        """Kill every process of the container and wait for the exit, at most until `deadline`.

        By its cgroup, not by its shim: hundreds at once would stand in line for a few shims, and
        the runtime's own kill of all freezes the cgroup first. The shim is asked where that fails.
        """
        self._killed = self._killed or not self.has_exited
        if not self.exit.done() and not self.cgroup.kill():
            await self._containerd.tasks.kill(self.id, 9, everyone=True, deadline=deadline)
        left_s = deadline - asyncio.get_running_loop().time()
        await asyncio.wait({self.exit}, timeout=max(0.0, left_s))

    def close(self) -> None:
        """Let go of its process, its output and its figures; they end with the container.

        Nobody waits for the exit any longer then: one that was not seen counts as unknown.
        """
        self._stop_looking()
        if self._process is None or not self._process.done.done():
            self._ended(UNKNOWN)
        if self._process is not None:
            self._process.close()
        self.output.close()
        self.cgroup.close()
