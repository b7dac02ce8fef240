"""A gateway with functions that are always warm: the cost of the data path and nothing else."""

from __future__ import annotations

import asyncio
import socket

from agent.calls.ports import Lease, Target, Waiter
from agent.config import NodeConfig
from agent.contracts.base import Call, CallReport, NodeFacts, Reply
from agent.contracts.bind import bind
from agent.errors import NotFound
from agent.gateway.doors.server import Gateway
from agent.gateway.wire.upstream import UpstreamConnector
from agent.instances.endpoint import Endpoint
from agent.model.failure import Failure
from agent.model.records import FunctionVersion, Meters
from agent.model.spec_parse import parse_spec
from agent.telemetry.metrics import AgentMetrics


class WarmTarget:
    """Gives a lease at once and takes it back; counts what is out."""

    def __init__(self, name: str, port: int, contract: str, kind: str) -> None:
        values = {"name": name, "image": "x:1", "contract": contract, "kind": kind}
        spec = parse_spec(values | ({"concurrency": 100} if kind == "http" else {}))
        self.version = FunctionVersion(name, 1, spec, None, "Ready", created_ns=0)
        self.contract = bind(self.version, NodeFacts())
        self.out = 0
        self._endpoint = Endpoint(f"{name}-00000001", "127.0.0.1", port)
        self._loop = asyncio.get_running_loop()

    def acquire(self, waiter: Waiter) -> Lease | None:
        """Return a lease."""
        self.out += 1
        return Lease(self._endpoint, self._loop.time())

    def abandon(self, waiter: Waiter) -> None:
        """Nobody waits."""

    def release(
        self, lease: Lease, call: Call, failure: Failure | None = None, *, recycle: bool = False
    ) -> None:
        """Take the lease back."""
        self.out -= 1

    def report(self, lease: Lease) -> CallReport:
        """Return a report of nothing: warm HTTP calls do not ask."""
        return CallReport(Meters(), None, b"", lease.endpoint.id)

    async def explain(self, lease: Lease, waited_s: float) -> Failure:
        """Never asked."""
        raise NotImplementedError

    async def run_job(self, call: Call, event: bytes) -> tuple[Reply, CallReport]:
        """Never asked."""
        raise NotImplementedError


class Always:
    """A catalog of functions that are always ready."""

    def __init__(self, targets: dict[str, Target]) -> None:
        self._targets = targets
        self.generation = 0

    def find(self, name: str, qualifier: str) -> Target:
        """Return a function by name."""
        if name not in self._targets:
            raise NotFound(f"function '{name}' is not deployed")
        return self._targets[name]


def _socket() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    return sock


async def gateway(port: int, small: int, large: int, contract: str) -> Gateway:
    """Return a gateway that serves `port` in front of two backends, by what they reply."""
    targets: dict[str, Target] = {
        "f": WarmTarget("f", small, contract, "http"),
        "g": WarmTarget("g", large, contract, "http"),
    }
    if contract == "fc":
        targets["e"] = WarmTarget("e", small, contract, "event")
    door = Gateway(NodeConfig(), Always(targets), UpstreamConnector(_socket), AgentMetrics().calls)
    await door.serve([socket.create_server(("127.0.0.1", port), backlog=512)])
    return door
