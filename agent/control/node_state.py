"""The verbs for the node: GetNode, Drain, Undrain, Reload, PullUsage, AckUsage."""

from __future__ import annotations

from agent._pb.worker.v1 import worker_pb2 as pb
from agent.control.convert_watch import node_to_proto
from agent.control.verbs import Verbs
from agent.errors import InvalidSpec, Problem


class NodeVerbs(Verbs):
    """The node itself."""

    async def get_node(self, request: pb.GetNodeRequest) -> pb.Node:
        """Say who the node is."""
        return node_to_proto(await self.node.info())

    async def drain(self, request: pb.DrainRequest) -> pb.DrainResponse:
        """Take no new work and wait for what runs."""
        timeout_s = None
        if request.HasField("timeout"):
            timeout_s = request.timeout.ToNanoseconds() / 1e9
            if timeout_s < 0:
                raise InvalidSpec([Problem("timeout", "is negative")])
        return pb.DrainResponse(inflight=await self.node.drain(timeout_s))

    async def undrain(self, request: pb.UndrainRequest) -> pb.UndrainResponse:
        """Take work again."""
        await self.node.undrain()
        return pb.UndrainResponse()

    async def reload(self, request: pb.ReloadRequest) -> pb.ReloadResponse:
        """Ask for a reload; it ends behind this worker's back."""
        return pb.ReloadResponse(number=await self.node.reload())

    async def pull_usage(self, request: pb.PullUsageRequest) -> pb.PullUsageResponse:
        """Not built in this release."""
        raise NotImplementedError

    async def ack_usage(self, request: pb.AckUsageRequest) -> pb.AckUsageResponse:
        """Not built in this release."""
        raise NotImplementedError
