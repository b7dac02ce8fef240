"""Directories in a root file system of others: no link in it leads out of it (openat2(2)).

Raises OSError. Which directories are wanted is decided above.
"""

from __future__ import annotations

import ctypes
import os
import struct

from agent.linux.libc import LIBC, last_error

# x86-64 and every architecture since; include/uapi/linux/openat2.h
_SYS_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS, _RESOLVE_IN_ROOT = 0x02, 0x10
_HOW = struct.Struct("QQQ")  # flags, mode, resolve


def open_directory(root: int, path: str) -> int:
    """Open a directory below `root` as a process would whose root that is; the caller closes it."""
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    how = _HOW.pack(flags, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    # SAFETY: path and how are bytes that outlive the call, the path NUL-terminated by ctypes; the
    # kernel copies both, and reads of `how` no more than the size that is given.
    found: int = LIBC.syscall(
        ctypes.c_long(_SYS_OPENAT2),
        ctypes.c_int(root),
        os.fsencode(path),
        how,
        ctypes.c_size_t(_HOW.size),
    )
    if found < 0:
        raise last_error(path)
    return found


def make_directories(root: int, path: str, mode: int = 0o755) -> None:
    """Make a directory below `root` with those above it; what is there stays as it is."""
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    for n, part in enumerate(parts):
        above = open_directory(root, "/".join(parts[:n]) or ".")
        try:
            if not _is_there(root, "/".join(parts[: n + 1])):
                os.mkdir(part, mode, dir_fd=above)
        finally:
            os.close(above)


def _is_there(root: int, path: str) -> bool:
    try:
        os.close(open_directory(root, path))
    except FileNotFoundError:
        return False
    return True
