"""The door of the network room: slots to lease, sockets to connect with, and nothing else.

Builds the room's parts once, starts them in order and stops them in reverse. What a slot is stands
in `wire`, what it may reach in `egress`, who has it in `slots`. The next room up is `sandbox`; the
gateway's connector takes its sockets here.

Whatever speaks netlink is imported late: pyroute2 takes 40 ms, which a thread spends while the
worker opens its other doors, instead of every worker's start before it does anything.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from agent import config
from agent.core import addresses
from agent.core.slots import SlotCounts
from agent.errors import RuntimeUnavailable
from agent.network import egress, resolv
from agent.network.egress import Egress, PacketFilter
from agent.network.slot import NetworkSlot
from agent.network.thread import NetworkThread, Socket

if TYPE_CHECKING:
    from agent.network.slots import NetworkSlots
    from agent.network.wire import Wiring

__all__ = ["Egress", "Network", "NetworkSlot"]

log = logging.getLogger(__name__)

_SPEAKS_NETLINK = ("agent.network.bridge", "agent.network.host", "agent.network.slots")


class Network:
    """The functions' network of one node. One per worker; all calls from the loop's thread."""

    def __init__(self, settings: config.Network, run: Path, *, netns: Path | None = None) -> None:
        """Check the settings; `netns` is the detached namespace, by default rootlesskit's.

        Raises InvalidSpec for a subnet or bridge name that cannot work.
        """
        threading.Thread(target=_import, name="kindling-net-import", daemon=True).start()
        self._settings = settings
        self._plan = addresses.plan(settings.subnet, settings.bridge)
        self._thread = NetworkThread(netns or run / "rootlesskit" / "netns")
        self._slots: NetworkSlots | None = None
        self._stack = AsyncExitStack()
        self.resolv_conf = run / "resolv.conf"
        self.gateway = self._plan.bridge_address

    def __repr__(self) -> str:
        return f"<Network {self._plan.subnet} {self._slots!r} {self._thread!r}>"

    async def open(self) -> None:
        """Bring up thread, packet filter, bridge and host watch; finds what a dead worker left.

        No slot is made or removed yet: `adopt` what runs, then call `ready`. Raises
        RuntimeUnavailable; nothing is left open then.
        """
        # An import that another thread has begun is waited for: the loop goes on meanwhile.
        await asyncio.to_thread(_import)
        from agent.network.host import HostAddresses
        from agent.network.slots import NetworkSlots

        async with AsyncExitStack() as stack:
            stack.enter_context(_refusals("the functions' network cannot be set up"))
            await self._thread.start()
            stack.push_async_callback(self._thread.stop)
            packet_filter, wiring = await self._set_up(stack)
            watch = HostAddresses(
                lambda found: self._thread.call(packet_filter.run, egress.host_members(found))
            )
            stack.push_async_callback(watch.stop)
            await watch.start()
            await asyncio.to_thread(resolv.write, self.resolv_conf, egress.RESOLVER)
            self._slots = NetworkSlots(
                self._thread, self._plan, wiring, packet_filter, self._settings.warm_slots
            )
            stack.push_async_callback(self._slots.end)
            self._stack = stack.pop_all()

    async def _set_up(self, stack: AsyncExitStack) -> tuple[PacketFilter, Wiring]:
        packet_filter = await self._thread.call(PacketFilter)
        stack.push_async_callback(self._thread.call, packet_filter.close)
        # The rules come before anything that they guard against.
        await self._thread.call(packet_filter.load, self._plan, self._settings.deny)
        wiring = await self._thread.call(self._wire)
        stack.push_async_callback(self._thread.call, wiring.close)
        return packet_filter, wiring

    def _wire(self) -> Wiring:
        from agent.network import bridge, rtnetlink
        from agent.network.wire import Wiring

        with rtnetlink.open_route() as route:
            index = bridge.ensure(route, self._plan, self._settings.mtu)
        return Wiring(self._plan, self._settings.mtu, self._thread.home, index)

    async def adopt(self, number: int, pid: int, egress: Egress) -> NetworkSlot:
        """Take over the slot of a process that outlived its worker; between `open` and `ready`.

        Raises NotFound when the process is gone or is not in that slot.
        """
        with _refusals(f"network slot {number} cannot be adopted"):
            return await self._opened.adopt(number, pid, egress)

    async def ready(self) -> None:
        """Remove what nobody adopted and start to keep slots in stock.

        A worker that this one replaces must have closed its network before.
        """
        with _refusals("network slots cannot be kept"):
            removed = await self._opened.begin()
        if removed:
            log.info("network: removed %d devices that nobody owned", removed)

    async def close(self) -> None:
        """Give ready slots back to the kernel; running containers, bridge and rules stay."""
        await self._stack.aclose()
        self._slots = None

    async def lease(self, egress: Egress = "all") -> NetworkSlot:
        """Return a slot whose `egress` is in force already: a ready one at once, else made now.

        Raises Overloaded(slots) when all are taken, InvalidSpec for an entry that is no network,
        RuntimeUnavailable when the kernel refuses. A cancelled lease is given back.
        """
        return await self._opened.lease(egress)

    async def release(self, slot: NetworkSlot) -> None:
        """Give a slot back, once, after its container is gone; it is restored in the background.

        Raises Bug for a slot that is not out.
        """
        self._opened.release(slot)

    def take_socket(self) -> Socket | None:
        """Return a non-blocking TCP socket of the functions' network at once, or None: then
        await `socket`.
        """
        return self._thread.take_socket()

    async def socket(self) -> Socket:
        """Return a non-blocking TCP socket of the functions' network."""
        return await self._thread.socket()

    def counts(self) -> SlotCounts:
        """Return how many slots stand where."""
        return self._opened.counts()

    @property
    def _opened(self) -> NetworkSlots:
        if self._slots is None:
            raise RuntimeUnavailable("the network has not been opened")
        return self._slots


def _import() -> None:
    for name in _SPEAKS_NETLINK:
        importlib.import_module(name)


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    """Turn what the kernel refuses into the agent's own error."""
    try:
        yield
    except OSError as error:
        raise RuntimeUnavailable(f"{what}: {error.strerror or error}") from error
