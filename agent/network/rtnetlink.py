"""What is said over rtnetlink: links, addresses, routes, neighbours; pyroute2 packs and reads it.

`packed` turns pyroute2's words (those of its IPRoute) into bytes, which `netlink` carries; lists
come back as small values. Interface numbers are chosen by us, so that a device and everything on it
fits into one batch.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from operator import methodcaller
from typing import Any

from pyroute2 import IPBatch
from pyroute2.netlink import NETLINK_ROUTE
from pyroute2.netlink.rtnl import (
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETNEIGH,
    RTM_GETROUTE,
    RTMGRP_IPV4_IFADDR,
    RTMGRP_IPV4_ROUTE,
    RTMGRP_LINK,
    rt_type,
)
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import IFF_UP, ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from agent.network.netlink import Netlink, NetlinkError

# Any number but 0, the group of all other devices.
_CONDEMNED = 0x6B64


def open_route() -> Netlink:
    """Open an rtnetlink socket in the calling thread's namespace."""
    return Netlink(NETLINK_ROUTE)


def open_events() -> Netlink:
    """Open a socket that hears of links, IPv4 addresses and IPv4 routes, and never waits."""
    return Netlink(NETLINK_ROUTE, RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE)


def packed(write: Callable[[Any], object]) -> bytes:
    """Return what `write` asks of an IPRoute, as bytes; nothing is sent."""
    with IPBatch() as batch:
        write(batch)
        return bytes(batch.batch)


def delete_links(netlink: Netlink, names: Iterable[str]) -> None:
    """Delete devices, those that exist, in one go: each alone would cost the kernel 20 ms."""
    condemned = False
    for name in names:
        condemn = methodcaller("link", "set", ifname=name, group=_CONDEMNED)
        try:
            netlink.send(f"delete {name}", packed(condemn))
            condemned = True
        except NetlinkError as error:
            if error.errno != errno.ENODEV:
                raise
    if condemned:
        netlink.send("delete devices", packed(methodcaller("link", "del", group=_CONDEMNED)))


def forget_neighbours(netlink: Netlink, index: int, addresses: Iterable[str]) -> None:
    """Remove entries from a device's neighbour table, those that exist."""
    for address in addresses:
        forget = methodcaller("neigh", "del", ifindex=index, dst=address)
        with suppress(NetlinkError):
            netlink.send(f"forget neighbour {address}", packed(forget))


@dataclass(frozen=True, slots=True)
class Link:
    """One network device."""

    index: int
    name: str
    up: bool
    mtu: int
    mac: str


@dataclass(frozen=True, slots=True)
class Ipv4Route:
    """One IPv4 route; `to` is a network in CIDR form."""

    to: str
    gateway: str
    index: int


def links(netlink: Netlink) -> list[Link]:
    """Return the devices of the socket's namespace."""
    return [
        Link(
            row["index"],
            row.get_attr("IFLA_IFNAME"),
            bool(row["flags"] & IFF_UP),
            row.get_attr("IFLA_MTU"),
            row.get_attr("IFLA_ADDRESS", ""),
        )
        for row in netlink.dump("list links", _LIST_LINKS, ifinfmsg)
    ]


def addresses(netlink: Netlink) -> list[tuple[int, str]]:
    """Return (device number, IPv4 address/prefix) pairs."""
    found = netlink.dump("list addresses", _LIST_ADDRESSES, ifaddrmsg)
    return [(row["index"], f"{row.get_attr('IFA_LOCAL')}/{row['prefixlen']}") for row in found]


def routes(netlink: Netlink) -> list[Ipv4Route]:
    """Return the IPv4 routes of the main table."""
    return _routes(netlink, *_MAIN)


def local_networks(netlink: Netlink) -> frozenset[str]:
    """Return every IPv4 address and network the namespace answers for itself, in CIDR form.

    Read from the kernel's own table of local routes, so that secondary addresses and whole
    networks bound to the host are seen too.
    """
    found = _routes(netlink, *_LOCAL)
    return frozenset(route.to for route in found if not route.to.endswith("/0"))


def neighbours(netlink: Netlink) -> list[tuple[int, str, int]]:
    """Return (device number, IPv4 address, state) of the neighbour table."""
    found = netlink.dump("list neighbours", _LIST_NEIGHBOURS, ndmsg)
    return [(row["ifindex"], row.get_attr("NDA_DST"), row["state"]) for row in found]


def _routes(netlink: Netlink, table: int, kind: int) -> list[Ipv4Route]:
    return [
        Ipv4Route(
            f"{row.get_attr('RTA_DST', '0.0.0.0')}/{row['dst_len']}",
            row.get_attr("RTA_GATEWAY", "0.0.0.0"),
            row.get_attr("RTA_OIF", 0),
        )
        for row in netlink.dump("list routes", _LIST_ROUTES[table, kind], rtmsg)
        if (row["table"], row["type"]) == (table, kind)
    ]


def _listing(kind: int, message: Any, **fields: object) -> bytes:
    for name, value in fields.items():
        message[name] = value
    message["header"]["type"] = kind
    message.encode()
    return bytes(message.data)


_MAIN, _LOCAL = (254, rt_type["unicast"]), (255, rt_type["local"])
# RTEXT_FILTER_SKIP_STATS, 1 << 3: figures that `links` leaves out anyway (linux/rtnetlink.h).
_LIST_LINKS = _listing(RTM_GETLINK, ifinfmsg(), attrs=[("IFLA_EXT_MASK", 1 << 3)])
_LIST_ADDRESSES = _listing(RTM_GETADDR, ifaddrmsg(), family=socket.AF_INET)
_LIST_NEIGHBOURS = _listing(RTM_GETNEIGH, ndmsg(), family=socket.AF_INET)
# Strict checking (see netlink) makes table and kind in the request's header a filter: a host may
# have a hundred thousand routes of other kinds. IPRoute would ask for all and choose afterwards.
_LIST_ROUTES = {
    (table, kind): _listing(RTM_GETROUTE, rtmsg(), family=socket.AF_INET, table=table, type=kind)
    for table, kind in (_MAIN, _LOCAL)
}
