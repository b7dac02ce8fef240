"""Named streams beside calls: containerd's way to send progress and take archives.

A stream is opened first and named in the call that uses it. Messages are `Any`; what they mean is
the user's business (`transfer`, `importer`).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator

import grpc
import grpc.aio
from google.protobuf import any_pb2
from google.protobuf.message import Message

from agent._pb.containerd.services.streaming.v1 import streaming_pb2 as pb
from agent._pb.containerd.services.streaming.v1 import streaming_pb2_grpc as rpc
from agent.containerd.channel import Channel
from agent.containerd.errors import convert
from agent.errors import RuntimeUnavailable


def pack(message: Message) -> any_pb2.Any:
    """Wrap a message as containerd does: the bare full name as its type."""
    return any_pb2.Any(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


class Stream:
    """An open stream. `id` names it to containerd."""

    def __init__(
        self, id: str, call: grpc.aio.StreamStreamCall[any_pb2.Any, any_pb2.Any], socket: str
    ) -> None:
        self.id = id
        self._call = call
        self._socket = socket

    async def send(self, message: Message) -> None:
        """Send one message. Raises RuntimeUnavailable when containerd has closed the stream."""
        try:
            await self._call.write(pack(message))
        except grpc.aio.AioRpcError as error:
            raise convert(error, f"write stream {self.id}", self._socket) from error
        except asyncio.InvalidStateError as error:
            raise RuntimeUnavailable(f"write stream {self.id}: closed by containerd") from error

    async def receive(self) -> any_pb2.Any | None:
        """Return the next message, or None at the end."""
        try:
            message = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise convert(error, f"read stream {self.id}", self._socket) from error
        return message if isinstance(message, any_pb2.Any) else None

    async def done(self) -> None:
        """Say that nothing more will be sent."""
        await self._call.done_writing()


@contextlib.asynccontextmanager
async def open_stream(channel: Channel, purpose: str, deadline: float) -> AsyncIterator[Stream]:
    """Open a stream for one call of its own; it is closed at the end."""
    id = f"kindling-{purpose}-{secrets.token_hex(8)}"
    method = rpc.StreamingStub(channel.grpc).Stream
    call = method(metadata=channel.metadata(), timeout=channel.left_s(deadline))
    stream = Stream(id, call, str(channel.socket))
    try:
        await stream.send(pb.StreamInit(id=id))
        # containerd answers with an empty message once the name is known.
        if await stream.receive() is None:
            raise RuntimeUnavailable(f"open stream {id}: closed by containerd")
        yield stream
    finally:
        call.cancel()
