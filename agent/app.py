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
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import uvloop

from agent.aio import stacks
from agent.aio.cyclic import Searches
from agent.aio.tasks import spawn, stop
from agent.app_parts import Kept, Machine, Services, Serving, Telemetry
from agent.calls.job import JobRunner
from agent.cgroups.tree import CgroupTree
from agent.config import NodeConfig
from agent.containerd import scratch
from agent.containerd.client import Containerd
from agent.containerd.containers import RuntimeOptions
from agent.containerd.lazy import LazyPlaces
from agent.contracts.bind import bind
from agent.control.health import Health
from agent.control.server import ControlServer
from agent.core.eviction import Idle
from agent.core.mode import NodeMode
from agent.deployments.catalog import Catalog
from agent.deployments.deploy import Deployer, Runners, Stores, node_facts
from agent.deployments.lazy_image import LazyImages
from agent.errors import AgentError
from agent.gateway.doors.admin import AdminDoor
from agent.gateway.doors.server import Gateway
from agent.gateway.wire.upstream import UpstreamConnector
from agent.instances.admission import Admission, Bounds
from agent.instances.capacity_queue import CapacityQueue
from agent.instances.eviction import Eviction, Retire
from agent.instances.fleet import Fleet
from agent.instances.freezing import Freezing
from agent.instances.handover import hand_over, starts_have_slots, unsettled
from agent.instances.permits import StartPermits
from agent.instances.ports import InstancePorts
from agent.instances.standby_share import StandbyShare
from agent.instances.timer import Timer
from agent.network.network import Network
from agent.node.facts import NodeFactsView, Watcher, components, memory_for_functions
from agent.node.image_collector import collector_of
from agent.node.images import IMPORTS
from agent.node.local import LocalNode
from agent.node.parts import NodeParts
from agent.node.supervisor import SupervisorPipes
from agent.recovery.lost_files import LostFiles
from agent.recovery.reconcile import Reconciler
from agent.rootless import protocol
from agent.rootless.installed import init_path
from agent.sandbox.backends import Backends
from agent.sandbox.builder import Builder
from agent.sandbox.prepared_images import PreparedImages
from agent.sandbox.shims import Shims
from agent.storage import sysfs
from agent.storage.rootfs import RootFilesystems
from agent.storage.slots import WritableLayers
from agent.store.calls import CallStore
from agent.store.functions import FunctionStore
from agent.store.instances import InstanceFiles
from agent.store.ledger import Ledger
from agent.store.orders import Orders
from agent.telemetry.events import Events
from agent.telemetry.logs import Logs
from agent.telemetry.metrics import AgentMetrics

log = logging.getLogger(__name__)

CONTAINERD_S = 20.0
LEDGER = "ledger"
LEDGER_ROWS = 1024  # a bridge has at most 1023 ports, and a row is a network slot's number
SLOTS_S = 3.0  # for starts that have not got their slots yet when the next worker comes
FINISH_LOOK_S = 0.05
FUNCTIONS = "kindling.db"
CALLS = "calls.db"
ORDERS = "orders.json"
DRAIN_SHARE = 0.4  # of the time to stop: calls in flight may end
GRACE_SHARE = 0.3  # of the time to stop: functions may end after TERM
SHIMS_PER_CORE = 2


class App:
    """One worker."""

    def __init__(self, config: NodeConfig, supervisor: SupervisorPipes) -> None:
        self._config = config
        self._supervisor = supervisor
        self._undo = contextlib.AsyncExitStack()
        self._asked = asyncio.Event()
        self._mode = NodeMode()
        self._stopping: int | None = None
        self._searches = Searches()
        self._searches.begin()

    async def run(self, sockets: Mapping[str, socket.socket]) -> None:
        """Prepare, take over when told, serve until a signal or the next worker, stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        stacks.print_on_signal(loop)
        supervisor = self._supervisor
        async with self._undo:
            containerd = await self._prepare()
            supervisor.tell(protocol.PREPARED)
            await self._first(supervisor.go)
            if self._stopping is not None:
                return
            serving = await self._take_over(containerd, sockets)
            supervisor.tell(protocol.READY)
            log.info("ready")
            await self._first(supervisor.hand_over)
            if self._stopping is not None:
                log.info("leaving on %s", signal.Signals(self._stopping).name)
                await self._stop_functions(serving)
            else:
                await self._hand_over(serving, sockets.get("passing_out"))

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

    # -- up

    async def _prepare(self) -> Containerd:
        """Load all that a worker needs, and try what can be tried, without touching what runs.

        What cannot work shows here, while the worker before still serves.
        """
        config = self._config
        paths, ask = config.paths, self._supervisor.ask_engine
        lazy = LazyPlaces(config.lazy.engines, paths.run, paths.data, paths.lib, ask)
        socket = paths.run / "containerd" / "containerd.sock"
        registries = config.registries.directory
        containerd = Containerd(socket, registries=registries, lazy=lazy)
        self._undo.push_async_callback(containerd.close)
        await containerd.ready(asyncio.get_running_loop().time() + CONTAINERD_S)
        CgroupTree.load(config.paths.run, config.node.name)
        _runtime(config.runtime.binary)
        Ledger.check_room(config.paths.run / LEDGER, LEDGER_ROWS)
        facts = node_facts(config)
        for function in await FunctionStore.peek(config.paths.data / FUNCTIONS):
            for one in function.versions:
                if one.image is not None:
                    bind(one, facts)
        return containerd

    async def _take_over(
        self, containerd: Containerd, sockets: Mapping[str, socket.socket]
    ) -> Serving:
        """Become the worker of this node. Each step takes what those before it have returned."""
        # 1. what is noted, and what outlives a worker
        telemetry = self._open_telemetry()
        kept = await self._open_kept()
        # 2. the doors to the machine; nothing is given out yet
        machine = await self._open_machine(containerd, kept)
        # 3. every object, once
        services = self._make_services(telemetry, kept, machine)
        # 4. what runs is adopted, the rest is cleared; only then are slots given out
        await self._recover(machine, services)
        # 5. what goes on by itself
        cycles = self._begin(services)
        # 6. the doors for others
        control = await self._open_doors(services.parts, telemetry.metrics, sockets)
        return Serving(machine, services, control, cycles)

    def _open_telemetry(self) -> Telemetry:
        limits = self._config.limits
        metrics, events = AgentMetrics(), Events()
        logs = Logs(limits.log_bytes, limits.logs_bytes)
        logs.report_to(metrics)
        metrics.lag.start()
        self._undo.callback(metrics.lag.stop)
        return Telemetry(metrics, events, logs, Watcher(metrics, events))

    async def _open_kept(self) -> Kept:
        config, undo, run = self._config, self._undo, self._config.paths.run
        orders = Orders(config.paths.data / ORDERS)
        if orders.drained():
            log.warning("drained by an operator's order: 'kindling undrain' takes calls again")
            self._mode.drain()
        functions = await FunctionStore.open(config.paths.data / FUNCTIONS)
        undo.push_async_callback(functions.close)
        calls = await CallStore.open(config.paths.data / CALLS, config.limits.calls_kept)
        undo.push_async_callback(calls.close)
        ledger = Ledger.open(run / LEDGER, LEDGER_ROWS)
        undo.callback(ledger.close)
        return Kept(functions, calls, orders, ledger, InstanceFiles(run / "instances"))

    async def _open_machine(self, containerd: Containerd, kept: Kept) -> Machine:
        """Open the doors to network, storage and cgroups."""
        config, undo, run = self._config, self._undo, self._config.paths.run
        network = Network(config.network, run)
        undo.push_async_callback(network.close)
        await network.open()
        layers = WritableLayers(config.storage, config.paths.slots, run)
        undo.push_async_callback(layers.close)
        await layers.open()
        rootfs = RootFilesystems(run)
        await sysfs.provide(run)
        cgroups = CgroupTree.load(run, config.node.name)
        runtime = _runtime(config.runtime.binary)
        options = RuntimeOptions(binary=runtime, root=run / "runtime")
        count = _shim_count(config)
        shims = Shims(containerd, options, cgroups, count=count, run=run, init=init_path())
        images = PreparedImages(containerd)
        forget = kept.records.remove
        rooms = Backends(containerd, network, layers, rootfs, cgroups, images, shims, forget)
        builder = Builder(config, rooms, options)
        connector = UpstreamConnector(network.take_socket, network.socket)
        undo.callback(connector.close)
        return Machine(containerd, network, layers, rootfs, shims, builder, images, connector)

    def _make_services(self, telemetry: Telemetry, kept: Kept, machine: Machine) -> Services:
        config, mode = self._config, self._mode
        events, logs = telemetry.events, telemetry.logs
        catalog = Catalog()
        telemetry.watcher.count_pulls(catalog.image_use)
        fleet = self._make_fleet(catalog, self._ports(telemetry, kept, machine), telemetry.watcher)
        telemetry.watcher.count_standbys(lambda: fleet.admission.standbys)
        jobs = JobRunner(fleet, kept.calls.save)
        runners = Runners(fleet, jobs, machine.builder)
        use = catalog.image_use
        lazy = LazyImages(config.lazy, machine.containerd, machine.images, events, use)
        stores = Stores(kept.functions, kept.calls, machine.containerd, lazy, logs, events)
        deployer = Deployer(config, catalog, runners, stores)
        self._undo.push_async_callback(deployer.leave)
        gateway = Gateway(config, catalog, machine.connector, telemetry.metrics.calls)
        reconciler = Reconciler(catalog, deployer, runners, stores, kept.records, kept.ledger)
        machine.containerd.leases.worker = kept.ledger.generation
        living = reconciler.others.living
        collector = collector_of(
            config, machine.containerd, machine.images, catalog, fleet.admission, living
        )
        collector.gone = lazy.gone
        parts = NodeParts(
            config=config,
            containerd=machine.containerd,
            collector=collector,
            lazy=lazy,
            layers=machine.layers,
            catalog=catalog,
            deployer=deployer,
            runners=runners,
            reconciler=reconciler,
            gateway=gateway,
            calls=kept.calls,
            events=events,
            logs=logs,
            mode=mode,
            orders=kept.orders,
            reload=self._supervisor.ask_reload,
            components=components(config.paths.lib, version("kindling")),
        )
        lost = LostFiles(fleet, catalog, stores, config.lazy.stuck_after_s)
        return Services(catalog, fleet, jobs, deployer, reconciler, lost, gateway, parts)

    def _ports(self, telemetry: Telemetry, kept: Kept, machine: Machine) -> InstancePorts:
        return InstancePorts(
            builder=machine.builder,
            connector=machine.connector,
            open_socket=machine.network.socket,
            save=kept.records.save,
            forget=kept.records.remove,
            worker=kept.ledger.generation,
            row=kept.ledger.row,
            mode=self._mode,
            observe=telemetry.watcher.state_left,
        )

    def _make_fleet(self, catalog: Catalog, ports: InstancePorts, watcher: Watcher) -> Fleet:
        config, now = self._config, time.monotonic  # the loop's own clock ticks in whole ms
        bounds = Bounds(config.runtime.max_instances, memory_for_functions(config.limits.memory_mb))

        def idle(now: float) -> Iterator[Idle[Retire]]:
            for target in catalog.targets():
                yield from target.scaling.idle(now)

        room = CapacityQueue(now)
        admission = Admission(bounds, ports, room, (watcher, catalog.image_use))
        eviction = Eviction(admission, room, self._mode, now, idle)
        permits = StartPermits(config.runtime.parallel_starts)
        freezing = Freezing(now, self._mode, watcher.instance_frozen)
        self._undo.push_async_callback(freezing.close)
        share = StandbyShare(config.standby)
        fleet = Fleet(now, self._mode, admission, eviction, Timer(now), freezing, permits, share)
        watcher.count_frozen(fleet)
        return fleet

    async def _recover(self, machine: Machine, services: Services) -> None:
        reconciler, builder = services.reconciler, machine.builder
        await reconciler.load()
        await services.parts.collector.load()
        with builder.outputs_held():
            await machine.shims.start()
            probing = spawn("probe of exec.fifo", builder.exec_fifo.probe(machine.shims))
            self._undo.push_async_callback(stop, probing)
            await reconciler.adopt()
            await reconciler.clear()
        await machine.rootfs.sweep(builder.known(services.fleet.admission.instances))
        await machine.network.ready()
        await machine.layers.ready()
        await asyncio.to_thread(scratch.sweep, self._config.paths.data / IMPORTS)
        await asyncio.to_thread(machine.containerd.hosts.sweep)
        await probing

    def _begin(self, services: Services) -> tuple[asyncio.Task[None], ...]:
        timer = spawn("timer", services.fleet.timer.run(services.catalog.targets))
        cycle = spawn("control cycle", services.reconciler.run())
        collecting = spawn("image collection", services.parts.collector.run())
        lost = spawn("lost files", services.lost_files.run())
        engines = services.parts.containerd.lazy
        files = [spawn(f"credentials of {one.name}", one.credentials.run()) for one in engines]
        gateway = services.gateway
        searching = self._searches.now_and_then(lambda: not gateway.calls_running)
        rings = spawn("cyclic garbage", searching)
        self._undo.push_async_callback(stop, timer, cycle, collecting, lost, rings, *files)
        return cycle, collecting

    async def _open_doors(
        self, parts: NodeParts, metrics: AgentMetrics, sockets: Mapping[str, socket.socket]
    ) -> ControlServer:
        undo, config = self._undo, self._config
        health = Health()
        control = ControlServer(
            LocalNode(parts, health), health, config.paths.run, config.grpc.max_connections
        )
        undo.push_async_callback(control.stop, 1.0)
        await control.start(sockets.get("grpc_admin"), sockets.get("grpc_readonly"))
        admin = AdminDoor(NodeFactsView(parts), metrics)
        undo.push_async_callback(admin.close)
        await admin.serve(unix=sockets.get("admin_unix"), tcp=sockets.get("admin_tcp"))
        invoke = [sockets[name] for name in ("invoke_tcp", "invoke_unix") if name in sockets]
        undo.push_async_callback(parts.gateway.close)
        await parts.gateway.serve(invoke, sockets.get("passing_in"))
        await health.set(serving=self._mode.takes_calls)
        return control

    # -- down

    async def _stop_functions(self, serving: Serving) -> None:
        """Let calls end, then end every function, all within limits.stop_timeout_s."""
        limit_s = self._config.limits.stop_timeout_s
        services, gateway = serving.services, serving.services.gateway
        self._mode.stop()
        await serving.control.health.set(serving=False)
        serving.control.leave()
        left = await gateway.drain(limit_s * DRAIN_SHARE)
        if left:
            log.warning("%d calls are cut off: they did not end in time", left)
        await gateway.close()
        grace_s = limit_s * GRACE_SHARE
        ends = [target.stop(grace_s=grace_s) for target in services.catalog.targets()]
        done = await asyncio.gather(
            services.jobs.stop_all(grace_s=grace_s), *ends, return_exceptions=True
        )
        for error in done:
            if error is not None:
                log.error("a function was not ended in order", exc_info=error)
        await serving.machine.shims.stop()

    async def _hand_over(self, serving: Serving, passing: socket.socket | None) -> None:
        """Leave the node to the next worker, then finish what is in flight here."""
        machine, services = serving.machine, serving.services
        # From now on what nobody here starts or ends is the next worker's to judge. Calls are still
        # taken: what the cycle is about to end may take a while.
        await stop(*serving.cycles)
        services.parts.collector.active = False
        await services.deployer.leave()
        serving.control.leave()
        services.gateway.hand_over(passing)
        for target in services.catalog.targets():
            await target.scaling.standbys.leave()
        if not await starts_have_slots(services.fleet, SLOTS_S):
            for target in services.catalog.targets():
                await target.scaling.give_up_starts()
        hand_over(services.fleet, services.jobs.kept())
        await services.deployer.stored()
        machine.shims.leave()
        await machine.layers.close()
        await machine.network.leave()
        self._supervisor.tell(protocol.HANDED_OVER)
        log.info("handed over with %d calls in flight", services.gateway.calls_running)
        await self._finish_calls(services)

    async def _finish_calls(self, services: Services) -> None:
        """Wait for the end of all that is left here, each within its own limit, or for TERM."""
        gateway = services.gateway
        while gateway.connections or gateway.calls_running or unsettled(services.fleet):
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
        supervisor = SupervisorPipes.from_environment()
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
