"""The door of the network room: slots to lease, sockets to connect with, and nothing else.

Builds the room's parts once, starts them in order and stops them in reverse. What a slot is stands
in `wire`, what it may reach in `egress`, who has it in `slots`. The next room up is `sandbox`; the
gateway's connector takes its sockets here.

What speaks netlink is imported and opened after `ready`: pyroute2 takes 40 ms, and a worker that
takes over need not wait for it. Until then adopted slots keep the rules they have, the host's
addresses among them, and nobody gets a new one.
"""

from __future__ import annotations

import asyncio
import importlib
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
from agent.network.slots import NetworkSlots
from agent.network.thread import NetworkThread, Socket
from agent.network.wire import check_bridge

if TYPE_CHECKING:
    from agent.network.wiring import Wiring

__all__ = ["Egress", "Network", "NetworkSlot"]


class Network:
    """The functions' network of one node. One per worker; all calls from the loop's thread."""

    def __init__(
        self, settings: config.NetworkSettings, run: Path, *, netns: Path | None = None
    ) -> None:
        """Check the settings; `netns` is the detached namespace, by default rootlesskit's.

        Raises InvalidSpec for a subnet or bridge name that cannot work.
        """
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
        """Bring up thread, packet filter and rules; finds what a dead worker left.

        No slot is made or removed yet: `adopt` what runs, then call `ready`. Raises
        RuntimeUnavailable; nothing is left open then.
        """
        async with AsyncExitStack() as stack:
            stack.enter_context(_refusals("the functions' network cannot be set up"))
            await self._thread.start()
            stack.push_async_callback(self._thread.stop)
            await self._thread.call(check_bridge, self._plan)
            packet_filter = await self._thread.call(PacketFilter)
            stack.push_async_callback(self._thread.call, packet_filter.close)
            # The rules come before anything that they guard against.
            await self._thread.call(packet_filter.load, self._plan, self._settings.deny)
            await asyncio.to_thread(resolv.write, self.resolv_conf, egress.RESOLVER)
            netlink = await stack.enter_async_context(AsyncExitStack())
            self._slots = NetworkSlots(
                self._thread,
                self._plan,
                lambda: self._open_netlink(packet_filter, netlink),
                packet_filter,
                self._settings.warm_slots,
            )
            stack.push_async_callback(self._slots.end)
            self._stack = stack.pop_all()

    async def _open_netlink(self, packet_filter: PacketFilter, undo: AsyncExitStack) -> Wiring:
        """Bring up bridge and host watch, before the first slot is made.

        Raises OSError; may then be called again.
        """
        await asyncio.to_thread(importlib.import_module, "agent.network.netlink")
        from agent.network.host import HostAddresses
        from agent.network.wiring import Wiring

        async with AsyncExitStack() as stack:
            home, mtu = self._thread.home, self._settings.mtu
            wiring = await self._thread.call(
                Wiring, self._plan, mtu, home, discard=lambda made: made.close()
            )
            stack.push_async_callback(self._thread.call, wiring.close)
            watch = HostAddresses(
                lambda found: self._thread.call(packet_filter.run, egress.host_members(found))
            )
            stack.push_async_callback(watch.stop)
            await watch.start()
            undo.push_async_exit(stack.pop_all())
        return wiring

    async def adopt(self, number: int, pid: int, egress: Egress) -> NetworkSlot:
        """Take over the slot of a process that outlived its worker; between `open` and `ready`.

        Raises NotFound when the process is gone or is not in that slot.
        """
        with _refusals(f"network slot {number} cannot be adopted"):
            return await self._opened.adopt(number, pid, egress)

    def reserve(self, number: int, egress: Egress) -> None:
        """Leave a slot, its devices and its rules alone that nobody here holds; before `ready`."""
        self._opened.reserve(number, egress)

    def unreserve(self, number: int) -> None:
        """Have what is left in a slot that was set aside removed; safe for one that was not."""
        self._opened.unreserve(number)

    async def leave(self) -> None:
        """Make and restore no slots any more: the next worker does. Sockets go on being made."""
        await self._opened.leave()

    async def ready(self) -> None:
        """Begin to remove what nobody adopted and to keep slots in stock.

        A worker that this one replaces must have closed its network before.
        """
        with _refusals("network slots cannot be kept"):
            await self._opened.begin()

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


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    """Turn what the kernel refuses into the agent's own error."""
    try:
        yield
    except OSError as error:
        raise RuntimeUnavailable(f"{what}: {error.strerror or error}") from error
