"""One slot in the kernel: its namespace, and how to find it again in a process that lives in it.

Speaks no netlink, so that a worker can look and adopt before it has imported what does (`wiring`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from enum import Enum

from agent.core.addresses import AddressPlan
from agent.errors import NotFound, RuntimeUnavailable
from agent.network import namespace

# SIOCGIFHWADDR and struct ifreq: a name, then here an address family and the MAC (netdevice(7)).
_GET_MAC = 0x8927
_IFREQ = struct.Struct("16s24s")
_MAC_AT = slice(2, 8)


class Condition(Enum):
    """What became of a used wire."""

    CLEAN = "clean"
    """As new."""
    BUSY = "busy"
    """Sockets are left; they may be gone in a moment."""
    SPOILED = "spoiled"
    """Not what it was, or nobody knows what it was: to be destroyed."""


@dataclass(frozen=True, slots=True)
class Wire:
    """One slot in the kernel. `fd` is its namespace; whoever has the wire closes it."""

    number: int
    fd: int
    sockets: int = -1
    """Sockets the kernel itself holds in a fresh namespace; -1: unknown, so never used again."""


def find(plan: AddressPlan, home: int, number: int, pid: int) -> Wire:
    """Open the namespace of a running process and make sure that it is slot `number`'s.

    On the network thread, which is left in `home`. Raises NotFound when the process is gone or has
    another network.
    """
    try:
        fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NotFound(f"process {pid} of network slot {number} is gone") from error
    try:
        with namespace.inside(fd, home):
            found = mac("eth0")
    except BaseException:
        os.close(fd)
        raise
    if found != plan.mac(number):
        os.close(fd)
        raise NotFound(f"process {pid} is not in network slot {number}")
    return Wire(number, fd)


def check_bridge(plan: AddressPlan) -> None:
    """Make sure, on the network thread, that a bridge that is there already is this plan's.

    Raises RuntimeUnavailable when it is another's: nothing may be adopted or changed then.
    """
    found = mac(plan.bridge)
    if found not in {None, plan.bridge_mac}:
        raise RuntimeUnavailable(
            f"bridge {plan.bridge} stands for another subnet (its MAC is {found}, not "
            f"{plan.bridge_mac}): a changed network.subnet needs a stop and start of the agent"
        )


def mac(device: str) -> str | None:
    """Return the MAC of a device of the calling thread's namespace, None if there is no such."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        try:
            answer = fcntl.ioctl(probe, _GET_MAC, _IFREQ.pack(device.encode(), b""))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
    hardware: bytes = _IFREQ.unpack(answer)[1]
    return hardware[_MAC_AT].hex(":")


def drop(wire: Wire) -> None:
    """Close a wire that nothing uses; the kernel removes namespace and devices in its own time."""
    os.close(wire.fd)
