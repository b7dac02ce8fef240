"""Leases: what is being made stays out of the garbage collector's reach while it is made.

Every lease has an end, so that one left by a crash protects nothing for ever; `hold` removes it as
soon as the work is done. What must stay afterwards hangs on an image record or a gc.root label.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

from agent._pb.containerd.services.leases.v1 import leases_pb2 as pb
from agent._pb.containerd.services.leases.v1 import leases_pb2_grpc as rpc
from agent.aio.tasks import finish
from agent.containerd.channel import Channel
from agent.errors import AgentError, NotFound, RuntimeUnavailable

EXPIRE_LABEL = "containerd.io/gc.expire"
RELEASE_WITHIN_S = 10.0


class Leases:
    """Create, list and remove leases."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._rpc = rpc.LeasesStub(channel.grpc)
        self._unfinished: dict[str, list[str]] = defaultdict(list)

    @contextlib.asynccontextmanager
    async def hold(
        self, purpose: str, within_s: float, *, resumed_by: str = ""
    ) -> AsyncIterator[str]:
        """Hold a lease, give its id, and remove it at the end even when cancelled.

        When the work failed, what it made is collected before the error goes on. The lease expires
        by itself a minute after `within_s` seconds should the agent die meanwhile. Work that was
        interrupted (cancelled, or RuntimeUnavailable) and names who may go on with it leaves its
        lease, and so what it has, until that one has done it or the lease expires.
        """
        id = f"kindling-{purpose}-{secrets.token_hex(6)}"
        until = datetime.now(UTC) + timedelta(seconds=within_s + 60)
        labels = {EXPIRE_LABEL: until.isoformat(timespec="seconds").replace("+00:00", "Z")}
        request = pb.CreateRequest(id=id, labels=labels)
        await self._channel.call(self._rpc.Create, request, f"create lease {id}")
        failed, left = True, False
        try:
            yield id
            failed = False
        except (asyncio.CancelledError, RuntimeUnavailable):
            left = bool(resumed_by)
            raise
        finally:
            if left:
                self._unfinished[resumed_by].append(id)
            else:
                for each in (*self._unfinished.pop(resumed_by, ()), id):
                    release = self.delete(each, sync=failed)
                    with contextlib.suppress(AgentError):
                        await finish(f"release lease {each}", release, within_s=RELEASE_WITHIN_S)

    async def delete(self, id: str, *, sync: bool = False, deadline: float | None = None) -> bool:
        """Remove a lease; False when there was none. With `sync` after a garbage collection."""
        request = pb.DeleteRequest(id=id, sync=sync)
        try:
            await self._channel.call(
                self._rpc.Delete, request, f"delete lease {id}", deadline=deadline
            )
        except NotFound:
            return False
        return True

    async def list(self, *, deadline: float | None = None) -> tuple[str, ...]:
        """Return the ids of all leases."""
        reply = await self._channel.call(
            self._rpc.List, pb.ListRequest(), "list leases", deadline=deadline
        )
        return tuple(lease.id for lease in reply.leases)
