"""Clearing what lies in the run directory and on the slots once nothing of this node runs.

Called with full rights over the subordinate ids by `supervise` (inside the namespace), and for the
rest by `run` (outside). Removes files and our own mounts only; ending processes is in `sweep`.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from agent.linux import mount, mountinfo, trees

# The parts of a slot an instance writes to (setup/slots.sh makes them).
_SLOT_PARTS = ("upper", "work")
# The run directory holds a few small files for each instance.
_CLEAR_S = 30.0


def clear_directory(directory: Path, keep: Collection[str] = ()) -> list[Path]:
    """Remove everything in `directory` but the names in `keep`; return what could not go."""
    # An operator may have made a link of the directory; of what is in it none is followed.
    return trees.empty(directory.resolve(), keep, within_s=_CLEAR_S)


def unmount_below(directory: Path, keep: Collection[str] = ()) -> None:
    """Take away every mount of this namespace below `directory`, last made first.

    Mounts on or below the names in `keep` stay.
    """
    prefix = f"{directory}/"
    for mounted in reversed(mountinfo.parse(mountinfo.text())):
        point = mounted.point
        if point.startswith(prefix) and point.removeprefix(prefix).split("/")[0] not in keep:
            with suppress(OSError):
                mount.unmount(point)


def clear_slots(slots: Path, *, within_s: float) -> int:
    """Empty the writable parts of all slots; return how many slots could not be emptied in time.

    Only legal when no instance uses them and no other agent shares them (`run` holds their lock).
    """
    deadline = time.monotonic() + within_s
    dirty = 0
    for part in sorted(slots.glob("*/*/")):
        for name in _SLOT_PARTS:
            left_s = max(0.0, deadline - time.monotonic())
            dirty += bool(trees.empty(part / name, within_s=left_s))
    return dirty
