"""Network namespaces of a thread: enter one, make one, and write the settings inside.

Everything here changes the calling thread only, and is used on the network thread alone. Namespaces
are named by file descriptors; none is ever mounted anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from agent.linux import namespaces

_HERE = "/proc/thread-self/ns/net"


def enter(fd: int) -> None:
    """Move the calling thread, never the main one, into a network namespace; raises OSError."""
    namespaces.enter(fd, namespaces.NETWORK)


@contextmanager
def fresh(home: int) -> Iterator[int]:
    """Be in a new network namespace for a while, then in `home` again, whatever happens.

    Gives a descriptor for the new namespace, which belongs to the caller unless an error is raised.
    """
    namespaces.unshare(namespaces.NETWORK)
    fd = -1
    try:
        fd = os.open(_HERE, os.O_RDONLY | os.O_CLOEXEC)
        yield fd
    except BaseException:
        if fd >= 0:
            os.close(fd)
        raise
    finally:
        enter(home)


@contextmanager
def inside(fd: int, home: int) -> Iterator[None]:
    """Be in the namespace behind `fd` for a while, then in `home` again, whatever happens."""
    enter(fd)
    try:
        yield
    finally:
        enter(home)


def set_kernel(values: Mapping[str, str]) -> None:
    """Write settings below /proc/sys/net of the calling thread's namespace; raises OSError."""
    for name, value in values.items():
        # The kernel shows each thread its own namespace's settings (net/sysctl_net.c).
        Path("/proc/sys/net", name).write_text(value)


def highest_group() -> int:
    """Return the highest group id the process's user namespace knows.

    ping_group_range takes mapped ids only: the usual 2147483647 is EINVAL in a user namespace.
    """
    highest = 0
    with suppress(OSError):
        for line in Path("/proc/self/gid_map").read_text().splitlines():
            first, _, count = (int(word) for word in line.split())
            highest = max(highest, first + count - 1)
    return min(highest, 2**31 - 1)
