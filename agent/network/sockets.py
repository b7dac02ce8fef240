"""What sockets a namespace still holds after its processes are gone, and how to end them.

A connection outlives its process: in TIME_WAIT for a minute, and it would keep the port from the
slot's next function. The kernel ends such connections on request (sock_diag(7), SOCK_DESTROY; since
Linux 4.9, TCP only, if built in). Works on the calling thread's namespace.
"""

from __future__ import annotations

import re
import socket
from contextlib import suppress
from pathlib import Path

from pyroute2.netlink import NETLINK_SOCK_DIAG, NLM_F_REQUEST, nlmsg
from pyroute2.netlink.diag import SOCK_DESTROY, SOCK_DIAG_BY_FAMILY

from agent.network.netlink import Netlink, NetlinkError

_ALL_STATES = 0xFFFFFFFF
_ANY = bytes(48)
_COUNTS = re.compile(r"^sockets: used (\d+)$.*^TCP: .*\btw (\d+)\b", re.MULTILINE | re.DOTALL)


# A socket is named by the 48 bytes the kernel gave for it (struct inet_diag_sockid). pyroute2 turns
# them into text on reading and cannot turn that back, so they are one field here.
class _Asked(nlmsg):  # type: ignore[misc]  # pyroute2 has no types
    fields = (("family", "B"), ("protocol", "B"), ("pad", "H"), ("states", "I"), ("id", "48s"))


class _Listed(nlmsg):  # type: ignore[misc]
    fields = (("family", "B"), ("state", "B"), ("pad", "H"), ("id", "48s"))


def count() -> tuple[int, int]:
    """Return how many sockets of any kind the namespace holds, and how many wait in TIME_WAIT."""
    found = _COUNTS.search(Path("/proc/thread-self/net/sockstat").read_text())
    if found is None:
        raise OSError(0, "/proc/net/sockstat of this kernel has no line 'sockets: used'")
    return int(found[1]), int(found[2])


def end_tcp() -> None:
    """Ask the kernel to end every TCP connection and listener of the namespace.

    Does nothing where the kernel cannot: ask `count` afterwards.
    """
    with Netlink(NETLINK_SOCK_DIAG) as diag, suppress(NetlinkError):
        for family in (socket.AF_INET, socket.AF_INET6):
            listing = _ask(SOCK_DIAG_BY_FAMILY, family, _ANY)
            for row in diag.dump("list connections", listing, _Listed):
                diag.send("end a connection", _ask(SOCK_DESTROY, family, row["id"]))


def _ask(kind: int, family: int, which: bytes) -> bytes:
    message = _Asked()
    message["header"]["type"] = kind
    message["header"]["flags"] = NLM_F_REQUEST
    message["family"] = family
    message["protocol"] = socket.IPPROTO_TCP
    message["states"] = _ALL_STATES
    message["id"] = which
    message.encode()
    return bytes(message.data)
