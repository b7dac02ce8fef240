"""containerd as the agent sees it: one object, one member per kind of thing.

It owns the channel and hands it to the modules that hold the verbs. It starts nothing and decides
nothing; `agent/sandbox` puts the verbs in order.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from google.protobuf import empty_pb2

from agent._pb.containerd.services.namespaces.v1 import namespace_pb2
from agent._pb.containerd.services.namespaces.v1 import namespace_pb2_grpc as namespace_rpc
from agent._pb.containerd.services.version.v1 import version_pb2_grpc as version_rpc
from agent.containerd.channel import Channel
from agent.containerd.containers import Containers
from agent.containerd.content import Content
from agent.containerd.endpoints import RegistryHosts
from agent.containerd.engine_store import EngineStore
from agent.containerd.images import Images
from agent.containerd.importer import Importer
from agent.containerd.keyring import Keyring
from agent.containerd.lazy import LazyEngines, LazyPlaces
from agent.containerd.leases import Leases
from agent.containerd.sandboxes import Sandboxes
from agent.containerd.snapshots import Snapshots
from agent.containerd.store_limit import StoreLimit
from agent.containerd.store_use import StoreUse
from agent.containerd.tasks import Tasks
from agent.containerd.transfer import Transfer
from agent.containerd.unpack import Unpacker
from agent.errors import AlreadyExists, RuntimeUnavailable

NAMESPACE = "kindling"
LOOK_EVERY_S = 0.05


class Containerd:
    """A containerd behind its unix socket, in one of its namespaces."""

    def __init__(
        self,
        socket: Path,
        namespace: str = NAMESPACE,
        *,
        registries: Path | None = None,
        lazy: LazyPlaces | None = None,
    ) -> None:
        self.channel = Channel(socket, namespace)
        # Beside the socket: on tmpfs, and seen by containerd under the same name.
        self.hosts = RegistryHosts(registries, socket.parent / "registry-hosts")
        self.content = Content(self.channel)
        self.snapshots = Snapshots(self.channel)
        self.images = Images(self.channel, self.content, self.snapshots)
        self.keyring = Keyring()
        self.lazy = LazyEngines(self.channel, lazy, self.keyring)
        self.containers = Containers(self.channel)
        self.tasks = Tasks(self.channel)
        self.sandboxes = Sandboxes(self.channel)
        self.leases = Leases(self.channel)
        self.engine_store = EngineStore(tuple(self.lazy))
        use = StoreUse(self.content, self.snapshots, self.leases, self.engine_store)
        self.limit = StoreLimit(use)
        unpacker = Unpacker(self.channel, self.content, self.snapshots)
        self.transfer = Transfer(
            self.channel, self.images, self.leases, self.hosts, unpacker, self.limit
        )
        self.importer = Importer(self.channel, self.images, self.leases, self.transfer, self.limit)
        self._version = version_rpc.VersionStub(self.channel.grpc)
        self._namespaces = namespace_rpc.NamespacesStub(self.channel.grpc)

    async def ready(self, deadline: float) -> str:
        """Wait until containerd answers; returns its version and makes our namespace.

        `deadline` is the loop's time. Raises RuntimeUnavailable with the last reason.
        """
        version = await self._first_answer(deadline)
        namespace = namespace_pb2.Namespace(name=self.channel.namespace)
        request = namespace_pb2.CreateNamespaceRequest(namespace=namespace)
        with contextlib.suppress(AlreadyExists):
            await self.channel.call(
                self._namespaces.Create, request, "create the namespace", deadline=deadline
            )
        return version

    async def close(self) -> None:
        """Close the connection."""
        await self.channel.close()

    async def _first_answer(self, deadline: float) -> str:
        loop = asyncio.get_running_loop()
        while True:
            try:
                reply = await self.channel.call(
                    self._version.Version,
                    empty_pb2.Empty(),
                    "ask containerd's version",
                    deadline=deadline,
                )
                return str(reply.version)
            except RuntimeUnavailable:
                if loop.time() + LOOK_EVERY_S >= deadline:
                    raise
            await asyncio.sleep(LOOK_EVERY_S)
