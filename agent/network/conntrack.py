"""Forgets the tracked connections of given slots, so that their next functions inherit none.

Only forwarded traffic is tracked at all (see `egress`), so this finds what functions had open to
the outside. The kernel walks its whole table for one listing (8 ms on a host with 24 GB), so slots
are done together, and not at all while nothing is tracked. Works on the calling thread's namespace,
over nfnetlink (linux/netfilter/nfnetlink_conntrack.h).
"""

from __future__ import annotations

import errno
import logging
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

log = logging.getLogger(__name__)

_COUNT = Path("/proc/sys/net/netfilter/nf_conntrack_count")


def open_netfilter() -> Netlink:
    """Open an nfnetlink socket in the calling thread's namespace."""
    return Netlink(NETLINK_NETFILTER)


def forget(netlink: Netlink, addresses: Collection[str]) -> int:
    """Drop every tracked connection that one of `addresses` opened; return how many were dropped.

    One that the kernel keeps is told in the log and goes by itself: the others go all the same.
    """
    if not addresses or int(_COUNT.read_text()) == 0:
        return 0
    packed = [socket.inet_aton(address) for address in addresses]

    def concerns(row: bytes) -> bool:
        return any(address in row for address in packed)

    listing = _ask(IPCTNL_MSG_CT_GET, nfct_msg())
    rows = netlink.dump("list tracked connections", listing, nfct_msg, concerns)
    found = [_original(row) for row in rows]
    refused: list[str] = []
    dropped = sum(_drop(netlink, ends, refused) for ends in found if ends.saddr in addresses)
    if refused:
        log.warning("%d tracked connections stay, the first: %s", len(refused), refused[0])
    return dropped


def _original(row: Any) -> NFCTAttrTuple:
    """Return who opened a connection to whom. The kernel wants a tuple back as whole as it was."""
    said = row.get_attr("CTA_TUPLE_ORIG")
    ends = NFCTAttrTuple.from_netlink(socket.AF_INET, said)
    ports = said.get_attr("CTA_TUPLE_PROTO")  # pyroute2 knows those of TCP and UDP only
    ends.sport = ports.get_attr("CTA_PROTO_SRC_PORT")
    ends.dport = ports.get_attr("CTA_PROTO_DST_PORT")
    return ends


def _drop(netlink: Netlink, ends: NFCTAttrTuple, refused: list[str]) -> int:
    message = nfct_msg.create_from(tuple_orig=ends)
    try:
        netlink.send("drop a tracked connection", _ask(IPCTNL_MSG_CT_DELETE, message))
    except NetlinkError as error:
        if error.errno != errno.ENOENT:  # else it ended by itself
            refused.append(f"protocol {ends.proto} from {ends.saddr} to {ends.daddr}: {error}")
        return 0
    return 1


def _ask(kind: int, message: Any) -> bytes:
    message["header"]["type"] = NFNL_SUBSYS_CTNETLINK << 8 | kind
    message["header"]["flags"] = NLM_F_REQUEST
    message["nfgen_family"] = socket.AF_INET
    message.encode()
    return bytes(message.data)
