"""Forgets the tracked connections of given slots, so that their next functions inherit none.

Only forwarded traffic is tracked at all (see `egress`), so this finds what functions had open to
the outside. The kernel walks its whole table for one listing (8 ms on a host with 24 GB), so slots
are done together, and not at all while nothing is tracked. Works on the calling thread's namespace,
over nfnetlink (linux/netfilter/nfnetlink_conntrack.h).
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Collection
from pathlib import Path

from agent.network.netlink import (
    NETFILTER,
    Message,
    Netlink,
    NetlinkError,
    attributes,
    nest,
)

_CONNTRACK = 1 << 8
_GET, _DELETE = _CONNTRACK | 1, _CONNTRACK | 2
_GENERAL = struct.Struct("=BBH")
_TUPLE_ORIGINAL, _TUPLE_IP, _IP_V4_SOURCE = 1, 1, 1
_COUNT = Path("/proc/sys/net/netfilter/nf_conntrack_count")


def open_netfilter() -> Netlink:
    """Open an nfnetlink socket in the calling thread's namespace."""
    return Netlink(NETFILTER)


def forget(netlink: Netlink, addresses: Collection[str]) -> int:
    """Drop every tracked connection that one of `addresses` opened; return how many there were."""
    if not addresses or int(_COUNT.read_text()) == 0:
        return 0
    sources = {socket.inet_aton(address) for address in addresses}
    body = _GENERAL.pack(socket.AF_INET, 0, 0)
    dropped = 0
    for row in netlink.dump(Message(_GET, body, what="list tracked connections")):
        original = attributes(row[_GENERAL.size :]).get(_TUPLE_ORIGINAL, b"")
        ends = attributes(attributes(original).get(_TUPLE_IP, b""))
        if ends.get(_IP_V4_SOURCE) in sources:
            dropped += _drop(netlink, original)
    return dropped


def _drop(netlink: Netlink, original: bytes) -> int:
    body = _GENERAL.pack(socket.AF_INET, 0, 0) + nest(_TUPLE_ORIGINAL, original)
    try:
        netlink.send(Message(_DELETE, body, what="drop a tracked connection"))
    except NetlinkError as error:
        if error.errno != errno.ENOENT:  # it ended by itself
            raise
        return 0
    return 1
