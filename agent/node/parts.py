"""Everything that questions about the node are about, as one value; built by `agent/app.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agent.config import NodeConfig
from agent.containerd.client import Containerd
from agent.core.mode import NodeMode
from agent.deployments.catalog import Catalog
from agent.deployments.deploy import Deployer, Runners
from agent.deployments.lazy_image import LazyImages
from agent.gateway.doors.server import Gateway
from agent.node.image_collector import ImageCollector
from agent.recovery.reconcile import Reconciler
from agent.storage.slots import WritableLayers
from agent.store.calls import CallStore
from agent.store.orders import Orders
from agent.telemetry.events import Events
from agent.telemetry.logs import Logs


@dataclass(frozen=True, slots=True)
class NodeParts:
    """Everything the door's questions are about."""

    config: NodeConfig
    containerd: Containerd
    collector: ImageCollector
    lazy: LazyImages
    layers: WritableLayers
    catalog: Catalog
    deployer: Deployer
    runners: Runners
    reconciler: Reconciler
    gateway: Gateway
    calls: CallStore
    events: Events
    logs: Logs
    mode: NodeMode
    orders: Orders
    reload: Callable[[], None]
    components: dict[str, str]
