"""The requests that make a slot, packed once; each slot only puts its own values in.

pyroute2 takes longer to pack one slot's requests than the kernel takes to carry them out
(DECISIONS 37). So it packs those of a specimen, once per worker, and a slot's are the specimen's
bytes with its own values in place of the specimen's. The values are the plan's; `wire` sends.
"""

from __future__ import annotations

import socket
import sys
from typing import Any

from pyroute2.netlink.rtnl.ndmsg import NTF_MASTER, NUD_NOARP, NUD_PERMANENT

from agent.core.addresses import AddressPlan
from agent.network.rtnetlink import packed

LO, ETH0 = 1, 2
# Device numbers are ours to choose; these leave room for tap0, the bridge and what else comes.
_FIRST_INDEX = 10_000

# The specimen. Values that occur nowhere else in its requests, each as long as any slot's can be:
# a name of 15 letters, which the kernel reads up to the first NUL; reserved addresses.
_NAME = "kindling-a-slot"
_INDEX, _FD = 0x6B64_8E01, 0x6B64_8E02
_ADDRESS, _MAC = "247.142.107.100", "02:8e:f7:8e:6b:64"


class Stencil:
    """Gives the requests of every slot of one bridge, as bytes for `Netlink.send`."""

    def __init__(self, plan: AddressPlan, mtu: int, bridge: int) -> None:
        self._plan = plan
        self._mtu = mtu
        self._bridge = bridge
        self._outside = packed(self._write_outside)
        self._inside = packed(self._write_inside)

    def outside(self, number: int, netns_fd: int) -> bytes:
        """Make the pair, its peer in the namespace behind `netns_fd`; join it to the bridge."""
        return self._fill(self._outside, number).replace(_packed(_FD), _packed(netns_fd))

    def inside(self, number: int) -> bytes:
        """Furnish the slot's own namespace: addresses, routes, the gateway's MAC."""
        return self._fill(self._inside, number)

    def _fill(self, specimen: bytes, number: int) -> bytes:
        plan = self._plan
        name = plan.veth(number).encode().ljust(len(_NAME), b"\0")
        return (
            specimen.replace(_NAME.encode(), name)
            .replace(_packed(_INDEX), _packed(_FIRST_INDEX + number))
            .replace(_mac(_MAC), _mac(plan.mac(number)))
            .replace(socket.inet_aton(_ADDRESS), socket.inet_aton(plan.address(number)))
        )

    def _write_outside(self, ip: Any) -> None:
        # The kernel's own words, because link(peer=...) cannot give the peer a number.
        peer = {
            "index": ETH0,
            "attrs": [
                ("IFLA_IFNAME", "eth0"),
                ("IFLA_ADDRESS", _MAC),
                ("IFLA_MTU", self._mtu),
                ("IFLA_NET_NS_FD", _FD),
            ],
        }
        data = ("IFLA_INFO_DATA", {"attrs": [("VETH_INFO_PEER", peer)]})
        ip.link(
            "add",
            ifname=_NAME,
            index=_INDEX,
            mtu=self._mtu,
            master=self._bridge,
            linkinfo={"attrs": [("IFLA_INFO_KIND", "veth"), data]},
        )
        # Cut off from all other ports. Learning and flooding are off too: the bridge knows each
        # port's MAC from a fixed entry, so 500 ports never see each other's first packets.
        ip.brport(
            "set",
            index=_INDEX,
            isolated=1,
            learning=0,
            unicast_flood=0,
            mcast_flood=0,
            bcast_flood=0,
        )
        ip.link("set", index=_INDEX, state="up")
        fixed = {"state": NUD_PERMANENT | NUD_NOARP, "flags": NTF_MASTER}
        ip.fdb("replace", ifindex=_INDEX, lladdr=_MAC, **fixed)
        # Fixed, so that nobody has to ask and the table's limit is not used.
        ip.neigh("replace", ifindex=self._bridge, dst=_ADDRESS, lladdr=_MAC, state=NUD_PERMANENT)

    def _write_inside(self, ip: Any) -> None:
        gateway, mac = self._plan.bridge_address, self._plan.bridge_mac
        ip.link("set", index=LO, state="up")
        ip.addr("replace", index=ETH0, address=_ADDRESS, prefixlen=32)
        ip.link("set", index=ETH0, state="up")
        ip.route("replace", dst=f"{gateway}/32", oif=ETH0, scope="link", proto="boot")
        ip.route("replace", dst="0.0.0.0/0", gateway=gateway, oif=ETH0, proto="boot")
        ip.neigh("replace", ifindex=ETH0, dst=gateway, lladdr=mac, state=NUD_PERMANENT)


def _packed(number: int) -> bytes:
    return number.to_bytes(4, sys.byteorder)


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))
