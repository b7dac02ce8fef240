"""The composition root: builds every object once, starts them in order, stops them in reverse.

Runs as `kindling worker`, started by the supervisor inside rootlesskit's namespaces, on uvloop.
A start has two halves, so that a release that cannot start is no outage. The first loads and tries
everything and changes nothing; the second begins when the supervisor says so: doors to the machine
open, what runs is adopted, the rest is cleared, then the callers' doors open. SIGTERM drains and
stops the functions. A hand-over leaves them, idle connections and waiting calls to the next worker;
calls in flight end here, however long they take. The words are `agent/rootless/protocol.py`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import uvloop

from agent.aio import stacks
from agent.aio.tasks import spawn, stop
from agent.cgroups.tree import CgroupTree
from agent.config import NodeConfig
from agent.containerd import scratch
from agent.containerd.client import Containerd
from agent.containerd.containers import RuntimeOptions
from agent.contracts.bind import bind
from agent.control.server import ControlServer
from agent.core.mode import NodeMode
from agent.errors import AgentError
from agent.functions.deploy import Deployer, Runners, Stores, node_facts
from agent.functions.fleet import Fleet
from agent.functions.instance import Doors
from agent.functions.job import JobRunner
from agent.functions.reconcile import Reconciler
from agent.functions.registry import Registry
from agent.gateway.doors.admin import AdminDoor
from agent.gateway.doors.server import Gateway
from agent.gateway.wire.upstream import UpstreamConnector
from agent.network.room import Network
from agent.node import LocalNode
from agent.node import Rooms as NodeRooms
from agent.node_facts import NodeFactsView, Watcher, components, memory_for_functions
from agent.node_images import IMPORTS
from agent.rootless import protocol
from agent.sandbox.blueprint import INIT
from agent.sandbox.builder import Builder
from agent.sandbox.images import Images
from agent.sandbox.rooms import Rooms
from agent.sandbox.shims import Shims
from agent.storage.rootfs import RootFilesystems
from agent.storage.slots import WritableLayers
from agent.store.calls import CallStore
from agent.store.functions import FunctionStore
from agent.store.instances import InstanceFiles
from agent.store.ledger import Ledger
from agent.store.orders import Orders
from agent.supervisor import Supervisor
from agent.telemetry.events import Events
from agent.telemetry.logs import Logs
from agent.telemetry.metrics import AgentMetrics

log = logging.getLogger(__name__)

CONTAINERD_S = 20.0
LEDGER_ROWS = 1024  # a bridge has at most 1023 ports, and a row is a network slot's number
SLOTS_S = 3.0  # for starts that have not got their slots yet when the next worker comes
FINISH_LOOK_S = 0.05
FUNCTIONS = "kindling.db"
ORDERS = "orders.json"
DRAIN_SHARE = 0.4  # of the time to stop: calls in flight may end
GRACE_SHARE = 0.3  # of the time to stop: functions may end after TERM
SHIMS_PER_CORE = 2


@dataclass(slots=True)
class Machine:
    """The doors to the machine, open."""

    containerd: Containerd
    network: Network
    layers: WritableLayers
    rootfs: RootFilesystems
    shims: Shims
    builder: Builder
    images: Images


class App:
    """One worker."""

    def __init__(self, config: NodeConfig, supervisor: Supervisor) -> None:
        self._config = config
        self._supervisor = supervisor
        self._undo = contextlib.AsyncExitStack()
        self._asked = asyncio.Event()
        self._mode = NodeMode()
        self._stopping: int | None = None

    # -- up

    async def run(self, sockets: Mapping[str, socket.socket]) -> None:
        """Prepare, take over when told, serve until a signal or the next worker, stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        stacks.print_on_signal(loop)
        supervisor = self._supervisor
        async with self._undo:
            await self._prepare()
            supervisor.tell(protocol.PREPARED)
            await self._first(supervisor.go)
            if self._stopping is not None:
                return
            await self._take_over(sockets)
            supervisor.tell(protocol.READY)
            log.info("ready")
            await self._first(supervisor.hand_over)
            if self._stopping is not None:
                log.info("leaving on %s", signal.Signals(self._stopping).name)
                await self._stop_functions()
            else:
                await self._hand_over(sockets.get("passing_out"))

    def _signalled(self, number: int) -> None:
        self._stopping = number
        self._asked.set()

    async def _first(self, order: asyncio.Future[None]) -> None:
        """Wait for an order of the supervisor's, or for a signal to stop."""
        asked = spawn("wait for a signal", self._asked.wait())
        either: set[asyncio.Future[Any]] = {order, asked}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await stop(asked)

    async def _prepare(self) -> None:
        """Load all that a worker needs, and try what can be tried, without touching what runs.

        What cannot work shows here, while the worker before still serves.
        """
        config = self._config
        self._containerd = Containerd(config.paths.run / "containerd" / "containerd.sock")
        self._undo.push_async_callback(self._containerd.close)
        await self._containerd.ready(asyncio.get_running_loop().time() + CONTAINERD_S)
        CgroupTree.load(config.paths.run, config.node.name)
        self._runtime = _runtime(config.runtime.binary)
        facts = node_facts(config)
        for function in await FunctionStore.peek(config.paths.data / FUNCTIONS):
            for one in function.versions:
                if one.image is not None:
                    bind(one, facts)

    async def _take_over(self, sockets: Mapping[str, socket.socket]) -> None:
        """Become the worker of this node: adopt what runs, clear the rest, open the doors."""
        config, undo, run = self._config, self._undo, self._config.paths.run
        metrics = AgentMetrics()
        events, logs = Events(), Logs(config.limits.log_bytes, config.limits.logs_bytes)
        logs.report_to(metrics)
        metrics.lag.start()
        undo.callback(metrics.lag.stop)
        orders = Orders(config.paths.data / ORDERS)
        if orders.drained():
            log.warning("drained by an operator's order: 'kindling undrain' takes calls again")
            self._mode.drain()
        functions = await FunctionStore.open(config.paths.data / FUNCTIONS)
        undo.push_async_callback(functions.close)
        calls = await CallStore.open(config.paths.data / "calls.db", config.limits.calls_kept)
        undo.push_async_callback(calls.close)
        ledger = Ledger.open(run / "ledger", LEDGER_ROWS)
        undo.callback(ledger.close)
        files = InstanceFiles(run / "instances")
        machine = await self._open_machine(files)
        connector = UpstreamConnector(machine.network.take_socket, machine.network.socket)
        undo.callback(connector.close)
        watcher = Watcher(metrics, events)
        self._fleet = self._new_fleet(machine, connector, files, ledger, watcher)
        self._jobs = JobRunner(self._fleet, calls.save)
        self._registry = Registry()
        runners = Runners(self._fleet, self._jobs, machine.builder)
        stores = Stores(functions, calls, machine.containerd, logs, events)
        deployer = Deployer(config, self._registry, runners, stores)
        self._gateway = Gateway(config, self._registry, connector, metrics.calls)
        reconciler = Reconciler(self._registry, deployer, runners, stores, files, ledger)
        await reconciler.load()
        with machine.builder.outputs_held():
            await machine.shims.start()
            self._machine = machine
            await reconciler.adopt()
            await reconciler.clear()
        await machine.rootfs.sweep(machine.builder.known(self._fleet.instances))
        await machine.network.ready()
        await machine.layers.ready()
        await asyncio.to_thread(scratch.sweep, config.paths.data / IMPORTS)
        timer = spawn("timer", self._fleet.run_timer(self._registry.targets))
        self._cycle = spawn("control cycle", reconciler.run())
        undo.push_async_callback(stop, timer, self._cycle)
        node_rooms = NodeRooms(
            config=config,
            containerd=machine.containerd,
            images=machine.images,
            layers=machine.layers,
            registry=self._registry,
            deployer=deployer,
            runners=runners,
            reconciler=reconciler,
            gateway=self._gateway,
            calls=calls,
            events=events,
            logs=logs,
            mode=self._mode,
            orders=orders,
            reload=self._supervisor.ask_reload,
            components=components(config.paths.lib, version("kindling")),
            features=_features(machine, config),
        )
        await self._open_doors(LocalNode(node_rooms), node_rooms, metrics, sockets)

    def _new_fleet(
        self,
        machine: Machine,
        connector: UpstreamConnector,
        files: InstanceFiles,
        ledger: Ledger,
        watcher: Watcher,
    ) -> Fleet:
        doors = Doors(
            builder=machine.builder,
            connector=connector,
            open_socket=machine.network.socket,
            save=files.save,
            forget=files.remove,
            worker=ledger.generation,
            row=ledger.row,
            mode=self._mode,
            observe=watcher.state_left,
        )
        memory_bytes = memory_for_functions(self._config.limits.memory_mb)
        return Fleet(self._config, doors, self._mode, (watcher,), memory_bytes)

    async def _open_machine(self, files: InstanceFiles) -> Machine:
        """Open the doors to network, storage and cgroups."""
        config, undo, run = self._config, self._undo, self._config.paths.run
        containerd = self._containerd
        network = Network(config.network, run)
        undo.push_async_callback(network.close)
        await network.open()
        layers = WritableLayers(config.storage, config.paths.slots, run)
        undo.push_async_callback(layers.close)
        await layers.open()
        rootfs = RootFilesystems(run)
        cgroups = CgroupTree.load(run, config.node.name)
        options = RuntimeOptions(binary=self._runtime, root=run / "runtime")
        shims = Shims(
            containerd,
            options,
            cgroups,
            count=_shim_count(config),
            run=run,
            init=Path(INIT),
        )
        images = Images(containerd)
        rooms = Rooms(containerd, network, layers, rootfs, cgroups, images, shims, files.remove)
        builder = Builder(config, rooms, options)
        return Machine(containerd, network, layers, rootfs, shims, builder, images)

    async def _open_doors(
        self,
        node: LocalNode,
        rooms: NodeRooms,
        metrics: AgentMetrics,
        sockets: Mapping[str, socket.socket],
    ) -> None:
        undo = self._undo
        control = ControlServer(node, self._config.paths.run, self._config.grpc.max_connections)
        undo.push_async_callback(control.stop, 1.0)
        await control.start(sockets.get("grpc_admin"), sockets.get("grpc_readonly"))
        admin = AdminDoor(NodeFactsView(rooms), metrics)
        undo.push_async_callback(admin.close)
        await admin.serve(unix=sockets.get("admin_unix"), tcp=sockets.get("admin_tcp"))
        invoke = [sockets[name] for name in ("invoke_tcp", "invoke_unix") if name in sockets]
        undo.push_async_callback(self._gateway.close)
        await self._gateway.serve(invoke, sockets.get("passing_in"))
        node.on_serving(control.set_serving)
        await control.set_serving(self._mode.takes_calls)
        self._control = control

    # -- down

    async def _stop_functions(self) -> None:
        """Let calls end, then end every function, all within limits.stop_timeout_s."""
        limit_s = self._config.limits.stop_timeout_s
        self._mode.stop()
        await self._control.set_serving(False)
        self._control.leave()
        left = await self._gateway.drain(limit_s * DRAIN_SHARE)
        if left:
            log.warning("%d calls are cut off: they did not end in time", left)
        await self._gateway.close()
        grace_s = limit_s * GRACE_SHARE
        ends = [target.stop(grace_s=grace_s) for target in self._registry.targets()]
        done = await asyncio.gather(
            self._jobs.stop_all(grace_s=grace_s), *ends, return_exceptions=True
        )
        for error in done:
            if error is not None:
                log.error("a function was not ended in order", exc_info=error)
        await self._machine.shims.stop()

    async def _hand_over(self, passing: socket.socket | None) -> None:
        """Leave the node to the next worker, then finish what is in flight here."""
        self._control.leave()
        self._gateway.hand_over(passing)
        # From now on what nobody here starts or ends is the next worker's to judge.
        await stop(self._cycle)
        if not await self._fleet.starts_have_slots(SLOTS_S):
            for target in self._registry.targets():
                target.scaling.give_up_starts()
        self._fleet.hand_over(self._jobs.kept())
        machine = self._machine
        machine.shims.leave()
        await machine.layers.close()
        await machine.network.leave()
        self._supervisor.tell(protocol.HANDED_OVER)
        log.info("handed over with %d calls in flight", self._gateway.calls_running)
        await self._finish_calls()

    async def _finish_calls(self) -> None:
        """Wait for the end of all that is left here, each within its own limit, or for TERM."""
        gateway, fleet = self._gateway, self._fleet
        while gateway.connections or gateway.calls_running or fleet.unsettled:
            gateway.pass_on()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FINISH_LOOK_S):
                    await self._asked.wait()
                break
        within_s = self._config.limits.stop_timeout_s * DRAIN_SHARE
        left = await gateway.drain(within_s if self._stopping is not None else 0.0)
        log.info("made room with %d calls left", left)


def _runtime(binary: str) -> str:
    """Return the OCI runtime's path: the one that is named, or crun before runc."""
    names = ("crun", "runc") if binary == "auto" else (binary,)
    for name in names:
        path = shutil.which(name)
        if path is not None:
            return path
    raise SystemExit(f"worker: no OCI runtime found ({' or '.join(names)}): run setup/host.sh")


def _shim_count(config: NodeConfig) -> int:
    if not config.runtime.anchored:
        return 0
    return config.runtime.shims or SHIMS_PER_CORE * max(1, len(os.sched_getaffinity(0)))


def _features(machine: Machine, config: NodeConfig) -> tuple[str, ...]:
    found = ["anchored_shims"] if machine.shims.anchored else []
    found.append("quota_slots" if config.storage.writable == "slots" else "tmpfs_layers")
    return tuple(found)


def main() -> int:
    """Run the worker with what the supervisor handed over; returns the exit status."""
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s worker %(levelname)s %(name)s: %(message)s",
    )
    path = Path(os.environ[protocol.CONFIG_VARIABLE])
    config = NodeConfig.model_validate_json(path.read_text("utf-8"))
    fds: dict[str, int] = json.loads(os.environ.get(protocol.FDS_VARIABLE, "{}"))
    sockets = {name: socket.socket(fileno=fd) for name, fd in fds.items()}
    for sock in sockets.values():
        sock.setblocking(False)

    async def work() -> int:
        supervisor = Supervisor.from_environment()
        try:
            await App(config, supervisor).run(sockets)
        except AgentError as error:
            log.error("cannot go on: %s", error)  # noqa: TRY400 - one sentence is enough
            supervisor.tell(protocol.FAILED, error.message)
            return 1
        except Exception as error:
            log.exception("cannot go on")
            supervisor.tell(protocol.FAILED, repr(error))
            return 1
        finally:
            supervisor.close()
        return 0

    return uvloop.run(work())
