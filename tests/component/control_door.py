"""The whole door on real sockets: held listeners, pumps, gRPC servers, a fake node."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from agent._pb.worker.v1.worker_pb2_grpc import WorkerStub
from agent.control.errors import Refusal, told
from agent.control.health import Health
from agent.control.node import Node
from agent.control.server import ControlServer
from tests.component.control_fake import FakeNode


def listener(path: Path) -> socket.socket:
    held = socket.socket(socket.AF_UNIX)
    held.bind(str(path))
    held.listen(64)
    return held


@dataclass
class Doors:
    node: FakeNode
    server: ControlServer
    run: Path
    admin: WorkerStub
    readonly: WorkerStub


def typed(fake: FakeNode) -> Node:
    """Check that the fake really is a Node."""
    return fake


@asynccontextmanager
async def open_doors(run: Path, max_connections: int = 16) -> AsyncIterator[Doors]:
    fake = FakeNode()
    server = ControlServer(typed(fake), Health(), run, max_connections)
    with listener(run / "a.sock") as admin, listener(run / "r.sock") as readonly:
        await server.start(admin, readonly)
        try:
            async with (
                grpc.aio.insecure_channel(f"unix:{run}/a.sock") as full,
                grpc.aio.insecure_channel(f"unix:{run}/r.sock") as limited,
            ):
                yield Doors(fake, server, run, WorkerStub(full), WorkerStub(limited))
        finally:
            await server.stop(0.0)


async def refused(call: Awaitable[Any]) -> Refusal:
    """Await a call that is refused; return what it says."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return told(caught.value)
