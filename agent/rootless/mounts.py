"""What the house changes in its private mount namespace before anything is started in it.

Four things: every place of ours is where the host has it, in spite of rootlesskit's copy-up; the
fixed directory of shim sockets is private; and on hybrid cgroup hosts the cgroup2 mount is hidden,
because crun 1.8 refuses to work beside it; the OCI runtimes are read-only, which spares them a copy
of themselves at every call. Safe to repeat. Nothing here is visible on the host.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from agent.errors import RuntimeUnavailable
from agent.linux import mount
from agent.rootless.cgroup import UNIFIED, CgroupLayout
from agent.rootless.settings import House

# containerd has the directory of its shims' sockets compiled in.
SHIM_SOCKETS = Path("/run/containerd")
# systemd's hierarchy without a controller; on hybrid hosts it is delegated like the others.
NAMED = "/sys/fs/cgroup/systemd"
# Whatever of these is there; the configuration names one of them.
RUNTIMES = ("crun", "runc")
# `run` tells in this variable which directories it sees on the host: {path: [device, inode]}.
PLACES_VARIABLE = "KINDLING_PLACES"


def places(house: House) -> str:
    """Describe the host's directories of this house for `prepare`, as seen by the caller."""
    seen = {}
    for path in (house.run, house.data):
        status = path.stat()
        seen[str(path)] = [status.st_dev, status.st_ino]
    return json.dumps(seen)


def prepare(house: House, layout: CgroupLayout, expected: str) -> None:
    """Arrange the mounts of this namespace; `expected` is what `places` said outside.

    Raises OSError, or RuntimeUnavailable when a directory is not the host's.
    """
    for path in (house.run, house.data, house.lib, house.slots):
        pin(path)
    _private_directory(SHIM_SOCKETS)
    if layout.hybrid and not os.path.samefile(UNIFIED, NAMED):
        # An empty tmpfs would do for crun's check, but crun also makes its group there and cannot
        # remove it; in a hierarchy without controllers it makes and removes it like any other.
        mount.mount(NAMED, UNIFIED, "", mount.BIND)
    for name in RUNTIMES:
        _make_read_only(shutil.which(name))
    compare(json.loads(expected))


def pin(path: Path) -> None:
    """Put a real directory with the host's content where copy-up left a link on the way to `path`.

    Paths below a link work, but runtimes resolve them and then name a directory that exists only
    as long as rootlesskit's hidden copy of the original does.
    """
    for ancestor in reversed((path, *path.parents)):
        if ancestor.is_symlink() and ".ro" in os.readlink(ancestor):
            original = os.path.realpath(ancestor)
            ancestor.unlink()
            ancestor.mkdir()
            mount.mount(original, ancestor, "", mount.BIND | mount.REC)
            return


def compare(expected: dict[str, list[int]]) -> None:
    """Check that each path leads to the same directory as on the host.

    Raises RuntimeUnavailable naming the path: functions would otherwise write where nobody looks.
    """
    for path, identity in expected.items():
        status = os.stat(path)
        if [status.st_dev, status.st_ino] != identity:
            raise RuntimeUnavailable(
                f"{path} inside the namespace is not the host's directory: "
                f"choose a [paths] directory that is not a mount point made after start"
            )


def missing(paths: Iterable[Path]) -> list[Path]:
    """Return the directories that do not exist here."""
    return [path for path in paths if not path.is_dir()]


def _make_read_only(program: str | None) -> None:
    """Show a runtime's binary read-only where the host's own mount lets us.

    A runtime executes a protected copy of itself, so that no container can write to it through
    /proc/<pid>/exe (CVE-2019-5736): 2 to 3 ms at each of its many calls. It leaves that out when
    its file cannot be written through any mount it sees.
    """
    if program is None:
        return
    binary = os.path.realpath(program)
    flags = os.statvfs(binary).f_flag
    if flags & os.ST_RDONLY:
        return
    # What the host's mount forbids stays forbidden; statvfs has the numbers of mount(2) for these.
    kept = flags & (mount.NOSUID | mount.NODEV | mount.NOEXEC)
    mount.mount(binary, binary, "", mount.BIND)
    try:
        mount.mount("", binary, "", mount.BIND | mount.REMOUNT | mount.RDONLY | kept)
    except OSError:
        mount.unmount(binary)


def _private_directory(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    path.mkdir(mode=0o711, exist_ok=True)
    if not os.access(path, os.W_OK):
        raise RuntimeUnavailable(f"{path} inside the namespace is not ours: copy-up of /run failed")
