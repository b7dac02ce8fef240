"""What is said over rtnetlink: links, addresses, routes and neighbours, as messages.

Only what the function network needs (rtnetlink(7), linux/if_link.h). Builds messages and reads
dumps; `netlink` carries them. Interface numbers are chosen by us, so that a device and everything
on it fits into one batch.
"""

from __future__ import annotations

import socket
import struct
import sys
from dataclasses import dataclass

from agent.network.netlink import (
    CREATE,
    EXCLUDE,
    REPLACE,
    ROUTE,
    Message,
    Netlink,
    attributes,
    blob,
    nest,
    text,
    u8,
    u32,
)

_NEWLINK, _DELLINK, _GETLINK = 16, 17, 18
_NEWADDR, _GETADDR = 20, 22
_NEWROUTE, _GETROUTE = 24, 26
_NEWNEIGH, _DELNEIGH, _GETNEIGH = 28, 29, 30

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER = 1, 3, 4, 10
_IFLA_LINKINFO, _IFLA_GROUP, _IFLA_NET_NS_FD = 18, 27, 28
_INFO_KIND, _INFO_DATA, _INFO_SLAVE_KIND, _INFO_SLAVE_DATA = 1, 2, 4, 5
_VETH_PEER = 1
_BR_MCAST_SNOOPING = 23
_PORT_LEARNING, _PORT_UNICAST_FLOOD, _PORT_MCAST_FLOOD = 8, 9, 27
_PORT_BCAST_FLOOD, _PORT_ISOLATED = 30, 33
_IFF_UP = 1
# Any number but 0, the group of all other devices.
_CONDEMNED = 0x6B64
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_DST, _RTA_OIF, _RTA_GATEWAY = 1, 4, 5
_NDA_DST, _NDA_LLADDR = 1, 2
_NUD_PERMANENT, _NUD_NOARP, _NTF_MASTER = 0x80, 0x40, 0x04
TABLE_MAIN, _TABLE_LOCAL = 254, 255
_PROTO_BOOT = 3
_SCOPE_UNIVERSE, _SCOPE_LINK = 0, 253
_RTN_UNICAST, _RTN_LOCAL = 1, 2
_AF_BRIDGE = 7

_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBi")
_RTMSG = struct.Struct("=BBBBBBBBI")
_NDMSG = struct.Struct("=BxxxiHBB")

# rtnetlink multicast groups, as bits (linux/rtnetlink.h)
GROUPS_IPV4 = 0x1 | 0x10 | 0x40
"""Links, IPv4 addresses, IPv4 routes."""


@dataclass(frozen=True, slots=True)
class Link:
    """One network device."""

    index: int
    name: str
    up: bool
    mtu: int
    mac: str
    master: int


def link_header(index: int = 0, *, up: bool = False, touch_up: bool = True) -> bytes:
    """Return a struct ifinfomsg."""
    change = _IFF_UP if touch_up else 0
    return _IFINFO.pack(socket.AF_UNSPEC, 0, index, _IFF_UP if up else 0, change)


def mac_bytes(mac: str) -> bytes:
    """Return six bytes from six hex pairs."""
    return bytes.fromhex(mac.replace(":", ""))


def new_bridge(name: str, mac: str, mtu: int) -> Message:
    """Make a bridge, down, without multicast snooping. EEXIST if there is one."""
    data = nest(_INFO_DATA, u8(_BR_MCAST_SNOOPING, 0))
    body = (
        link_header(touch_up=False)
        + text(_IFLA_IFNAME, name)
        + blob(_IFLA_ADDRESS, mac_bytes(mac))
        + u32(_IFLA_MTU, mtu)
        + nest(_IFLA_LINKINFO, text(_INFO_KIND, "bridge"), data)
    )
    return Message(_NEWLINK, body, CREATE | EXCLUDE, f"make bridge {name}")


@dataclass(frozen=True, slots=True)
class VethPair:
    """A device `name` on bridge `master` here, and its peer in the namespace behind `netns_fd`."""

    name: str
    index: int
    master: int
    mtu: int
    netns_fd: int
    peer_name: str
    peer_index: int
    peer_mac: str


def new_veth(pair: VethPair) -> Message:
    """Make both ends, down; the peer is born in its namespace."""
    peer = (
        link_header(pair.peer_index, touch_up=False)
        + text(_IFLA_IFNAME, pair.peer_name)
        + blob(_IFLA_ADDRESS, mac_bytes(pair.peer_mac))
        + u32(_IFLA_MTU, pair.mtu)
        + u32(_IFLA_NET_NS_FD, pair.netns_fd)
    )
    body = (
        link_header(pair.index, touch_up=False)
        + text(_IFLA_IFNAME, pair.name)
        + u32(_IFLA_MTU, pair.mtu)
        + u32(_IFLA_MASTER, pair.master)
        + nest(
            _IFLA_LINKINFO,
            text(_INFO_KIND, "veth"),
            nest(_INFO_DATA, nest(_VETH_PEER, peer)),
        )
    )
    return Message(_NEWLINK, body, CREATE | EXCLUDE, f"make veth {pair.name}")


def isolate_port(index: int, name: str) -> Message:
    """Cut a bridge port off from all other ports, and bring it up.

    Learning and flooding are off too: the bridge knows each port's MAC from a fixed entry, so 500
    ports never see each other's first packets.
    """
    port = nest(
        _INFO_SLAVE_DATA,
        u8(_PORT_ISOLATED, 1),
        u8(_PORT_LEARNING, 0),
        u8(_PORT_UNICAST_FLOOD, 0),
        u8(_PORT_MCAST_FLOOD, 0),
        u8(_PORT_BCAST_FLOOD, 0),
    )
    body = link_header(index, up=True) + nest(
        _IFLA_LINKINFO, text(_INFO_SLAVE_KIND, "bridge"), port
    )
    return Message(_NEWLINK, body, what=f"isolate port {name}")


def set_up(index: int, name: str) -> Message:
    """Bring a device up."""
    return Message(_NEWLINK, link_header(index, up=True), what=f"bring {name} up")


def condemn(name: str) -> Message:
    """Put a device into the group that `delete_condemned` deletes; ENODEV if there is none."""
    body = link_header(touch_up=False) + text(_IFLA_IFNAME, name) + u32(_IFLA_GROUP, _CONDEMNED)
    return Message(_NEWLINK, body, what=f"delete {name}")


def delete_condemned() -> Message:
    """Delete all condemned devices in one go: each alone would cost the kernel 20 ms of waiting."""
    body = link_header(touch_up=False) + u32(_IFLA_GROUP, _CONDEMNED)
    return Message(_DELLINK, body, what="delete devices")


def new_address(index: int, address: str, prefix: int) -> Message:
    """Give a device an IPv4 address (again)."""
    ip = socket.inet_aton(address)
    body = _IFADDR.pack(socket.AF_INET, prefix, 0, _SCOPE_UNIVERSE, index)
    body += blob(_IFA_LOCAL, ip) + blob(_IFA_ADDRESS, ip)
    return Message(_NEWADDR, body, CREATE | REPLACE, f"address {address}/{prefix}")


def new_route(index: int, to: str | None, gateway: str | None) -> Message:
    """Route to one host on the link (`to`), or everything through a gateway (`to` None)."""
    scope = _SCOPE_UNIVERSE if gateway else _SCOPE_LINK
    body = _RTMSG.pack(
        socket.AF_INET, 32 if to else 0, 0, 0, TABLE_MAIN, _PROTO_BOOT, scope, _RTN_UNICAST, 0
    )
    if to:
        body += blob(_RTA_DST, socket.inet_aton(to))
    if gateway:
        body += blob(_RTA_GATEWAY, socket.inet_aton(gateway))
    body += u32(_RTA_OIF, index)
    return Message(_NEWROUTE, body, CREATE | REPLACE, f"route to {to or 'everything'}")


def new_neighbour(index: int, address: str, mac: str) -> Message:
    """Fix an IPv4 neighbour's MAC, so that nobody has to ask and the table's limit is not used."""
    body = _NDMSG.pack(socket.AF_INET, index, _NUD_PERMANENT, 0, _RTN_UNICAST)
    body += blob(_NDA_DST, socket.inet_aton(address)) + blob(_NDA_LLADDR, mac_bytes(mac))
    return Message(_NEWNEIGH, body, CREATE | REPLACE, f"neighbour {address}")


def delete_neighbour(index: int, address: str) -> Message:
    """Forget a neighbour; ENOENT if it is unknown."""
    body = _NDMSG.pack(socket.AF_INET, index, 0, 0, 0) + blob(_NDA_DST, socket.inet_aton(address))
    return Message(_DELNEIGH, body, what=f"forget neighbour {address}")


def new_forwarding(index: int, mac: str) -> Message:
    """Tell the bridge behind which of its ports a MAC lives."""
    body = _NDMSG.pack(_AF_BRIDGE, index, _NUD_PERMANENT | _NUD_NOARP, _NTF_MASTER, 0)
    body += blob(_NDA_LLADDR, mac_bytes(mac))
    return Message(_NEWNEIGH, body, CREATE | REPLACE, f"forwarding entry {mac}")


def links(netlink: Netlink) -> list[Link]:
    """Return the devices of the socket's namespace."""
    rows = netlink.dump(Message(_GETLINK, link_header(touch_up=False), what="list links"))
    return [_link(row) for row in rows]


def addresses(netlink: Netlink) -> list[tuple[int, str]]:
    """Return (device number, IPv4 address/prefix) pairs."""
    body = _IFADDR.pack(socket.AF_INET, 0, 0, 0, 0)
    found = []
    for row in netlink.dump(Message(_GETADDR, body, what="list addresses")):
        _, prefix, _, _, index = _IFADDR.unpack_from(row)
        local = attributes(row[_IFADDR.size :]).get(_IFA_LOCAL, b"")
        if len(local) == 4:
            found.append((index, f"{socket.inet_ntoa(local)}/{prefix}"))
    return found


@dataclass(frozen=True, slots=True)
class Route:
    """One IPv4 route; `kind` is the kernel's RTN_ number, `to` a network in CIDR form."""

    kind: int
    to: str
    gateway: str
    index: int


def routes(netlink: Netlink, table: int = TABLE_MAIN, kind: int = 0) -> list[Route]:
    """Return the IPv4 routes of one table; the kernel itself leaves out all other tables."""
    # Strict checking (see netlink) makes table and kind in the request's header a filter.
    body = _RTMSG.pack(socket.AF_INET, 0, 0, 0, table, 0, 0, kind, 0)
    found = []
    for row in netlink.dump(Message(_GETROUTE, body, what="list routes")):
        _, prefix, _, _, in_table, _, _, of_kind, _ = _RTMSG.unpack_from(row)
        if in_table != table or (kind and of_kind != kind):
            continue
        attrs = attributes(row[_RTMSG.size :])
        found.append(
            Route(
                of_kind,
                f"{socket.inet_ntoa(attrs.get(_RTA_DST, bytes(4)))}/{prefix}",
                socket.inet_ntoa(attrs.get(_RTA_GATEWAY, bytes(4))),
                int.from_bytes(attrs.get(_RTA_OIF, b"\0"), sys.byteorder),
            )
        )
    return found


def local_networks(netlink: Netlink) -> frozenset[str]:
    """Return every IPv4 address and network the namespace answers for itself, in CIDR form.

    Read from the kernel's own table of local routes, so that secondary addresses and whole
    networks bound to the host are seen too.
    """
    found = routes(netlink, _TABLE_LOCAL, _RTN_LOCAL)
    return frozenset(route.to for route in found if not route.to.endswith("/0"))


def neighbours(netlink: Netlink) -> list[tuple[int, str, int]]:
    """Return (device number, IPv4 address, state) of the neighbour table."""
    body = _NDMSG.pack(socket.AF_INET, 0, 0, 0, 0)
    found = []
    for row in netlink.dump(Message(_GETNEIGH, body, what="list neighbours")):
        _, index, state, _, _ = _NDMSG.unpack_from(row)
        address = attributes(row[_NDMSG.size :]).get(_NDA_DST, b"")
        if len(address) == 4:
            found.append((index, socket.inet_ntoa(address), state))
    return found


def open_route() -> Netlink:
    """Open an rtnetlink socket in the calling thread's namespace."""
    return Netlink(ROUTE)


def _link(row: bytes) -> Link:
    _, _, index, flags, _ = _IFINFO.unpack_from(row)
    attrs = attributes(row[_IFINFO.size :])
    return Link(
        index,
        attrs[_IFLA_IFNAME].rstrip(b"\0").decode(),
        bool(flags & _IFF_UP),
        int.from_bytes(attrs.get(_IFLA_MTU, b"\0"), sys.byteorder),
        attrs.get(_IFLA_ADDRESS, b"").hex(":"),
        int.from_bytes(attrs.get(_IFLA_MASTER, b"\0"), sys.byteorder),
    )
