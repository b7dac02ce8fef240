"""What sockets a namespace still holds after its processes are gone, and how to end them.

A connection outlives its process: in TIME_WAIT for a minute, and it would keep the port from the
slot's next function. The kernel ends such connections on request (sock_diag(7), SOCK_DESTROY; since
Linux 4.9, TCP only, if built in). Works on the calling thread's namespace.
"""

from __future__ import annotations

import re
import socket
import struct
from contextlib import suppress
from pathlib import Path

from agent.network.netlink import SOCK_DIAG, Message, Netlink, NetlinkError

_BY_FAMILY, _DESTROY = 20, 21
# family, protocol, extensions, pad, states; then struct inet_diag_sockid of 48 bytes
_REQUEST = struct.Struct("=BBBxI48s")
_ALL_STATES = 0xFFFFFFFF
_ID_AT, _ID_BYTES = 4, 48
_COUNTS = re.compile(r"^sockets: used (\d+)$.*^TCP: .*\btw (\d+)\b", re.MULTILINE | re.DOTALL)


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
    with Netlink(SOCK_DIAG) as diag, suppress(NetlinkError):
        for family in (socket.AF_INET, socket.AF_INET6):
            body = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, _ALL_STATES, bytes(_ID_BYTES))
            for row in diag.dump(Message(_BY_FAMILY, body, what="list connections")):
                which = row[_ID_AT : _ID_AT + _ID_BYTES]
                body = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, _ALL_STATES, which)
                diag.send(Message(_DESTROY, body, what="end a connection"))
