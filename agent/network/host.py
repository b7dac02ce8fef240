"""Watches which IPv4 addresses the host itself answers for, so that functions never reach them.

Listens to rtnetlink in the host's network namespace (the loop's own) and reads the local routes
again after every change; changes that come together are read once. What is done with the answer
is `network`'s business. Needs no privilege.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from agent.aio import tasks
from agent.network import rtnetlink
from agent.network.netlink import Netlink

log = logging.getLogger(__name__)

# Read at once after a message, then not again for this long: a device coming up sends a dozen.
_SETTLE_S = 0.01
_RETRY_S = 1.0

Heard = Callable[[frozenset[str]], Awaitable[None]]


class HostAddresses:
    """Tells `heard` the host's own networks (CIDR form): at the start and after every change."""

    def __init__(self, heard: Heard) -> None:
        self._heard = heard
        self._known: frozenset[str] | None = None
        self._socket: Netlink | None = None
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def known(self) -> frozenset[str]:
        """What was told last."""
        return self._known or frozenset()

    async def start(self) -> None:
        """Listen first, then read and tell once; raises what reading or `heard` raises."""
        self._socket = rtnetlink.open_events()
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._readable)
        await self._refresh()
        self._task = tasks.spawn("host-addresses", self._watch())

    async def stop(self) -> None:
        """Stop listening; safe to call twice."""
        watched, self._socket = self._socket, None
        if watched is not None:
            asyncio.get_running_loop().remove_reader(watched.fileno())
            watched.close()
        task, self._task = self._task, None
        await tasks.stop(task)

    def _readable(self) -> None:
        if self._socket is not None and self._socket.drain():
            self._changed.set()

    async def _watch(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await self._refresh()
            except Exception:
                log.exception("the host's addresses cannot be read; trying again")
                await asyncio.sleep(_RETRY_S)
                self._changed.set()
            await asyncio.sleep(_SETTLE_S)

    async def _refresh(self) -> None:
        # Worker threads of the loop's executor live in the loop's own namespace: the host's.
        found = await asyncio.to_thread(_local_networks)
        if found != self._known:
            await self._heard(found)
            self._known = found


def _local_networks() -> frozenset[str]:
    with rtnetlink.open_route() as route:
        return rtnetlink.local_networks(route)
