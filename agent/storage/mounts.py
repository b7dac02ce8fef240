"""What a container's file system is mounted from: overlay, tmpfs and their end.

Every call is one system call or a short, fixed row of them, and blocks: use `asyncio.to_thread`.
Errors come out as RuntimeUnavailable naming path and cause. Nothing here remembers a mount; who
owns which stands in `rootfs` and `slots`.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from agent.errors import RuntimeUnavailable
from agent.linux import mount, namespaces


def overlay(target: Path, lowerdirs: Sequence[Path], upper: Path, work: Path) -> None:
    """Mount an overlay: `lowerdirs` read-only, topmost first, writes into `upper`.

    `volatile`: nothing is synced, for an instance's files are worth nothing after it. `userxattr`:
    the only kind of overlay attribute a user namespace may write. Images too deep for one page of
    mount data go layer by layer (Linux 6.5), or relative to their common directory before that.
    """
    data = _overlay_data(lowerdirs, upper, work)
    what = f"overlay at {target} over {len(lowerdirs)} layers"
    if len(data.encode()) <= mount.MAX_DATA_BYTES:
        _mount("overlay", target, "overlay", mount.NODEV, data, what)
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
    with closing(mount.Making("overlay")) as making:
        for path in lowerdirs:
            making.set("lowerdir+", path)
        making.set("upperdir", upper)
        making.set("workdir", work)
        for flag in ("userxattr", "volatile"):
            making.set_flag(flag)
        making.mount(target, mount.ATTR_NODEV)


def _overlay_relative(
    target: Path, lowerdirs: Sequence[Path], upper: Path, work: Path, what: str
) -> None:
    """Mount from a thread that stands in the layers' common directory, so that paths are short."""
    base = Path(os.path.commonpath(lowerdirs))
    short = [os.path.relpath(path, base) for path in lowerdirs]
    data = _overlay_data(short, upper, work)
    if len(data.encode()) > mount.MAX_DATA_BYTES:
        raise RuntimeUnavailable(
            f"{what} cannot be mounted: the image has too many layers for this kernel; "
            "Linux 6.5 or newer can, or squash the image"
        )
    failed: list[Exception] = []

    def mount_here() -> None:
        try:
            # SAFETY: this thread gets a working directory of its own, so that the chdir moves no
            # other thread. It ends right after.
            namespaces.unshare(namespaces.FS)
            os.chdir(base)
            _mount("overlay", target, "overlay", mount.NODEV, data, what)
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
    _mount("tmpfs", target, "tmpfs", mount.NOSUID | mount.NODEV, data, f"tmpfs at {target}")


def detach(target: Path) -> bool:
    """Take the mount at `target` out of sight; the kernel ends it when its last user is gone.

    Returns False when nothing was mounted there.
    """
    try:
        mount.unmount(target)
    except OSError as error:
        if error.errno in {errno.EINVAL, errno.ENOENT}:
            return False
        raise _unavailable(f"mount at {target}", error, "ended") from error
    return True


def _mount(source: str, target: Path, kind: str, flags: int, data: str, what: str) -> None:
    try:
        mount.mount(source, target, kind, flags, data)
    except OSError as error:
        raise _unavailable(what, error) from error


def _unavailable(what: str, error: OSError, verb: str = "mounted") -> RuntimeUnavailable:
    return RuntimeUnavailable(f"{what} cannot be {verb}: {os.strerror(error.errno or 0)}")
