"""Blobs by digest: small ones read whole, any written in pieces, checked by containerd.

A blob stays only while a lease, a label of another blob or an image record refers to it; who
writes one does so under a lease.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import grpc.aio
from google.protobuf import field_mask_pb2

from agent._pb.containerd.services.content.v1 import content_pb2 as pb
from agent._pb.containerd.services.content.v1 import content_pb2_grpc as rpc
from agent.aio.tasks import finish
from agent.containerd.channel import Channel
from agent.containerd.errors import convert
from agent.errors import AgentError, AlreadyExists, NotFound, RuntimeUnavailable

# containerd takes messages of up to 16 MiB; larger pieces gain nothing and hold the loop longer.
PIECE_BYTES = 512 << 10
ABORT_WITHIN_S = 10.0


@dataclass(frozen=True, slots=True)
class Ingest:
    """A blob that is not whole yet: its name among writes, the bytes so far, its last write."""

    ref: str
    size_bytes: int
    updated_ns: int


class Content:
    """The content store."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._rpc = rpc.ContentStub(channel.grpc)

    async def size_bytes(self, digest: str, *, deadline: float | None = None) -> int | None:
        """Return the size of a blob, or None when it is not there."""
        request = pb.InfoRequest(digest=digest)
        try:
            reply = await self._channel.call(
                self._rpc.Info, request, f"look for {digest}", deadline=deadline
            )
        except NotFound:
            return None
        return int(reply.info.size)

    async def read(self, digest: str, max_bytes: int, *, deadline: float | None = None) -> bytes:
        """Return a whole blob. Raises NotFound, or RuntimeUnavailable beyond `max_bytes`."""
        request = pb.ReadContentRequest(digest=digest)
        pieces: list[bytes] = []
        length = 0
        replies = self._channel.stream(self._rpc.Read, request, f"read {digest}", deadline=deadline)
        async for reply in replies:
            length += len(reply.data)
            if length > max_bytes:
                raise RuntimeUnavailable(f"read {digest}: larger than {max_bytes} bytes")
            pieces.append(reply.data)
        return b"".join(pieces)

    async def label(
        self, digest: str, name: str, value: str, *, deadline: float | None = None
    ) -> None:
        """Set one label of a blob; an empty value removes it. Raises NotFound."""
        mask = field_mask_pb2.FieldMask(paths=[f"labels.{name}"])
        request = pb.UpdateRequest(
            info=pb.Info(digest=digest, labels={name: value}), update_mask=mask
        )
        await self._channel.call(self._rpc.Update, request, f"label {digest}", deadline=deadline)

    async def write(
        self,
        digest: str,
        size_bytes: int,
        pieces: AsyncIterator[bytes],
        *,
        lease: str,
        deadline: float,
    ) -> bool:
        """Store a blob; containerd checks size and digest. False when it was there already.

        Raises RuntimeUnavailable, also when the bytes do not have that digest.
        """
        what = f"store {digest}"
        call = self._rpc.Write(
            metadata=self._channel.metadata(lease), timeout=self._channel.left_s(deadline)
        )
        try:
            await self._send(call, digest, size_bytes, pieces)
        except grpc.aio.AioRpcError as error:
            failure = convert(error, what, str(self._channel.socket))
            if isinstance(failure, AlreadyExists):
                return False
            raise failure from error
        except asyncio.InvalidStateError as error:
            raise RuntimeUnavailable(f"{what}: containerd closed the stream") from error
        except asyncio.CancelledError as error:
            raise self._channel.ended(error, what) from error
        finally:
            if not call.done():
                call.cancel()
                await finish(f"abort {digest}", self._abort(digest), within_s=ABORT_WITHIN_S)
        return True

    async def store(self, digest: str, data: bytes, *, lease: str, deadline: float) -> bool:
        """Store a small blob whole, as `write` does."""

        async def whole() -> AsyncIterator[bytes]:
            yield data

        return await self.write(digest, len(data), whole(), lease=lease, deadline=deadline)

    async def _abort(self, digest: str) -> None:
        """Forget an unfinished write, which would otherwise wait for its continuation."""
        with contextlib.suppress(AgentError):
            await self.forget_ingest(_ref(digest))

    async def _send(
        self,
        call: grpc.aio.StreamStreamCall[pb.WriteContentRequest, pb.WriteContentResponse],
        digest: str,
        size_bytes: int,
        pieces: AsyncIterator[bytes],
    ) -> None:
        # The answer to the first message is an error when the blob is there: ask before sending.
        ask = pb.WriteContentRequest(
            action=pb.STAT, ref=_ref(digest), total=size_bytes, expected=digest
        )
        await _say(call, ask)
        offset = 0
        async for piece in pieces:
            await _say(call, pb.WriteContentRequest(action=pb.WRITE, offset=offset, data=piece))
            offset += len(piece)
        commit = pb.WriteContentRequest(
            action=pb.COMMIT, offset=offset, total=size_bytes, expected=digest
        )
        await _say(call, commit)

    async def sizes(self, *, deadline: float | None = None) -> dict[str, int]:
        """Return the bytes of every blob by digest."""
        request = pb.ListContentRequest()
        replies = self._channel.stream(self._rpc.List, request, "list blobs", deadline=deadline)
        return {info.digest: int(info.size) async for reply in replies for info in reply.info}

    async def labelled(self, name: str, value: str) -> list[str]:
        """Return the digests of the blobs that have a label of this value."""
        request = pb.ListContentRequest(filters=[f'labels."{name}"=="{value}"'])
        replies = self._channel.stream(self._rpc.List, request, f"list blobs labelled {name}")
        return [info.digest async for reply in replies for info in reply.info]

    async def count(self, *, deadline: float | None = None) -> int:
        """Return how many blobs there are."""
        return len(await self.sizes(deadline=deadline))

    async def ingests(self, *, deadline: float | None = None) -> list[Ingest]:
        """Return the writes that are not finished: pulls' and imports', and what was cut short."""
        request = pb.ListStatusesRequest()
        what = "list unfinished blobs"
        reply = await self._channel.call(self._rpc.ListStatuses, request, what, deadline=deadline)
        return [
            Ingest(one.ref, int(one.offset), one.updated_at.ToNanoseconds())
            for one in reply.statuses
        ]

    async def forget_ingest(self, ref: str, *, deadline: float | None = None) -> None:
        """Give back the bytes of an unfinished write. Raises NotFound."""
        request = pb.AbortRequest(ref=ref)
        await self._channel.call(self._rpc.Abort, request, f"abort {ref}", deadline=deadline)


def _ref(digest: str) -> str:
    return f"kindling-{digest}"


async def _say(
    call: grpc.aio.StreamStreamCall[pb.WriteContentRequest, pb.WriteContentResponse],
    message: pb.WriteContentRequest,
) -> None:
    """Send one message and take its answer, so that an error is seen at once."""
    await call.write(message)
    if await call.read() is grpc.aio.EOF:
        # The status of an ended call is raised by its next read; EOF alone means status OK.
        raise RuntimeUnavailable("containerd ended the write early")
