"""What grpc.health.v1 says of this node: whether it takes work.

One object, told by whoever changes that and asked by the servers of `server.py`.
"""

from __future__ import annotations

from grpc_health.v1 import health, health_pb2

from agent.control.service import NAME


class Health:
    """The health service; NOT_SERVING until `set` says otherwise."""

    def __init__(self) -> None:
        self.servicer = health.aio.HealthServicer()

    async def set(self, *, serving: bool) -> None:
        """Tell whoever watches whether the node takes work."""
        states = health_pb2.HealthCheckResponse
        state = states.SERVING if serving else states.NOT_SERVING
        for name in ("", NAME):
            await self.servicer.set(name, state)

    async def end(self) -> None:
        """Say NOT_SERVING for good."""
        await self.servicer.enter_graceful_shutdown()
