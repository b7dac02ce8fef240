"""Serves worker.v1 on the supervisor's sockets: two gRPC servers behind two pumps.

Each worker has a private directory below `<run>` for the sockets that grpcio listens on, so that
the one that goes and the one that comes do not meet. Health and reflection are served on both
doors. What the calls do is in `service.py` and its verbs.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Literal

import grpc.aio
from grpc_health.v1 import health as health_names
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from agent._pb.worker.v1.worker_pb2_grpc import add_WorkerServicer_to_server
from agent.control.health import Health
from agent.control.node import Node
from agent.control.pump import Pump
from agent.control.readonly import ReadOnly
from agent.control.service import NAME, WorkerService
from agent.errors import FailedPrecondition
from agent.linux import trees

log = logging.getLogger(__name__)

PREFIX = "grpc-"
Authority = Literal["admin", "readonly"]

# The largest request body of any contract is 32 MB; its head and our own fields come on top.
MESSAGE_BYTES = 40 << 20
# Open streams count as well: a few hundred watchers and as many calls.
CONCURRENT_RPCS = 1024
# In this time a caller has heard that it should go, and the last reply has gone out. A client may
# keep its connection for as long as it remembers a finished call.
SETTLE_S = 0.25
STEP_S = 0.01
REMOVE_S = 5.0  # a socket or two
# struct sockaddr_un holds 108 bytes with the NUL (unix(7)).
_MAX_UNIX_PATH = 107

OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),
)


class ControlServer:
    """The scheduler's door. Start it once; stop it once."""

    def __init__(self, node: Node, health: Health, run: Path, max_connections: int) -> None:
        self._service = WorkerService(node)
        self._run = run
        self._max_connections = max_connections
        self.health = health
        self._servers: list[grpc.aio.Server] = []
        self._pumps: list[Pump] = []
        self._private: Path | None = None

    def __repr__(self) -> str:
        """Return the state of both doors."""
        return f"<ControlServer {self._pumps}>"

    async def start(self, admin: socket.socket | None, readonly: socket.socket | None) -> None:
        """Serve on the given listening sockets; they stay the caller's and are never closed.

        Raises FailedPrecondition when the private sockets cannot be made. Health says NOT_SERVING
        until told otherwise.
        """
        sweep(self._run)
        await self.health.set(serving=False)
        async with AsyncExitStack() as undo:
            undo.push_async_callback(self.stop, 0.0)
            self._private = self._private_directory()
            for door, listener in (("admin", admin), ("readonly", readonly)):
                if listener is not None:
                    await self._open("admin" if door == "admin" else "readonly", listener)
            undo.pop_all()
        for pump in self._pumps:
            pump.start()

    def stop_accepting(self) -> None:
        """Leave new connections to another worker; on those that are open calls go on."""
        for pump in self._pumps:
            pump.stop_accepting()

    def leave(self) -> None:
        """Send callers to another worker: new ones at once, connected ones with their next call.

        Calls and streams that are open go on until `stop`.
        """
        for pump in self._pumps:
            pump.leave()

    async def stop(self, grace_s: float) -> None:
        """End: calls and streams in flight have `grace_s` seconds, then they are cancelled."""
        self.leave()
        await self.health.end()
        servers, pumps = self._servers, self._pumps
        self._servers, self._pumps = [], []
        # Only then grpcio: what comes in while it shuts down it cancels.
        await self._calm(pumps, grace_s)
        await asyncio.gather(*(server.stop(0.0) for server in servers))
        await asyncio.gather(*(pump.close() for pump in pumps))
        if self._private is not None:
            trees.remove(self._private, within_s=REMOVE_S)
            self._private = None

    async def _calm(self, pumps: list[Pump], within_s: float) -> None:
        """Wait until callers have gone, or nothing has been in flight for a while."""
        now = asyncio.get_running_loop().time
        deadline, busy_at = now() + within_s, now()
        while any(pump.links for pump in pumps) and now() < deadline:
            if self._service.active:
                busy_at = now()
            elif now() - busy_at >= SETTLE_S:
                return
            await asyncio.sleep(STEP_S)

    def _private_directory(self) -> Path:
        try:
            return Path(tempfile.mkdtemp(prefix=PREFIX, dir=self._run))
        except OSError as error:
            raise FailedPrecondition(
                f"cannot make a directory in {self._run}: {error.strerror}; paths.run must exist "
                "and belong to the agent's user"
            ) from error

    async def _open(self, door: Authority, listener: socket.socket) -> None:
        path = f"{self._private}/{door}"
        if len(path.encode()) > _MAX_UNIX_PATH:
            raise FailedPrecondition(
                f"{path} is longer than the {_MAX_UNIX_PATH} bytes of a unix socket's name: "
                "choose a shorter paths.run"
            )
        server = grpc.aio.server(
            interceptors=[ReadOnly()] if door == "readonly" else [],
            options=OPTIONS,
            maximum_concurrent_rpcs=CONCURRENT_RPCS,
        )
        add_WorkerServicer_to_server(self._service, server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health.servicer, server)
        reflection.enable_server_reflection(
            (NAME, health_names.SERVICE_NAME, reflection.SERVICE_NAME), server
        )
        try:
            server.add_insecure_port(f"unix:{path}")
        except RuntimeError as error:
            raise FailedPrecondition(f"grpc cannot listen on {path}: {error}") from error
        self._servers.append(server)
        await server.start()
        self._pumps.append(Pump(f"grpc-{door}", listener, path, self._max_connections))


def sweep(run: Path) -> None:
    """Remove private directories of workers that are gone; those of living ones answer."""
    for left in run.glob(f"{PREFIX}*"):
        if left.is_dir() and not any(_answers(path) for path in left.iterdir()):
            log.info("removing %s of a worker that is gone", left)
            trees.remove(left, within_s=REMOVE_S)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except BlockingIOError:
            return True  # a full queue is somebody's queue
        except OSError:
            return False
        return True
