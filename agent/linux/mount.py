"""mount(2), umount2(2) and the newer calls that make a mount step by step.

Plain wrappers that raise OSError. What is mounted where is decided in `storage` and `rootless`.
"""

from __future__ import annotations

import ctypes
import os

from agent.linux.libc import LIBC, last_error

# include/uapi/linux/mount.h
RDONLY = 0x1
NOSUID = 0x2
NODEV = 0x4
NOEXEC = 0x8
REMOUNT = 0x20
BIND = 0x1000
REC = 0x4000
PRIVATE = 0x40000
ATTR_NODEV = 0x4
_MNT_DETACH, _UMOUNT_NOFOLLOW = 0x2, 0x8
_FSOPEN_CLOEXEC, _FSMOUNT_CLOEXEC, _MOVE_MOUNT_F_EMPTY_PATH = 1, 1, 4
_SET_FLAG, _SET_STRING, _CMD_CREATE = 0, 1, 6
# include/uapi/linux/fcntl.h
_AT_FDCWD = -100
# x86-64 and every architecture since: the numbers of the new mount interface are the same.
_SYS_MOVE_MOUNT, _SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 429, 430, 431, 432

# mount(2) takes one page of data, its end included.
MAX_DATA_BYTES = 4095

Place = str | os.PathLike[str]

LIBC.mount.argtypes = [ctypes.c_char_p] * 3 + [ctypes.c_ulong, ctypes.c_char_p]
LIBC.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]


def mount(source: Place, target: Place, kind: str, flags: int, data: str = "") -> None:
    """Mount `source` at `target`; raises OSError naming the target."""
    # SAFETY: all strings are NUL-terminated bytes that outlive the call, and the kernel copies
    # them. An empty kind or data is passed as NULL, as bind mounts want it.
    failed = LIBC.mount(
        os.fsencode(source),
        os.fsencode(target),
        kind.encode() or None,
        flags,
        os.fsencode(data) or None,
    )
    if failed:
        raise last_error(os.fspath(target))


def unmount(target: Place) -> None:
    """Take the mount at `target` out of sight at once, even if it is busy; raises OSError.

    The kernel ends it when its last user is gone. A link in its place is not followed.
    """
    # SAFETY: the path is NUL-terminated, outlives the call and is copied.
    if LIBC.umount2(os.fsencode(target), _MNT_DETACH | _UMOUNT_NOFOLLOW):
        raise last_error(os.fspath(target))


class Making:
    """A mount in the making, option by option: no page of data bounds it (Linux 5.2).

    Every method raises OSError. Close it whatever happens; what is mounted by then stays.
    """

    def __init__(self, kind: str) -> None:
        self._context = _call(_SYS_FSOPEN, kind.encode(), _FSOPEN_CLOEXEC)

    def set(self, key: str, value: Place) -> None:
        """Set an option; some may be set again and again."""
        self._configure(_SET_STRING, key.encode(), os.fsencode(value))

    def set_flag(self, key: str) -> None:
        """Set an option that has no value."""
        self._configure(_SET_FLAG, key.encode(), None)

    def mount(self, target: Place, attributes: int) -> None:
        """Make it as the options say, and put it at `target`."""
        self._configure(_CMD_CREATE, None, None)
        mounted = _call(_SYS_FSMOUNT, self._context, _FSMOUNT_CLOEXEC, attributes)
        try:
            place = os.fsencode(target)
            _call(_SYS_MOVE_MOUNT, mounted, b"", _AT_FDCWD, place, _MOVE_MOUNT_F_EMPTY_PATH)
        finally:
            os.close(mounted)

    def close(self) -> None:
        """Give the descriptor back, once."""
        os.close(self._context)

    def _configure(self, command: int, key: bytes | None, value: bytes | None) -> None:
        # fsconfig(2): auxiliary is 0 for these commands.
        _call(_SYS_FSCONFIG, self._context, command, key, value, 0)


def _call(number: int, *arguments: int | bytes | None) -> int:
    # SAFETY: strings are NUL-terminated by ctypes and live through the call; the kernel copies
    # them. Integers are as wide as the registers that syscall(2) passes on.
    wide = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    result: int = LIBC.syscall(ctypes.c_long(number), *wide)
    if result < 0:
        raise last_error()
    return result
