"""Sandbox records: they let further containers share the shim of an anchor's task.

An anchor is an ordinary container whose task was created and never started. A record with its id
makes containerd look up that task's shim for every container that names it in `sandbox`. Nothing
runs through the record itself. Needs containerd 2.1 or newer.
"""

from __future__ import annotations

from collections.abc import Mapping

from agent._pb.containerd.services.sandbox.v1 import sandbox_pb2 as pb
from agent._pb.containerd.services.sandbox.v1 import sandbox_pb2_grpc as rpc
from agent._pb.containerd.types import sandbox_pb2
from agent.containerd.channel import Channel
from agent.containerd.containers import RUNTIME, RuntimeOptions
from agent.errors import NotFound


class Sandboxes:
    """The sandbox store."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._rpc = rpc.StoreStub(channel.grpc)

    async def create(
        self,
        id: str,
        options: RuntimeOptions,
        labels: Mapping[str, str],
        *,
        deadline: float | None = None,
    ) -> None:
        """Declare the task `id` an anchor. Raises AlreadyExists."""
        sandbox = sandbox_pb2.Sandbox(
            sandbox_id=id,
            runtime=sandbox_pb2.Sandbox.Runtime(name=RUNTIME, options=options.any()),
            labels=dict(labels),
        )
        request = pb.StoreCreateRequest(sandbox=sandbox)
        await self._channel.call(
            self._rpc.Create, request, f"create sandbox {id}", deadline=deadline
        )

    async def delete(self, id: str, *, deadline: float | None = None) -> bool:
        """Remove the record, after its last container; False when there was none."""
        request = pb.StoreDeleteRequest(sandbox_id=id)
        try:
            await self._channel.call(
                self._rpc.Delete, request, f"delete sandbox {id}", deadline=deadline
            )
        except NotFound:
            return False
        return True

    async def list(self, *, deadline: float | None = None) -> dict[str, dict[str, str]]:
        """Return the labels of all sandboxes by id."""
        reply = await self._channel.call(
            self._rpc.List, pb.StoreListRequest(), "list sandboxes", deadline=deadline
        )
        return {sandbox.sandbox_id: dict(sandbox.labels) for sandbox in reply.list}
