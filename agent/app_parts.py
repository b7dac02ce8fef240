"""What the worker's parts are called while `app` puts them together, step by step. Plain values."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from agent.calls.job import JobRunner
from agent.containerd.client import Containerd
from agent.control.server import ControlServer
from agent.deployments.catalog import Catalog
from agent.deployments.deploy import Deployer
from agent.gateway.doors.server import Gateway
from agent.gateway.wire.upstream import UpstreamConnector
from agent.instances.fleet import Fleet
from agent.network.network import Network
from agent.node.facts import Watcher
from agent.node.parts import NodeParts
from agent.recovery.lost_files import LostFiles
from agent.recovery.reconcile import Reconciler
from agent.sandbox.builder import Builder
from agent.sandbox.prepared_images import PreparedImages
from agent.sandbox.shims import Shims
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


@dataclass(frozen=True, slots=True)
class Telemetry:
    """What is noted of everything; the first to be there."""

    metrics: AgentMetrics
    events: Events
    logs: Logs
    watcher: Watcher


@dataclass(frozen=True, slots=True)
class Kept:
    """What outlives a worker, open: on disk, and on tmpfs."""

    functions: FunctionStore
    calls: CallStore
    orders: Orders
    ledger: Ledger
    records: InstanceFiles


@dataclass(frozen=True, slots=True)
class Machine:
    """The doors to the machine, open."""

    containerd: Containerd
    network: Network
    layers: WritableLayers
    rootfs: RootFilesystems
    shims: Shims
    builder: Builder
    images: PreparedImages
    connector: UpstreamConnector


@dataclass(frozen=True, slots=True)
class Services:
    """What runs functions and calls; nothing of it has begun."""

    catalog: Catalog
    fleet: Fleet
    jobs: JobRunner
    deployer: Deployer
    reconciler: Reconciler
    lost_files: LostFiles
    gateway: Gateway
    parts: NodeParts


@dataclass(frozen=True, slots=True)
class Serving:
    """A worker that serves: what its end needs."""

    machine: Machine
    services: Services
    control: ControlServer
    cycles: tuple[asyncio.Task[None], ...]
