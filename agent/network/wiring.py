"""Makes, checks and removes slots' namespaces with their veth pairs, over netlink.

Every method of `Wiring` runs on the network thread and leaves it in the detached namespace. What
one slot is stands in `wire`; which slot belongs to whom is decided in `slots`. A function has no
capability over its slot's namespace, so all it can leave behind is sockets; everything else is
compared all the same, because a slot that is not as new must never be used again.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection

from pyroute2.netlink.rtnl.ndmsg import NUD_PERMANENT

from agent.core.addresses import AddressPlan
from agent.network import bridge, conntrack, namespace, rtnetlink, sockets
from agent.network.netlink import Netlink, NetlinkError
from agent.network.rtnetlink import Ipv4Route, Link
from agent.network.stencil import ETH0, LO, Stencil
from agent.network.wire import Condition, Wire

Looks = tuple[set[Link], set[tuple[int, str]], set[Ipv4Route], set[tuple[int, str, int]]]
_LO_MTU = 65536  # what the kernel gives it


class Wiring:
    """All wires of one node; lives on the network thread, in the namespace `home`."""

    def __init__(self, plan: AddressPlan, mtu: int, home: int) -> None:
        """Bring up the bridge; raises OSError, and nothing is open then."""
        self._plan = plan
        self._mtu = mtu
        self._home = home
        self._route = rtnetlink.open_route()
        try:
            self._bridge = bridge.ensure(self._route, plan, mtu)
            self._stencil = Stencil(plan, mtu, self._bridge)
            self._netfilter = conntrack.open_netfilter()
        except BaseException:
            self._route.close()
            raise
        self._settings = {
            "ipv6/conf/default/disable_ipv6": "1",
            "ipv4/ip_unprivileged_port_start": "0",
            "ipv4/ping_group_range": f"0 {namespace.highest_group()}",
            "ipv4/conf/all/accept_redirects": "0",
        }

    def close(self) -> None:
        """Close the netlink sockets."""
        self._route.close()
        self._netfilter.close()

    def make(self, number: int) -> Wire:
        """Make a new namespace with eth0, joined to the bridge by an isolated port.

        Raises OSError; nothing is left then.
        """
        with namespace.fresh(self._home) as fd:
            namespace.set_kernel(self._settings)
            held, _ = sockets.count()
            inner = rtnetlink.open_route()
        try:
            with inner:
                self._join(number, fd)
                inner.send(f"furnish network slot {number}", self._stencil.inside(number))
            return Wire(number, fd, held)
        except BaseException:
            os.close(fd)
            raise

    def restore(self, wire: Wire) -> Condition:
        """Bring a used wire back to what `make` made, as far as that goes, and say how far.

        The kernel frees a closed socket a little later (RCU), so `BUSY` soon after the end of a
        process only means: ask again.
        """
        if wire.sockets < 0:
            return Condition.SPOILED
        with namespace.inside(wire.fd, self._home):
            # Counted before any socket of ours is made in there.
            held, waiting = sockets.count()
            if held > wire.sockets or waiting:
                sockets.end_tcp()
                _, waiting = sockets.count()
            if held > wire.sockets or waiting:
                return Condition.BUSY
            with rtnetlink.open_route() as inner:
                as_new = _looks(inner) == self._looks_as_new(wire.number)
                return Condition.CLEAN if as_new else Condition.SPOILED

    def forget(self, numbers: Collection[int]) -> None:
        """Drop what the kernel still tracks of the outward connections of these slots."""
        conntrack.forget(self._netfilter, [self._plan.address(number) for number in numbers])

    def cut(self, numbers: Collection[int]) -> None:
        """Remove the devices of slots at once, even if something still holds their namespaces."""
        rtnetlink.delete_links(self._route, map(self._plan.veth, numbers))
        rtnetlink.forget_neighbours(self._route, self._bridge, map(self._plan.address, numbers))

    def sweep(self, keep: Collection[int]) -> int:
        """Remove the devices of all slots but `keep`; return how many there were."""
        names = [link.name for link in rtnetlink.links(self._route)]
        found = [self._plan.number_of_veth(name) for name in names]
        strays = [number for number in found if number is not None and number not in keep]
        self.cut(strays)
        return len(strays)

    def _join(self, number: int, fd: int) -> None:
        what, batch = f"make network slot {number}", self._stencil.outside(number, fd)
        try:
            self._route.send(what, batch)
        except NetlinkError as error:
            if error.errno not in {errno.EEXIST, errno.EBUSY}:
                raise
            # The number's last device is still there, because the kernel has not come to it yet.
            self.cut([number])
            self._route.send(what, batch)

    def _looks_as_new(self, number: int) -> Looks:
        """What `_looks` sees in a slot of which nothing has been changed."""
        plan, gateway = self._plan, self._plan.bridge_address
        lo = Link(LO, "lo", True, _LO_MTU, "00:00:00:00:00:00")
        eth0 = Link(ETH0, "eth0", True, self._mtu, plan.mac(number))
        return (
            {lo, eth0},
            {(LO, "127.0.0.1/8"), (ETH0, f"{plan.address(number)}/32")},
            {Ipv4Route(f"{gateway}/32", "0.0.0.0", ETH0), Ipv4Route("0.0.0.0/0", gateway, ETH0)},
            {(ETH0, gateway, NUD_PERMANENT)},
        )


def _looks(inner: Netlink) -> Looks:
    return (
        set(rtnetlink.links(inner)),
        set(rtnetlink.addresses(inner)),
        set(rtnetlink.routes(inner)),
        set(rtnetlink.neighbours(inner)),
    )
