"""The few kernel calls the standard library has no name for: prctl, mount, umount.

Plain wrappers that raise OSError with the path in it. No policy: what is mounted where is decided
in `mounts`, what dies with whom in `child`.
"""

from __future__ import annotations

import ctypes
import os

# include/uapi/linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36

# include/uapi/linux/mount.h
MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MNT_DETACH = 0x2

# SAFETY: use_errno gives each call its own errno; every function below declares its argument types,
# so that pointers are not cut to 32 bits. The library stays loaded for the life of the process.
_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
_libc.mount.argtypes = [ctypes.c_char_p] * 3 + [ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]


def _prctl(option: int, value: int) -> None:
    # SAFETY: only options with one integer argument come through here; none writes to memory.
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}, {value}): {os.strerror(number)}")


def become_subreaper() -> None:
    """Make orphans below this process its children instead of init's (prctl(2))."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(signal_number: int) -> None:
    """Ask for a signal when the parent's thread ends; lasts over exec of ordinary programs."""
    _prctl(_PR_SET_PDEATHSIG, signal_number)


def set_process_name(name: str) -> None:
    """Give this process the name that ps and top show; cut at 15 bytes by the kernel."""
    # SAFETY: the buffer outlives the call, and the kernel only reads up to its NUL.
    buffer = ctypes.create_string_buffer(name.encode())
    _prctl(_PR_SET_NAME, ctypes.addressof(buffer))


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """Mount `source` at `target` (mount(2)); raises OSError naming the target."""
    # SAFETY: all strings are NUL-terminated copies that outlive the call. An empty kind or data is
    # passed as NULL, as bind mounts want it.
    failed = _libc.mount(
        source.encode(), target.encode(), kind.encode() or None, flags, data.encode() or None
    )
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def unmount(target: str) -> None:
    """Take the mount at `target` out of sight at once, even if it is busy; raises OSError."""
    # SAFETY: as for mount; MNT_DETACH frees the mount when its last user goes.
    if _libc.umount2(target.encode(), MNT_DETACH):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)
