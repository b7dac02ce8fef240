"""Leases: what is being made stays out of the garbage collector's reach while it is made.

Every lease has an end, so that one left by a crash protects nothing for ever; `hold` removes it as
soon as the work is done. It names its worker, so that `agent/recovery/orphans.py` can tell those of
the dead. What must stay afterwards hangs on an image record or a gc.root label.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from agent._pb.containerd.services.leases.v1 import leases_pb2 as pb
from agent._pb.containerd.services.leases.v1 import leases_pb2_grpc as rpc
from agent.aio.tasks import finish
from agent.containerd.channel import Channel
from agent.errors import AgentError, CredentialsRefused, NotFound, RuntimeUnavailable

EXPIRE_LABEL = "containerd.io/gc.expire"
PREFIX = "kindling-"
WORKER_LABEL = "kindling.worker"
RELEASE_WITHIN_S = 10.0
GRACE_S = 60.0


@dataclass(frozen=True, slots=True)
class StoreLease:
    """A lease of ours. `worker` is the generation of who made it, 0 if it does not say."""

    id: str
    created_ns: int
    worker: int


@dataclass(frozen=True, slots=True)
class LeaseResource:
    """What a lease protects. `type` is content, ingests or snapshots/<snapshotter>."""

    type: str
    id: str


class Leases:
    """Create, list and remove leases."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.worker = 0
        """The generation that new leases name; 0 until the worker has one."""
        self._rpc = rpc.LeasesStub(channel.grpc)
        # By who may go on with the work: leases, and when each has expired (the loop's time).
        self._unfinished: dict[str, dict[str, float]] = defaultdict(dict)

    @contextlib.asynccontextmanager
    async def hold(
        self, purpose: str, within_s: float, *, resumed_by: str = ""
    ) -> AsyncIterator[str]:
        """Hold a lease, give its id, and remove it at the end even when cancelled.

        When the work failed, what it made is collected before the error goes on. The lease expires
        by itself a minute after `within_s` seconds should the agent die meanwhile. Work that was
        interrupted (cancelled, RuntimeUnavailable, CredentialsRefused) and names who may go on with
        it leaves its lease, and so what it has, until that one has done it, the lease expires, or
        `give_up`.
        """
        id = await self._create(purpose, within_s)
        failed, left = True, False
        try:
            yield id
            failed = False
        except (asyncio.CancelledError, RuntimeUnavailable, CredentialsRefused):
            left = bool(resumed_by)
            raise
        finally:
            if left:
                self._leave(resumed_by, id, within_s)
            else:
                await self._release(*self._unfinished.pop(resumed_by, ()), id, sync=failed)

    def _leave(self, resumed_by: str, id: str, within_s: float) -> None:
        now = asyncio.get_running_loop().time()
        self._unfinished[resumed_by][id] = now + within_s + GRACE_S
        for key, leases in list(self._unfinished.items()):
            alive = {lease: until for lease, until in leases.items() if until > now}
            if alive:
                self._unfinished[key] = alive
            else:
                del self._unfinished[key]

    async def give_up(self) -> bool:
        """Remove what interrupted work has left for who goes on; say whether there was any.

        What it held is still to be collected.
        """
        left = [id for leases in self._unfinished.values() for id in leases]
        self._unfinished.clear()
        await self._release(*left)
        return bool(left)

    async def _release(self, *ids: str, sync: bool = False) -> None:
        """Remove leases, all of them also when the caller is cancelled meanwhile."""

        async def release() -> None:
            for id in ids:
                with contextlib.suppress(AgentError):
                    await self.delete(id, sync=sync)

        name = f"release lease {', '.join(ids)}"
        await finish(name, release(), within_s=RELEASE_WITHIN_S * len(ids))

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

    async def _create(self, purpose: str, within_s: float) -> str:
        id = f"{PREFIX}{purpose}-{secrets.token_hex(6)}"
        until = datetime.now(UTC) + timedelta(seconds=within_s + GRACE_S)
        expires = until.isoformat(timespec="seconds").replace("+00:00", "Z")
        labels = {EXPIRE_LABEL: expires, WORKER_LABEL: str(self.worker)}
        request = pb.CreateRequest(id=id, labels=labels)
        await self._channel.call(self._rpc.Create, request, f"create lease {id}")
        return id

    async def collect(self, *, deadline: float) -> None:
        """Wait until containerd has collected what nothing refers to any more."""
        # A removal is the only call that collects before it answers: of a lease made for that.
        id = await self._create("collect", 0.0)
        await self.delete(id, sync=True, deadline=deadline)

    async def ours(self, *, deadline: float | None = None) -> tuple[StoreLease, ...]:
        """Return the leases that `hold` made, by whatever worker."""
        return tuple(
            StoreLease(
                lease.id, lease.created_at.ToNanoseconds(), _number(lease.labels[WORKER_LABEL])
            )
            for lease in await self._all(deadline)
            if lease.id.startswith(PREFIX)
        )

    async def resources(
        self, id: str, *, deadline: float | None = None
    ) -> tuple[LeaseResource, ...]:
        """Return what a lease protects. Raises NotFound."""
        request = pb.ListResourcesRequest(id=id)
        reply = await self._channel.call(
            self._rpc.ListResources, request, f"list resources of lease {id}", deadline=deadline
        )
        return tuple(LeaseResource(one.type, one.id) for one in reply.resources)

    async def list(self, *, deadline: float | None = None) -> tuple[str, ...]:
        """Return the ids of all leases."""
        return tuple(lease.id for lease in await self._all(deadline))

    async def _all(self, deadline: float | None) -> tuple[pb.Lease, ...]:
        reply = await self._channel.call(
            self._rpc.List, pb.ListRequest(), "list leases", deadline=deadline
        )
        return tuple(reply.leases)


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0
