"""Forgets the tracked connections of given slots, so that their next functions inherit none.

Only forwarded traffic is tracked at all (see `egress`), so this finds what functions had open to
the outside. The kernel walks its whole table for one listing (8 ms on a host with 24 GB), so slots
are done together, and not at all while nothing is tracked. Works on the calling thread's namespace,
over nfnetlink (linux/netfilter/nfnetlink_conntrack.h).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pyroute2.netlink import NETLINK_NETFILTER, NLM_F_REQUEST
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_CTNETLINK
from pyroute2.netlink.nfnetlink.nfctsocket import (
    IPCTNL_MSG_CT_DELETE,
    IPCTNL_MSG_CT_GET,
    NFCTAttrTuple,
    nfct_msg,
)

from agent.network.netlink import Netlink, NetlinkError

_COUNT = Path("/proc/sys/net/netfilter/nf_conntrack_count")


def open_netfilter() -> Netlink:
    """Open an nfnetlink socket in the calling thread's namespace."""
    return Netlink(NETLINK_NETFILTER)


def forget(netlink: Netlink, addresses: Collection[str]) -> int:
    """Drop every tracked connection that one of `addresses` opened; return how many there were."""
    if not addresses or int(_COUNT.read_text()) == 0:
        return 0
    packed = [socket.inet_aton(address) for address in addresses]

    def concerns(row: bytes) -> bool:
        return any(address in row for address in packed)

    listing = _ask(IPCTNL_MSG_CT_GET, nfct_msg())
    rows = netlink.dump("list tracked connections", listing, nfct_msg, concerns)
    found = [_original(row) for row in rows]
    return sum(_drop(netlink, ends) for ends in found if ends.saddr in addresses)


def _original(row: Any) -> NFCTAttrTuple:
    return NFCTAttrTuple.from_netlink(socket.AF_INET, row.get_attr("CTA_TUPLE_ORIG"))


def _drop(netlink: Netlink, ends: NFCTAttrTuple) -> int:
    message = nfct_msg.create_from(tuple_orig=ends)
    try:
        netlink.send("drop a tracked connection", _ask(IPCTNL_MSG_CT_DELETE, message))
    except NetlinkError as error:
        if error.errno != errno.ENOENT:  # it ended by itself
            raise
        return 0
    return 1


def _ask(kind: int, message: Any) -> bytes:
    message["header"]["type"] = NFNL_SUBSYS_CTNETLINK << 8 | kind
    message["header"]["flags"] = NLM_F_REQUEST
    message["nfgen_family"] = socket.AF_INET
    message.encode()
    return bytes(message.data)
