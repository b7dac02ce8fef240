"""One instance: its walk from an order to READY, and from there to nothing.

Unit of concurrency: `start` and `stop` each run in one background task of the target that owns the
instance; everything else is synchronous. The states are `agent/core/instance.py`'s, containers are
built by `agent/sandbox`, calls go through `agent/functions/target.py`. Whoever calls `start` owns
the failure: it raises FunctionFailed with what the contract needs, and nothing is left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.contracts.base import Contract, Hook
from agent.core.instance import Event, Lifecycle, State
from agent.core.logtail import Line
from agent.errors import AgentError, FunctionFailed
from agent.functions import readiness
from agent.functions.ports import Connection, Connector, Endpoint
from agent.model.failure import Failure, FailureKind
from agent.model.records import ColdStart, Exit, FunctionVersion, InstanceRecord
from agent.sandbox.builder import Builder, Laps, Order
from agent.telemetry.logs import FunctionLog, LogLine, Stream

if TYPE_CHECKING:
    import socket

    from agent.sandbox.container import Container

log = logging.getLogger(__name__)

QUOTED_LINES = 20  # how much of its log a failed start quotes
KILL_S = 10.0
HOOK_SLACK_S = 1.0


@dataclass(frozen=True, slots=True)
class Doors:
    """What an instance needs from the rooms below and above, the same for all."""

    builder: Builder
    connector: Connector
    open_socket: Callable[[], Awaitable[socket.socket]]
    save: Callable[[InstanceRecord], None]
    forget: Callable[[str], None]
    clear_row: Callable[[int], None]
    observe: Callable[[State, float], None]
    """Told the state that was left and the seconds spent in it."""


class Instance:
    """One container of a version, with its state and its idle connections."""

    def __init__(
        self, id: str, version: FunctionVersion, contract: Contract, doors: Doors, out: FunctionLog
    ) -> None:
        self.id = id
        self.version = version
        self.contract = contract
        self.endpoint = Endpoint(id=id, address="", port=contract.port)
        self.cold_start: ColdStart | None = None
        self.container: Container | None = None
        self.created_ns = time.time_ns()
        self.last_exit: Exit | None = None
        self.row = -1
        """Its row in the in-flight ledger: the number of its network slot, -1 without one."""
        self._doors = doors
        self._log = out
        self._life = Lifecycle(asyncio.get_running_loop().time())
        self._stopping: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<Instance {self.id} {self.state.value} {self.container!r}>"

    @property
    def state(self) -> State:
        """Where the instance stands in the table."""
        return self._life.state

    # -- up

    async def start(self, environment: dict[str, str], asked_at: float) -> None:
        """Build, start and initialise; returns when READY (a job: when its process runs).

        `asked_at` is the monotonic time of the decision to start. Raises FunctionFailed when the
        function would not start, Overloaded or RuntimeUnavailable when the node could not.
        """
        laps = Laps(asked_at)
        queue_ms = laps.ms()
        listen_ms = init_ms = 0.0
        try:
            container, timings = await self._doors.builder.build(
                Order(self.id, self.version, environment, self.sink, self._leased, laps)
            )
            self.container = container
            self._happened(Event.CREATED)
            await self._doors.builder.start(container)
            self._happened(Event.STARTED)
            self._remember()
            start_ms = laps.ms()
            if self.contract.port:
                await self._listen(container)
                listen_ms = laps.ms()
                await self._initialize()
                init_ms = laps.ms()
        except BaseException:
            await self._broke()
            raise
        self.cold_start = ColdStart(
            total_ms=(time.monotonic() - asked_at) * 1000,
            queue_ms=queue_ms,
            image_ms=timings.image_ms,
            slots_ms=timings.slots_ms,
            create_ms=timings.create_ms,
            start_ms=start_ms,
            listen_ms=listen_ms,
            init_ms=init_ms,
            cached=tuple(timings.cached),
        )
        self._happened(Event.INITIALIZED)
        self._remember()

    async def _listen(self, container: Container) -> None:
        began = asyncio.get_running_loop().time()
        limit_s = self.version.spec.startup_timeout_s or self.contract.limits.start_s
        address, port = container.address, self.contract.port
        try:
            sock = await readiness.connect(
                self._doors.open_socket,
                address,
                port,
                deadline=began + limit_s,
                exited=container.exit,
            )
        except TimeoutError as error:
            waited_s = asyncio.get_running_loop().time() - began
            raise FunctionFailed(
                Failure(
                    FailureKind.START_TIMEOUT,
                    f"nothing listens on {address}:{port} after {waited_s:.1f} s",
                    address=address,
                    port=port,
                    waited_s=waited_s,
                    limit=limit_s,
                    log_lines=self.quote(),
                )
            ) from error
        if sock is None:
            waited_s = asyncio.get_running_loop().time() - began
            raise FunctionFailed(await self.explain_exit(FailureKind.EXITED_AT_START, waited_s))
        self.endpoint.idle.append(await self._doors.connector.adopt(sock))

    async def _initialize(self) -> None:
        hook = self.contract.hook("initialize")
        if hook is None:
            return
        status = await self._run_hook(hook)
        if not 200 <= status < 300:
            raise FunctionFailed(
                Failure(
                    FailureKind.INIT_HOOK_FAILED,
                    f"the initialize hook answered {status}"
                    if status
                    else "the hook got no answer",
                    address=self.endpoint.address,
                    port=self.endpoint.port,
                    limit=hook.timeout_s,
                    log_lines=self.quote(),
                )
            )

    async def _run_hook(self, hook: Hook) -> int:
        """Make the hook's request over a pooled connection; 0 when no answer came in time."""
        deadline = asyncio.get_running_loop().time() + hook.timeout_s
        connection = await self._connection(deadline)
        if connection is None:
            return 0
        head = self.contract.hook_head(hook, self.id, self.id)
        try:
            status, _, _ = await connection.roundtrip(head, b"", deadline)
        except (AgentError, TimeoutError, OSError) as error:
            log.info("%s: hook %s: %s", self.id, hook.name, error)
            connection.close()
            return 0
        if connection.usable:
            self.endpoint.idle.append(connection)
        return status

    async def _connection(self, deadline: float) -> Connection | None:
        while self.endpoint.idle:
            connection = self.endpoint.idle.pop()
            if connection.usable:
                return connection
        sock = await self._doors.open_socket()
        try:
            async with asyncio.timeout_at(deadline):
                loop = asyncio.get_running_loop()
                await loop.sock_connect(sock, (self.endpoint.address, self.endpoint.port))
                return await self._doors.connector.adopt(sock)
        except (OSError, TimeoutError):
            sock.close()
            return None

    def _leased(self, container: Container) -> None:
        """Note the slots before the container is made: a successor must find what to give back."""
        self.endpoint.address = container.address
        self.row = container.slot.number
        self._doors.save(self.record_of(container))

    # -- down

    async def stop(self, *, grace_s: float | None = None, event: Event = Event.STOP_BEGAN) -> None:
        """Run the pre-stop hook, TERM, wait, KILL, and give everything back; once.

        A second call waits for the first. `grace_s` shortens the contract's grace; 0 kills.
        """
        if self._stopping is not None:
            await asyncio.wait({self._stopping})
            return
        if not self._life.live:
            return
        self._stopping = asyncio.get_running_loop().create_future()
        try:
            if self.state is not State.STOPPING:
                hooked = self.state in (State.READY, State.DRAINING)
                self._happened(event)
                await self._end_process(grace_s, hooked=hooked)
            await self._clear()
        finally:
            self._stopping.set_result(None)

    async def _end_process(self, grace_s: float | None, *, hooked: bool) -> None:
        container = self.container
        if container is None or container.exited:
            return
        limits = self.contract.limits
        grace = limits.stop_grace_s if grace_s is None else min(grace_s, limits.stop_grace_s)
        hook = self.contract.hook("pre_stop")
        if hook is not None and hooked and grace > 0:
            await self._run_hook(hook)
        self._close_idle()
        loop = asyncio.get_running_loop()
        if grace > 0:
            number = _signal_number(self.version.image.stop_signal if self.version.image else "")
            with contextlib.suppress(AgentError):
                await container.signal(number, deadline=loop.time() + KILL_S)
            await asyncio.wait({container.exit}, timeout=grace)
        if not container.exited:
            with contextlib.suppress(AgentError):
                await container.kill(deadline=loop.time() + KILL_S)

    async def _broke(self) -> None:
        """Take a start that failed apart, whatever it had reached."""
        if self._life.live and self.state is not State.STOPPING:
            self._happened(Event.BROKE)
        if self.container is not None and not self.container.exited:
            with contextlib.suppress(AgentError):
                await self.container.kill(deadline=asyncio.get_running_loop().time() + KILL_S)
        await self._clear()

    async def _clear(self) -> None:
        self._close_idle()
        if self.container is not None:
            if self.container.exit.done():
                self.last_exit = self.container.exit.result()
            row, self.row = self.row, -1
            self._doors.clear_row(row)
            await self._doors.builder.destroy(self.container)
        self._doors.forget(self.id)
        left, spent_s = self.state, self._life.clear(asyncio.get_running_loop().time())
        self._doors.observe(left, spent_s)

    def _close_idle(self) -> None:
        idle, self.endpoint.idle = self.endpoint.idle, []
        for connection in idle:
            connection.close()

    # -- told by others

    def drain_began(self) -> None:
        """Note that it gets no more calls."""
        if self.state in (State.READY, State.FROZEN):
            self._happened(Event.DRAIN_BEGAN)

    def adopted(self, container: Container, record: InstanceRecord) -> None:
        """Take over a running container as READY: the record of the worker before says so."""
        self.container = container
        self.endpoint.address = container.address
        self.row = container.slot.number
        self.cold_start = record.cold_start
        self.created_ns = record.created_ns
        self._life = Lifecycle(asyncio.get_running_loop().time(), State.READY)

    async def explain_exit(self, kind: FailureKind, waited_s: float) -> Failure:
        """Say how the process ended; it has, or is about to. `waited_s` is the call's so far."""
        assert self.container is not None
        how = await asyncio.shield(self.container.exit)
        if how.out_of_memory:
            kind = FailureKind.OUT_OF_MEMORY
        if how.out_of_memory:
            what = f"ran out of its {self.version.spec.memory_mb} MB of memory"
        elif how.signal is not None:
            what = f"was ended by signal {how.signal}"
        else:
            what = f"exited with code {how.exit_code}"
        return Failure(
            kind,
            f"the function's process {what}",
            exit_code=how.exit_code,
            signal=how.signal,
            out_of_memory=how.out_of_memory,
            address=self.endpoint.address,
            port=self.endpoint.port,
            waited_s=waited_s,
            log_lines=self.quote(),
        )

    def cpu_ns(self) -> int:
        """Return the CPU time its cgroup has used so far, nanoseconds; one read of a kept file."""
        return self.container.cgroup.cpu_ns() if self.container is not None else 0

    def peak_bytes(self) -> int:
        """Return its memory peak so far; one read of a kept file."""
        return self.container.cgroup.peak_bytes() if self.container is not None else 0

    def log_lines(self) -> list[LogLine]:
        """Return everything that is kept of the function's log."""
        return self._log.tail(0)

    def quote(self) -> tuple[str, ...]:
        """Return the last stamped lines of this instance's own output."""
        if self.container is not None:
            self.container.output.drain()
        return self._log.of_instance(self.id, QUOTED_LINES)

    def note(self, text: str) -> None:
        """Write a line of the platform's into the function's log."""
        self._log.append(LogLine(time.time_ns(), "platform", self.id, self.version.version, text))

    def sink(self, line: Line) -> None:
        """Put a line of the container's output into the function's log."""
        stream: Stream = "stderr" if line.stream == "stderr" else "stdout"
        text = line.text.decode("utf-8", "replace")
        version = self.version.version
        self._log.append(LogLine(line.time_ns, stream, self.id, version, text, line.split))

    def _happened(self, event: Event) -> None:
        left = self.state
        spent_s = self._life.happened(event, asyncio.get_running_loop().time())
        self._doors.observe(left, spent_s)

    def record_of(self, container: Container) -> InstanceRecord:
        """Return what the next worker needs to adopt this instance."""
        return InstanceRecord(
            id=self.id,
            function=self.version.name,
            version=self.version.version,
            row=self.row,
            network_slot=container.slot.number,
            address=container.address,
            port=self.contract.port,
            layer_kind=container.layer.kind,
            layer_slot=container.layer.number,
            pid=container.pid,
            state=self.state.value,
            created_ns=self.created_ns,
            cold_start=self.cold_start,
        )

    def _remember(self) -> None:
        if self.container is not None:
            self._doors.save(self.record_of(self.container))


def _signal_number(name: str) -> int:
    """Return the number of an image's STOPSIGNAL, TERM when it names none that exists."""
    if name.isdecimal() and 0 < int(name) <= 64:
        return int(name)
    wanted = name.upper() if name.upper().startswith("SIG") else f"SIG{name.upper()}"
    found = signal.Signals.__members__.get(wanted)
    return int(found) if found is not None else int(signal.SIGTERM)
