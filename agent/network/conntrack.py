"""Forgets the tracked connections of one slot, so that its next function inherits none.

Only forwarded traffic is tracked at all (see `egress`), so this finds what a function had open to
the outside. Works on the calling thread's namespace, over nfnetlink (linux/netfilter/
nfnetlink_conntrack.h).
"""

from __future__ import annotations

import errno
import socket
import struct

from agent.network.netlink import (
    NETFILTER,
    Message,
    Netlink,
    NetlinkError,
    attributes,
    blob,
    nest,
    u32,
)

_CONNTRACK = 1 << 8
_GET, _DELETE = _CONNTRACK | 1, _CONNTRACK | 2
_GENERAL = struct.Struct("=BBH")
_TUPLE_ORIGINAL, _FILTER = 1, 25
_TUPLE_IP, _IP_V4_SOURCE = 1, 1
_FILTER_ORIGINAL, _BY_SOURCE = 1, 1


def open_netfilter() -> Netlink:
    """Open an nfnetlink socket in the calling thread's namespace."""
    return Netlink(NETFILTER)


def forget(netlink: Netlink, address: str) -> int:
    """Drop every tracked connection that `address` has opened; return how many there were."""
    source = blob(_IP_V4_SOURCE, socket.inet_aton(address))
    body = (
        _GENERAL.pack(socket.AF_INET, 0, 0)
        + nest(_TUPLE_ORIGINAL, nest(_TUPLE_IP, source))
        + nest(_FILTER, u32(_FILTER_ORIGINAL, _BY_SOURCE))
    )
    dropped = 0
    for row in netlink.dump(Message(_GET, body, what="list tracked connections")):
        original = attributes(row[_GENERAL.size :]).get(_TUPLE_ORIGINAL, b"")
        addresses = attributes(attributes(original).get(_TUPLE_IP, b""))
        if addresses.get(_IP_V4_SOURCE) != socket.inet_aton(address):
            continue  # a kernel older than 5.8 lists all
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
