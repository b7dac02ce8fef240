"""containerd's events: which task ended, which ran out of memory, and where some were missed.

containerd replays nothing. A subscription therefore proves that it is listening before `open`
returns (it makes and removes an empty containerd namespace until it hears of that), and after every
reconnect it delivers a Gap: whoever keeps state lists tasks again then. Reading never blocks
containerd: what nobody takes out of a full buffer is dropped and becomes a Gap, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
import grpc.aio

from agent._pb.containerd.events import task_pb2
from agent._pb.containerd.services.events.v1 import events_pb2 as pb
from agent._pb.containerd.services.events.v1 import events_pb2_grpc as rpc
from agent._pb.containerd.services.namespaces.v1 import namespace_pb2
from agent._pb.containerd.services.namespaces.v1 import namespace_pb2_grpc as namespace_rpc
from agent.aio import tasks
from agent.containerd.channel import Channel
from agent.errors import AgentError, NotFound, RuntimeUnavailable

if TYPE_CHECKING:
    from agent._pb.containerd.types import event_pb2

log = logging.getLogger(__name__)

# 500 instances that end at once give 500 exits and 500 deletes.
BUFFER = 4096
RETRY_S = 0.1
PROOF_EVERY_S = 0.1
PROOF_TOPIC = "/namespaces/create"


@dataclass(frozen=True, slots=True)
class Exited:
    """A task's init has ended; times are wall clock, ns."""

    id: str
    pid: int
    status: int
    exited_ns: int


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """The kernel killed something in the container's memory cgroup."""

    id: str


@dataclass(frozen=True, slots=True)
class Gap:
    """Events may have been missed before this point: list what exists."""

    reason: str


Event = Exited | OutOfMemory | Gap


class Subscription:
    """A standing subscription. Iterate over it; it ends when closed."""

    def __init__(self, door: Channel) -> None:
        self._door = door
        self._rpc = rpc.EventsStub(door.channel)
        self._namespaces = namespace_rpc.NamespacesStub(door.channel)
        self._proof = f"{door.namespace}.events"
        self._buffer: asyncio.Queue[Event | None] = asyncio.Queue()
        self._heard = asyncio.Event()
        self._dropped = False
        self._proved = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    async def open(self, deadline: float) -> None:
        """Start listening; returns when events are sure to arrive. Raises RuntimeUnavailable."""
        self._keeper = tasks.spawn("containerd events", self._keep())
        try:
            async with asyncio.timeout_at(deadline):
                await self._proved.wait()
        except TimeoutError as error:
            await self.close()
            text = "containerd sends no events: look at its log, then restart the agent"
            raise RuntimeUnavailable(text) from error
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Stop listening and end the iteration."""
        await tasks.stop(self._keeper)
        self._keeper = None
        self._buffer.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[Event]:
        while (event := await self._buffer.get()) is not None:
            yield event

    async def _keep(self) -> None:
        """Keep a stream open for ever. Each but the first brings a Gap once it is proved."""
        while True:
            stream = tasks.spawn("containerd event stream", self._read())
            try:
                if await self._prove(stream):
                    if self._proved.is_set():
                        self._put(Gap("the stream of events had ended"))
                    self._proved.set()
                await asyncio.wait({stream})
            finally:
                await tasks.stop(stream)
            if stream.cancelled() or stream.exception() is not None:
                # Not a lost connection: a channel closed before its subscriptions.
                return
            log.warning("the stream of containerd's events ended; connecting again")
            await asyncio.sleep(RETRY_S)

    async def _read(self) -> None:
        space = self._door.namespace
        filters = [
            f'namespace=={space},topic=="/tasks/exit"',
            f'namespace=={space},topic=="/tasks/oom"',
            f'namespace=={self._proof},topic=="{PROOF_TOPIC}"',
        ]
        self._heard.clear()
        request = pb.SubscribeRequest(filters=filters)
        call = self._rpc.Subscribe(request, metadata=self._door.metadata())
        try:
            async for envelope in call:
                self._take(envelope)
        except grpc.aio.AioRpcError as error:
            log.info("containerd's events: %s", error.details())
        finally:
            call.cancel()

    async def _prove(self, stream: asyncio.Task[None]) -> bool:
        """Make events until one comes through the stream; False when the stream ends first."""
        while not stream.done():
            with contextlib.suppress(AgentError):
                await self._make_event()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PROOF_EVERY_S):
                    await self._heard.wait()
            if self._heard.is_set():
                with contextlib.suppress(AgentError):
                    await self._forget_event()
                return True
        return False

    async def _make_event(self) -> None:
        await self._forget_event()
        namespace = namespace_pb2.Namespace(name=self._proof)
        request = namespace_pb2.CreateNamespaceRequest(namespace=namespace)
        await self._door.call(self._namespaces.Create, request, "prove events")

    async def _forget_event(self) -> None:
        request = namespace_pb2.DeleteNamespaceRequest(name=self._proof)
        with contextlib.suppress(NotFound):
            await self._door.call(self._namespaces.Delete, request, "prove events")

    def _take(self, envelope: event_pb2.Envelope) -> None:
        data = envelope.event.value
        match envelope.topic:
            case "/tasks/exit":
                ended = task_pb2.TaskExit.FromString(data)
                # An exec'd process has an id of its own; the agent starts none.
                if ended.id == ended.container_id:
                    status, exited_ns = int(ended.exit_status), ended.exited_at.ToNanoseconds()
                    self._put(Exited(ended.container_id, int(ended.pid), status, exited_ns))
            case "/tasks/oom":
                self._put(OutOfMemory(task_pb2.TaskOOM.FromString(data).container_id))
            case _:
                self._heard.set()

    def _put(self, event: Event) -> None:
        if self._buffer.qsize() < BUFFER:
            self._dropped = False
            self._buffer.put_nowait(event)
        elif not self._dropped:
            # Told now, not with the next event: there may be none. It holds for all that are
            # dropped until it is taken out.
            self._dropped = True
            self._buffer.put_nowait(Gap("the buffer of events was full"))
