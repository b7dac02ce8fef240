"""mount(2) and umount2(2) in the agent's own mount namespace, through ctypes.

Overlay, tmpfs and bind only, with errors that name the path and the cause. mount(2) takes at most
one page of options; an image with more layers than fit there is mounted with paths relative to the
layers' common parent. What is mounted where is `rootfs.py`'s and `slots.py`'s business. All of it
blocks shortly: call it off the loop or where 0.1 ms do not matter.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from agent.errors import RuntimeUnavailable

MS_NOSUID, MS_NODEV, MS_NOATIME = 2, 4, 1024  # linux/mount.h
MNT_DETACH = 2
OPTIONS_BYTES = 4095  # one page with its NUL, mount(2)
MAX_LAYERS = 500  # OVL_MAX_STACK, fs/overlayfs

# SAFETY: both functions take C strings and integers only; ctypes copies nothing that the kernel
# keeps. use_errno makes the call's errno visible to this thread alone.
_libc = ctypes.CDLL(None, use_errno=True)
_mount = _libc.mount
_mount.argtypes = [ctypes.c_char_p] * 3 + [ctypes.c_ulong, ctypes.c_char_p]
_umount2 = _libc.umount2
_umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]

_directory = threading.Lock()


def overlay(lower: Sequence[Path], upper: Path, work: Path, target: Path) -> None:
    """Mount an overlay: `lower` topmost first, changes into `upper`.

    `volatile`: nothing is synced, what an instance wrote is worth nothing after a crash.
    `userxattr` is what a user namespace may have (kernel 5.11). Raises RuntimeUnavailable.
    """
    if len(lower) > MAX_LAYERS:
        raise RuntimeUnavailable(f"{target}: {len(lower)} layers; the kernel takes {MAX_LAYERS}")
    options = _overlay_options([str(path) for path in lower], upper, work)
    if len(options) <= OPTIONS_BYTES:
        _do("overlay", target, "overlay", MS_NODEV, options)
        return
    parent = os.path.commonpath(lower)
    relative = [os.path.relpath(path, parent) for path in lower]
    options = _overlay_options(relative, upper, work)
    if len(options) > OPTIONS_BYTES:
        raise RuntimeUnavailable(
            f"{target}: the names of {len(lower)} layers do not fit into one page of mount options"
        )
    # SAFETY: a process has one working directory; the lock keeps two such mounts apart, and nothing
    # else in the agent uses relative paths.
    with _directory:
        before = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.chdir(parent)
            _do("overlay", target, "overlay", MS_NODEV, options)
        finally:
            os.fchdir(before)
            os.close(before)


def _overlay_options(lower: Sequence[str], upper: Path, work: Path) -> bytes:
    stack = ":".join(path.replace("\\", "\\\\").replace(":", "\\:") for path in lower)
    options = f"lowerdir={stack},upperdir={upper},workdir={work},userxattr,volatile"
    return options.encode()


def tmpfs(target: Path, size_bytes: int, inodes: int) -> None:
    """Mount a tmpfs of a size; what is in it counts as memory of whoever writes it."""
    options = f"size={size_bytes},nr_inodes={inodes},mode=0755"
    _do("tmpfs", target, "tmpfs", MS_NODEV | MS_NOSUID | MS_NOATIME, options.encode())


def unmount(target: Path) -> bool:
    """Unmount now, and lazily what is still busy; False when nothing is mounted there."""
    # SAFETY: MNT_DETACH only takes the mount out of the tree; it ends with its last user.
    if _umount2(os.fsencode(target), MNT_DETACH) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOENT):
        return False
    raise RuntimeUnavailable(f"{target} cannot be unmounted: {os.strerror(number)}")


def _do(source: str, target: Path, kind: str, flags: int, options: bytes) -> None:
    # SAFETY: all five arguments are NUL-free C strings and a flag word; the kernel copies them.
    done = _mount(source.encode(), os.fsencode(target), kind.encode(), flags, options)
    if done != 0:
        number = ctypes.get_errno()
        raise RuntimeUnavailable(f"{kind} cannot be mounted at {target}: {os.strerror(number)}")
