"""The composition root: builds every object once, starts them in order, stops them in reverse.

Runs as `kindling worker`, started by the supervisor inside rootlesskit's namespaces, on uvloop.
Start: doors to the machine open, what is deployed is loaded, what runs is adopted, the rest is
cleared, then the callers' doors open and the supervisor hears READY. SIGTERM drains and stops the
functions; SIGUSR1 makes room for the next worker and leaves the functions running.
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

import uvloop

from agent.aio.tasks import spawn, stop
from agent.cgroups.tree import CgroupTree
from agent.config import NodeConfig
from agent.containerd.client import Containerd
from agent.containerd.containers import RuntimeOptions
from agent.control.server import ControlServer
from agent.errors import AgentError
from agent.functions.deploy import Deployer, Runners, Stores
from agent.functions.fleet import Fleet
from agent.functions.instance import Doors
from agent.functions.job import JobRunner
from agent.functions.reconcile import Reconciler
from agent.functions.registry import Registry
from agent.gateway.admin import AdminDoor
from agent.gateway.server import Gateway
from agent.gateway.upstream import UpstreamConnector
from agent.network.room import Network
from agent.node import LocalNode
from agent.node import Rooms as NodeRooms
from agent.node_facts import NodeFactsView, Watcher, components, memory_for_functions
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
from agent.telemetry.events import Events
from agent.telemetry.logs import Logs
from agent.telemetry.metrics import AgentMetrics

log = logging.getLogger(__name__)

CONTAINERD_S = 20.0
LEDGER_ROWS = 1024  # a bridge has at most 1023 ports, and a row is a network slot's number
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

    def __init__(self, config: NodeConfig) -> None:
        self._config = config
        self._undo = contextlib.AsyncExitStack()
        self._leave = asyncio.get_running_loop().create_future()

    # -- up

    async def run(self, sockets: Mapping[str, socket.socket], notify: int | None) -> None:
        """Start, tell the supervisor, serve until a signal, stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            loop.add_signal_handler(number, self._signalled, number)
        async with self._undo:
            await self._start(sockets)
            if notify is not None:
                os.write(notify, b"READY\n")
                os.close(notify)
            log.info("ready")
            last = await self._leave
            log.info("leaving on %s", signal.Signals(last).name)
            if last == signal.SIGUSR1:
                await self._make_room()
            else:
                await self._stop_functions()

    def _signalled(self, number: int) -> None:
        if not self._leave.done():
            self._leave.set_result(number)

    async def _start(self, sockets: Mapping[str, socket.socket]) -> None:
        config, undo, run = self._config, self._undo, self._config.paths.run
        metrics = AgentMetrics()
        events, logs = Events(), Logs(config.limits.log_bytes)
        functions = await FunctionStore.open(config.paths.data / "kindling.db")
        undo.push_async_callback(functions.close)
        calls = await CallStore.open(config.paths.data / "calls.db", config.limits.calls_kept)
        undo.push_async_callback(calls.close)
        ledger = Ledger.open(run / "ledger", LEDGER_ROWS)
        undo.callback(ledger.close)
        files = InstanceFiles(run / "instances")
        machine = await self._open_machine()
        connector = UpstreamConnector(machine.network.take_socket, machine.network.socket)
        undo.callback(connector.close)
        watcher = Watcher(metrics, events)
        doors = Doors(
            builder=machine.builder,
            connector=connector,
            open_socket=machine.network.socket,
            save=files.save,
            forget=files.remove,
            row=ledger.row,
            observe=watcher.state_left,
        )
        self._fleet = Fleet(
            config, doors, ledger, (watcher,), memory_for_functions(config.limits.memory_mb)
        )
        self._jobs = JobRunner(self._fleet, calls.save)
        self._registry = Registry()
        runners = Runners(self._fleet, self._jobs, machine.builder)
        stores = Stores(functions, calls, machine.containerd, logs, events)
        deployer = Deployer(config, self._registry, runners, stores)
        self._gateway = Gateway(config, self._registry, connector, metrics.calls)
        reconciler = Reconciler(self._registry, deployer, runners, stores, files)
        await reconciler.load()
        with machine.builder.outputs_held():
            await machine.shims.start()
            self._machine = machine
            await reconciler.adopt()
            await reconciler.clear()
        await machine.rootfs.sweep(self._fleet.instances)
        await machine.network.ready()
        await machine.layers.ready()
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
            components=components(config.paths.lib, version("kindling")),
            features=_features(machine, config),
        )
        await self._open_doors(LocalNode(node_rooms), node_rooms, metrics, sockets)

    async def _open_machine(self) -> Machine:
        """Open the doors to containerd, network, storage and cgroups."""
        config, undo, run = self._config, self._undo, self._config.paths.run
        containerd = Containerd(run / "containerd" / "containerd.sock")
        undo.push_async_callback(containerd.close)
        await containerd.ready(asyncio.get_running_loop().time() + CONTAINERD_S)
        network = Network(config.network, run)
        undo.push_async_callback(network.close)
        await network.open()
        layers = WritableLayers(config.storage, config.paths.slots, run)
        undo.push_async_callback(layers.close)
        await layers.open()
        rootfs = RootFilesystems(run)
        cgroups = CgroupTree.load(run, config.node.name)
        options = RuntimeOptions(binary=_runtime(config.runtime.binary), root=run / "runtime")
        shims = Shims(
            containerd,
            options,
            cgroups,
            count=_shim_count(config),
            run=run,
            init=Path(INIT),
        )
        images = Images(containerd)
        rooms = Rooms(containerd, network, layers, rootfs, cgroups, images, shims)
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
        await self._gateway.serve(invoke)
        node.on_serving(control.set_serving)
        await control.set_serving(True)
        self._control = control

    # -- down

    async def _stop_functions(self) -> None:
        """Let calls end, then end every function, all within limits.stop_timeout_s."""
        limit_s = self._config.limits.stop_timeout_s
        self._fleet.draining = True
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

    async def _make_room(self) -> None:
        """Take no new calls, let those in flight end, leave the functions to the next worker."""
        await self._gateway.settle()
        self._fleet.hand_over()
        self._machine.shims.leave()
        # From now on every slot and every record is the next worker's to judge.
        await stop(self._cycle)
        await self._machine.layers.close()
        self._control.leave()
        left = await self._gateway.drain(self._config.limits.stop_timeout_s)
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
    path = Path(os.environ["KINDLING_CONFIG"])
    config = NodeConfig.model_validate_json(path.read_text("utf-8"))
    fds: dict[str, int] = json.loads(os.environ.get("KINDLING_FDS", "{}"))
    sockets = {name: socket.socket(fileno=fd) for name, fd in fds.items()}
    for sock in sockets.values():
        sock.setblocking(False)
    notify = os.environ.get("KINDLING_NOTIFY_FD")

    async def work() -> None:
        await App(config).run(sockets, int(notify) if notify else None)

    try:
        uvloop.run(work())
    except AgentError as error:
        log.error("cannot start: %s", error)  # noqa: TRY400 - one sentence, a trace would hide it
        return 1
    return 0
