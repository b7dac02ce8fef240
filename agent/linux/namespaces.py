"""setns(2) and unshare(2): what a thread shares with others, and in which namespaces it is.

Both change the calling thread only, and its later children. Namespaces are named by descriptors.
"""

from __future__ import annotations

import ctypes

from agent.linux.libc import LIBC, last_error

# include/uapi/linux/sched.h
FS = 0x200  # CLONE_FS: root, working directory and umask; no namespace, but left the same way
MOUNT = 0x00020000
USER = 0x10000000
NETWORK = 0x40000000

LIBC.setns.argtypes = [ctypes.c_int, ctypes.c_int]
LIBC.unshare.argtypes = [ctypes.c_int]


def enter(fd: int, kind: int) -> None:
    """Move the calling thread into the namespace behind `fd`; raises OSError if of another kind."""
    # SAFETY: no memory is passed to the kernel. Other threads, and what they have opened, stay
    # where they are; so the caller must be a thread of its own, never one that others share: what
    # it opens later would be in the wrong place.
    if LIBC.setns(fd, kind) != 0:
        raise last_error("setns")


def unshare(kinds: int) -> None:
    """Give the calling thread new ones of `kinds`, at first as the old ones; raises OSError."""
    # SAFETY: no memory is passed to the kernel, and other threads keep theirs. A namespace belongs
    # to the thread's user namespace and dies with its last descriptor, mount and process. USER
    # takes a process of one thread.
    if LIBC.unshare(kinds) != 0:
        raise last_error("unshare")
