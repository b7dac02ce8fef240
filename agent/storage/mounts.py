"""mount(2) and its newer siblings: overlay, tmpfs and their end.

Every call is one system call or a short, fixed row of them, and blocks: use `asyncio.to_thread`.
Errors come out as RuntimeUnavailable naming path and cause. Nothing here remembers a mount; who
owns which stands in `rootfs` and `slots`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from agent.errors import RuntimeUnavailable

_libc = ctypes.CDLL(None, use_errno=True)

# linux/mount.h, linux/fcntl.h
_MS_NOSUID, _MS_NODEV = 2, 4
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_AT_FDCWD = -100
_FSOPEN_CLOEXEC, _FSMOUNT_CLOEXEC, _MOVE_MOUNT_F_EMPTY_PATH = 1, 1, 4
_SET_FLAG, _SET_STRING, _CMD_CREATE = 0, 1, 6
_ATTR_NODEV = 4
_CLONE_FS = 0x200
# x86-64 and every architecture since: the numbers of the new mount interface are the same.
_SYS_MOVE_MOUNT, _SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 429, 430, 431, 432

# mount(2) takes one page of data, its end included.
MAX_DATA_BYTES = 4095


def overlay(target: Path, lowerdirs: Sequence[Path], upper: Path, work: Path) -> None:
    """Mount an overlay: `lowerdirs` read-only, topmost first, writes into `upper`.

    `volatile`: nothing is synced, for an instance's files are worth nothing after it. `userxattr`:
    the only kind of overlay attribute a user namespace may write. Images too deep for one page of
    mount data go layer by layer (Linux 6.5), or relative to their common directory before that.
    """
    data = _overlay_data(lowerdirs, upper, work)
    what = f"overlay at {target} over {len(lowerdirs)} layers"
    if len(data.encode()) <= MAX_DATA_BYTES:
        _mount("overlay", target, "overlay", _MS_NODEV, data, what)
        return
    try:
        _overlay_by_layer(target, lowerdirs, upper, work)
    except OSError as error:
        if error.errno not in {errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.EOPNOTSUPP}:
            raise _unavailable(what, error) from error
        _overlay_relative(target, lowerdirs, upper, work, what)


def _overlay_data(lowerdirs: Sequence[Path | str], upper: Path, work: Path) -> str:
    lower = ":".join(_escaped(str(path)).replace(":", "\\:") for path in lowerdirs)
    places = f"upperdir={_escaped(str(upper))},workdir={_escaped(str(work))}"
    return f"lowerdir={lower},{places},userxattr,volatile"


def _escaped(path: str) -> str:
    """Backslashes and commas are the option parser's own (Documentation/filesystems/overlayfs)."""
    return path.replace("\\", "\\\\").replace(",", "\\,")


def _overlay_by_layer(target: Path, lowerdirs: Sequence[Path], upper: Path, work: Path) -> None:
    # SAFETY: every string is NUL-terminated by ctypes and lives through its call; the kernel copies
    # it. Each descriptor is closed here whatever happens; the mount outlives its own.
    context = _call(_libc.syscall(_SYS_FSOPEN, b"overlay", _FSOPEN_CLOEXEC))
    mounted = -1
    try:
        pairs = [(b"lowerdir+", path) for path in lowerdirs]
        for key, path in (*pairs, (b"upperdir", upper), (b"workdir", work)):
            _configure(context, _SET_STRING, key, os.fsencode(path))
        for flag in (b"userxattr", b"volatile"):
            _configure(context, _SET_FLAG, flag, None)
        _configure(context, _CMD_CREATE, None, None)
        mounted = _call(_libc.syscall(_SYS_FSMOUNT, context, _FSMOUNT_CLOEXEC, _ATTR_NODEV))
        place = os.fsencode(target)
        flags = _MOVE_MOUNT_F_EMPTY_PATH
        _call(_libc.syscall(_SYS_MOVE_MOUNT, mounted, b"", _AT_FDCWD, place, flags))
    finally:
        os.close(context)
        if mounted >= 0:
            os.close(mounted)


def _configure(context: int, command: int, key: bytes | None, value: bytes | None) -> None:
    # SAFETY: fsconfig(2) copies key and value; auxiliary is 0 for these commands.
    _call(_libc.syscall(_SYS_FSCONFIG, context, command, key, value, 0))


def _overlay_relative(
    target: Path, lowerdirs: Sequence[Path], upper: Path, work: Path, what: str
) -> None:
    """Mount from a thread that stands in the layers' common directory, so that paths are short."""
    base = Path(os.path.commonpath(lowerdirs))
    short = [os.path.relpath(path, base) for path in lowerdirs]
    data = _overlay_data(short, upper, work)
    if len(data.encode()) > MAX_DATA_BYTES:
        raise RuntimeUnavailable(
            f"{what} cannot be mounted: the image has too many layers for this kernel; "
            "Linux 6.5 or newer can, or squash the image"
        )
    failed: list[Exception] = []

    def mount_here() -> None:
        try:
            # SAFETY: unshare(CLONE_FS) gives this thread a working directory of its own, so that
            # the chdir moves no other thread. The thread ends right after.
            _call(_libc.unshare(ctypes.c_int(_CLONE_FS)))
            os.chdir(base)
            _mount("overlay", target, "overlay", _MS_NODEV, data, what)
        except (OSError, RuntimeUnavailable) as error:
            failed.append(error)

    thread = threading.Thread(target=mount_here, name="kindling-mount")
    thread.start()
    thread.join()
    for error in failed:
        if isinstance(error, OSError):
            raise _unavailable(what, error) from error
        raise error


def tmpfs(target: Path, size_bytes: int, inodes: int) -> None:
    """Mount an empty tmpfs that holds at most `size_bytes` and `inodes` files."""
    data = f"size={size_bytes},nr_inodes={inodes},mode=0755"
    _mount("tmpfs", target, "tmpfs", _MS_NOSUID | _MS_NODEV, data, f"tmpfs at {target}")


def detach(target: Path) -> bool:
    """Take the mount at `target` out of sight; the kernel ends it when its last user is gone.

    Returns False when nothing was mounted there.
    """
    # SAFETY: the path is NUL-terminated and copied; NOFOLLOW: a link in its place is not followed.
    if _libc.umount2(os.fsencode(target), _MNT_DETACH | _UMOUNT_NOFOLLOW) == 0:
        return True
    code = ctypes.get_errno()
    if code in {errno.EINVAL, errno.ENOENT}:
        return False
    raise _unavailable(f"mount at {target}", OSError(code, os.strerror(code)), "ended")


def _mount(source: str, target: Path, kind: str, flags: int, data: str, what: str) -> None:
    # SAFETY: all four strings are NUL-terminated bytes objects held by this frame; the kernel
    # copies them before mount(2) returns.
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        kind.encode(),
        ctypes.c_ulong(flags),
        os.fsencode(data),
    )
    if result != 0:
        code = ctypes.get_errno()
        raise _unavailable(what, OSError(code, os.strerror(code)))


def _call(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _unavailable(what: str, error: OSError, verb: str = "mounted") -> RuntimeUnavailable:
    return RuntimeUnavailable(f"{what} cannot be {verb}: {os.strerror(error.errno or 0)}")
