"""One instance: its walk from an order to READY, and from there to nothing.

Unit of concurrency: `start` runs in a task of its owner; every end, wanted or not, runs in one task
of the instance's own, which nobody's cancellation reaches and for which every `stop` waits. All
else is synchronous. The states are `agent/core/instance.py`'s, containers are built by
`agent/sandbox`, calls go through `agent/calls/target.py`. Whoever calls `start` owns the
failure: it raises FunctionFailed with what the contract needs, and nothing is left behind.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from agent.aio.deadline import ShrinkingDeadline
from agent.aio.tasks import finish, spawn, stop
from agent.contracts.base import Contract, Hook
from agent.core.instance import BEFORE_READY, Lifecycle, LifecycleEvent, State
from agent.core.logtail import OutputLine
from agent.core.metering import InstanceMeter
from agent.core.pulling import ImagePull
from agent.errors import AgentError, FunctionFailed, RuntimeUnavailable
from agent.instances import failures, readiness
from agent.instances.end import Ending
from agent.instances.endpoint import Endpoint
from agent.instances.hooks import NO_ANSWER, Hooks
from agent.instances.ports import InstancePorts
from agent.model.failure import Failure, FailureKind
from agent.model.records import ColdStart, Exit, FunctionVersion, InstanceRecord
from agent.sandbox.order import Laps, Order, Timings
from agent.store.ledger import no_row
from agent.telemetry.logs import FunctionLog, LogLine, Stream

if TYPE_CHECKING:
    from agent.sandbox.container import Container

log = logging.getLogger(__name__)

QUOTED_LINES = 20  # how much of its log a failed start quotes
BROKEN_S = 60.0  # more than a kill and a teardown take
STREAMS: Mapping[str, Stream] = {"stderr": "stderr", "platform": "platform"}
STANDBY = "standby"  # in a cold start's `cached`: the container was there, created
EXIT_S = 0.5  # how long after its connection broke a process may take to be seen as ended

T = TypeVar("T")


class Instance:
    """One container of a version, with its state and its idle connections."""

    def __init__(
        self,
        id: str,
        version: FunctionVersion,
        contract: Contract,
        ports: InstancePorts,
        out: FunctionLog,
    ) -> None:
        self.id = id
        self.version = version
        self.contract = contract
        self.endpoint = Endpoint(id=id, address="", port=contract.port)
        self.cold_start: ColdStart | None = None
        self.container: Container | None = None
        self.created_ns = time.time_ns()
        self.meter = InstanceMeter()
        self.calls = no_row()
        """Its row in the in-flight ledger: that of its network slot, once it has one."""
        self._ports = ports
        self._log = out
        self._life = Lifecycle(asyncio.get_running_loop().time())
        self._hooks = Hooks(self.endpoint, contract, ports, self.note)
        self._cutoff = ShrinkingDeadline()
        self.handed_over = False
        """Whether another worker has it: it started it, or was left it."""
        after_ms = version.spec.scaling.freeze_after_ms
        self.freeze_after_s = after_ms / 1000 if after_ms >= 0 else None
        """How long it rests before it is frozen; None: never."""
        self.frozen = False
        """Whether it was told to stand still; a kind of READY (DECISIONS 75)."""
        self.was_frozen = False
        self._hooking: asyncio.Task[None] | None = None
        self._kept = False
        self._end: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Instance {self.id} {self.state.value} {self.container!r}>"

    @property
    def state(self) -> State:
        """Where the instance stands in the table."""
        return self._life.state

    @property
    def row(self) -> int:
        """The number of its network slot and of its row in the ledger; -1 without a container."""
        return self.container.slot.number if self.container is not None else -1

    @property
    def last_exit(self) -> Exit | None:
        """How its process ended, None before."""
        if self.container is None or not self.container.exited:
            return None
        return self.container.exit.result()

    # -- up

    async def start(
        self,
        environment: dict[str, str],
        asked_at: float,
        permit: AbstractAsyncContextManager[None],
    ) -> None:
        """Build, start and initialise; returns when READY (a job: when its process runs).

        A standby is built, in the environment it was given then: it needs no permit.

        `asked_at` is the monotonic time of the decision to start; `permit` is held while the
        runtime works, not while the function gets ready. Raises FunctionFailed when the function
        would not start, Overloaded or RuntimeUnavailable when the node could not.
        """
        try:
            cold_start = await self._start(environment, Laps(asked_at), permit)
            self.cold_start = replace(cold_start, total_ms=(time.monotonic() - asked_at) * 1000)
            self._happened(LifecycleEvent.INITIALIZED)
            if self._ports.mode.owns_instances:
                self._remember()
        except BaseException:
            broken = self.stop(grace_s=0.0, event=LifecycleEvent.BROKE)
            await finish(f"end {self.id}", broken, within_s=BROKEN_S)
            raise

    async def prepare(
        self, environment: dict[str, str], permit: AbstractAsyncContextManager[None]
    ) -> None:
        """Build it and leave it created, for `start` to let it run; returns when STANDBY.

        Raises as `start` does, and leaves nothing then.
        """
        try:
            async with permit:
                await self._build(environment, Laps())
            self._happened(LifecycleEvent.PARKED)
            self._remember()
        except BaseException:
            broken = self.stop(grace_s=0.0, event=LifecycleEvent.BROKE)
            await finish(f"end {self.id}", broken, within_s=BROKEN_S)
            raise

    async def _start(
        self,
        environment: dict[str, str],
        laps: Laps,
        permit: AbstractAsyncContextManager[None],
    ) -> ColdStart:
        """Go through the phases and return what each took; the total is the caller's."""
        listen_ms = init_ms = 0.0
        if self.state is State.STANDBY:
            queue_ms, timings = laps.ms(), Timings(cached=[STANDBY])
            self._happened(LifecycleEvent.TAKEN)
            container = await self._run()
        else:
            async with permit:
                queue_ms = laps.ms()
                timings = await self._build(environment, laps)
                self._happened(LifecycleEvent.CREATED)
                container = await self._run()
        self._happened(LifecycleEvent.STARTED)
        start_ms = laps.ms()
        if self.contract.port:
            await self._listen(container)
            listen_ms = laps.ms()
            await self._initialize()
            init_ms = laps.ms()
        return ColdStart(
            total_ms=0.0,
            queue_ms=queue_ms,
            image_ms=timings.image_ms,
            slots_ms=timings.slots_ms,
            create_ms=timings.create_ms,
            start_ms=start_ms,
            listen_ms=listen_ms,
            init_ms=init_ms,
            cached=tuple(timings.cached),
            bytes_cached=self.version.image.compressed_bytes if self.version.image else 0,
        )

    async def _build(self, environment: dict[str, str], laps: Laps) -> Timings:
        """Have the container created; its leasing notes it here."""
        order = Order(self.id, self.version, environment, self.sink, self._leased, laps)
        with_why = self._executed(self._ports.builder.build(order))
        return (await with_why)[1]

    async def _run(self) -> Container:
        """Let the created container run."""
        assert self.container is not None
        await self._executed(self._ports.builder.start(self.container))
        return self.container

    async def _executed(self, step: Awaitable[T]) -> T:
        """Return what a step of the builder's does; say why, when its program cannot be run."""
        try:
            return await step
        except RuntimeUnavailable as error:
            why = await self._ports.builder.why_not_executed(self.version)
            if why is None:
                raise
            raise FunctionFailed(why) from error

    async def _listen(self, container: Container) -> None:
        began = asyncio.get_running_loop().time()
        limit_s = self.version.spec.startup_timeout_s or self.contract.limits.start_s
        address, port = container.address, self.contract.port
        try:
            sock = await readiness.connect(
                self._ports.open_socket,
                address,
                port,
                deadline=began + limit_s,
                exited=container.exit,
            )
        except TimeoutError as error:
            waited_s = asyncio.get_running_loop().time() - began
            raise FunctionFailed(failures.nobody_listens(self.scene(waited_s), limit_s)) from error
        if sock is None:
            waited_s = asyncio.get_running_loop().time() - began
            raise FunctionFailed(await self.explain_exit(FailureKind.EXITED_AT_START, waited_s))
        try:
            self.endpoint.idle.append(await self._ports.connector.adopt(sock))
        except BaseException:
            sock.close()
            raise

    async def _initialize(self) -> None:
        hook = self.contract.hook("initialize")
        if hook is None:
            return
        began = asyncio.get_running_loop().time()
        status = await self._hooks.run(hook)
        if 200 <= status < 300:
            return
        waited_s = asyncio.get_running_loop().time() - began
        if status == NO_ANSWER and await self.exits_within(EXIT_S):
            raise FunctionFailed(await self.explain_exit(FailureKind.EXITED_AT_START, waited_s))
        raise FunctionFailed(failures.hook_failed(self.scene(waited_s), hook, status))

    async def exits_within(self, seconds: float) -> bool:
        """Wait a moment for the process to end; says whether it has."""
        if self.container is not None:
            await asyncio.wait({self.container.exit}, timeout=seconds)
        return self.container is not None and self.container.exited

    def _leased(self, container: Container) -> None:
        """Note the slots before the container is made: a successor must find what to give back."""
        self._has(container)
        self._ports.save(self.record_of(container))

    def _has(self, container: Container) -> None:
        self.container = container
        self.meter.figures = container.cgroup
        self.endpoint.address = container.address
        self.calls = self._ports.row(container.slot.number)

    # -- at rest

    def before_freeze(self, hook: Hook) -> asyncio.Task[None]:
        """Make the pre-freeze hook's request, in a task that ends with it or with the instance.

        It counts as a call in the ledger: another worker neither freezes nor calls into it.
        """
        run = self._hooks.run_as_call(hook, lambda: self.calls)
        self._hooking = spawn(f"pre-freeze hook of {self.id}", run)
        return self._hooking

    def freeze(self) -> bool:
        """Let its processes stand still, while no call is on it; False where that cannot be."""
        if self.state is not State.READY or self.handed_over or self.container is None:
            return False
        if not self.container.exited and not self.frozen:
            self.frozen = self.container.cgroup.freeze()
        return self.frozen

    def thaw(self) -> None:
        """Let them go on, before anything is asked of it: one write on a kept descriptor."""
        self.frozen = False
        self.endpoint.keeping.thawed_at = asyncio.get_running_loop().time()
        if self.container is not None and not self.container.cgroup.thaw():
            log.warning("%s cannot be thawed: its control group is gone", self.id)

    # -- down

    async def stop(
        self, *, grace_s: float | None = None, event: LifecycleEvent = LifecycleEvent.STOP_BEGAN
    ) -> None:
        """Run the pre-stop hook, TERM, wait, KILL, and give everything back; once.

        `grace_s` shortens the contract's grace; 0 kills. A second call waits for the first, and
        shortens its grace. When the caller is cancelled the end goes on without it. Not for an
        instance that another task is still starting: cancel that task.
        """
        if self._end is None:
            if not self._life.live:
                return
            self._end = spawn(f"end {self.id}", self._run_end(grace_s, event))
        elif grace_s is not None:
            self._cutoff.at_most(grace_s)
        await asyncio.wait({self._end})

    async def _run_end(self, grace_s: float | None, event: LifecycleEvent) -> None:
        hooked = self.state in (State.READY, State.DRAINING)
        self._happened(event)
        if self.frozen:  # it hears neither the hook nor TERM, and on v1 not even KILL
            self.thaw()
        await stop(self._hooking)
        try:
            self._disown()
            if self.container is not None and self.container.pid and not self.container.exited:
                await self._ending(self.container).run(grace_s, hooked=hooked)
        except Exception:
            log.exception("end of %s", self.id)
        finally:
            self._cutoff.close()
        await self._clear()

    def _ending(self, container: Container) -> Ending:
        stop_signal = self.version.image.stop_signal if self.version.image is not None else ""
        return Ending(
            container, self.contract, self._hooks, stop_signal, self._close_idle, self._cutoff
        )

    async def _clear(self) -> None:
        self._close_idle()
        calls, self.calls = self.calls, no_row()
        calls.clear()  # before its number can be another instance's
        if self.container is not None:
            # The record goes when all of it is gone, which may be later than this.
            await self._ports.builder.destroy(self.container)
        left, spent_s = self.state, self._life.clear(asyncio.get_running_loop().time())
        self._ports.observe(left, spent_s)

    def _close_idle(self) -> None:
        idle, self.endpoint.idle = self.endpoint.idle, []
        for connection in idle:
            connection.close()

    # -- told by others

    def waited_for_pull(self, pull: ImagePull, asked_at: float) -> None:
        """Have its start tell how long it waited for its image, and what of that was fetched."""
        waited_s = pull.waited_s(asked_at)
        if self.cold_start is None or not waited_s:
            return
        fetched = pull.fetched_for(waited_s)
        here = pull.cached_bytes + pull.fetched_bytes - fetched
        self.cold_start = replace(
            self.cold_start, pull_ms=waited_s * 1000, bytes_pulled=fetched, bytes_cached=here
        )
        self._remember()

    def drain_began(self) -> None:
        """Note that it gets no more calls."""
        if self.state in (State.READY, State.STANDBY):
            self._happened(LifecycleEvent.DRAIN_BEGAN)
            if not self.handed_over:
                if self.frozen:
                    self.thaw()
                self._disown()

    def hand_over(self) -> None:
        """Leave it and its output to the next worker, which adopts it by its record."""
        self.handed_over = True
        self._kept = False
        if self.container is not None:
            self.container.leave(lambda: self.calls.inflight > 0)
        self._remember()

    def keep(self) -> None:
        """Have its record say that it stays with this worker as long as that lives."""
        self._kept = True
        self._remember()

    def end_call_at_exit(self) -> None:
        """Count a call until the process is dead, for the next worker to give nobody its place."""
        assert self.container is not None
        calls = self.calls
        self.container.exit.add_done_callback(lambda _: calls.end())

    @property
    def wants_slots(self) -> bool:
        """Whether it is being started and holds no slots yet."""
        return self.container is None and self.state in BEFORE_READY and not self.handed_over

    @property
    def is_ours(self) -> bool:
        """Whether it starts or ends here, or is kept: another worker leaves it alone."""
        return self._life.live and not self.handed_over

    def expected(self, record: InstanceRecord) -> None:
        """Stand for an instance that another worker starts, ends or keeps."""
        self.handed_over = True
        self.created_ns = record.created_ns
        known = {state.value: state for state in State}
        state = known.get(record.state, State.STOPPING)
        self._life = Lifecycle(asyncio.get_running_loop().time(), state)

    def adopted(self, container: Container, record: InstanceRecord) -> None:
        """Take over a running container as READY: the record of the worker before says so."""
        self.handed_over = False
        self._has(container)
        self.cold_start = record.cold_start
        self.created_ns = record.created_ns
        self._life = Lifecycle(asyncio.get_running_loop().time(), State.READY)
        self.frozen = container.cgroup.is_told_to_freeze()  # the file knows, whoever wrote it

    async def explain_exit(self, kind: FailureKind, waited_s: float) -> Failure:
        """Say how the process ended; it has, or is about to. `waited_s` is the call's so far."""
        assert self.container is not None
        how = await asyncio.shield(self.container.exit)
        if kind is FailureKind.EXITED_AT_START and (why := await self.not_executed(how)):
            scene = self.scene(waited_s)
            return scene.failure(why.kind, why.message, exit_code=how.exit_code)
        return failures.exited(self.scene(waited_s), kind, how, self.version.spec.memory_mb)

    async def not_executed(self, how: Exit) -> Failure | None:
        """Say why the program could not be executed, when the exit looks as if it was not."""
        return await self._ports.builder.why_not_executed(self.version, how.exit_code)

    def scene(self, waited_s: float) -> failures.Scene:
        """Return what a failure of this instance tells of it."""
        return failures.Scene(self.endpoint, waited_s, self.quote())

    def cpu_ns(self) -> int:
        """Return the CPU time its cgroup has used so far, nanoseconds; one read of a kept file."""
        return self.container.cgroup.cpu_ns() if self.container is not None else 0

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

    def sink(self, line: OutputLine) -> None:
        """Put a line of the container's output into the function's log."""
        stream = STREAMS.get(line.stream, "stdout")
        text = line.text.decode("utf-8", "replace")
        version = self.version.version
        self._log.append(LogLine(line.time_ns, stream, self.id, version, text, line.split))

    def _happened(self, event: LifecycleEvent) -> None:
        left = self.state
        spent_s = self._life.happened(event, asyncio.get_running_loop().time())
        self._ports.observe(left, spent_s)

    def record_of(self, container: Container) -> InstanceRecord:
        """Return what the next worker needs to adopt this instance."""
        return InstanceRecord(
            id=self.id,
            function=self.version.name,
            version=self.version.version,
            row=container.slot.number,
            network_slot=container.slot.number,
            address=container.address,
            port=self.contract.port,
            layer_kind=container.layer.kind,
            layer_slot=container.layer.number,
            pid=container.pid,
            state=self.state.value,
            created_ns=self.created_ns,
            cold_start=self.cold_start,
            owner=self._ports.worker,
            kept=self._kept,
            source=container.source,
        )

    def _remember(self) -> None:
        """Write its record; what is given back has none any more, and gets none again."""
        if self.container is not None and not self.container.gone:
            self._ports.save(self.record_of(self.container))

    def _disown(self) -> None:
        """Have no successor take it over any more, also when nothing can be written."""
        try:
            self._remember()
        except AgentError as error:
            log.warning("%s; a successor will end it as an orphan", error)
            self._ports.forget(self.id)
