"""Clearing what lies in the run directory and on the slots once nothing of this node runs.

Called with full rights over the subordinate ids by `supervise` (inside the namespace), and for the
rest by `run` (outside). Removes files and our own mounts only; ending processes is in `sweep`.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from agent.rootless import kernel

# The parts of a slot an instance writes to (setup/slots.sh makes them).
_SLOT_PARTS = ("upper", "work")


def clear_directory(directory: Path, keep: Collection[str] = ()) -> list[Path]:
    """Remove everything in `directory` but the names in `keep`; return what could not go."""
    stayed: list[Path] = []
    with suppress(FileNotFoundError), os.scandir(directory) as entries:
        for entry in list(entries):
            path = Path(entry.path)
            if entry.name not in keep and not _remove(path):
                stayed.append(path)
    return stayed


def unmount_below(directory: Path, keep: Collection[str] = ()) -> None:
    """Take away every mount of this namespace below `directory`, last made first.

    Mounts on or below the names in `keep` stay.
    """
    prefix = f"{directory}/"
    text = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape")
    for line in reversed(text.splitlines()):
        # Blanks and the like stand as octal escapes (proc(5)).
        point = line.split()[4].encode().decode("unicode_escape")
        if point.startswith(prefix) and point.removeprefix(prefix).split("/")[0] not in keep:
            with suppress(OSError):
                kernel.unmount(point)


def clear_slots(slots: Path, *, within_s: float) -> int:
    """Empty the writable parts of all slots; return how many slots could not be emptied in time.

    Only legal when no instance uses them and no other agent shares them (`run` holds their lock).
    """
    deadline = time.monotonic() + within_s
    dirty = 0
    for part in sorted(slots.glob("*/*/")):
        for name in _SLOT_PARTS:
            if time.monotonic() >= deadline:
                dirty += any((part / name).glob("*"))
            else:
                dirty += bool(clear_directory(part / name))
    return dirty


def _remove(path: Path) -> bool:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return not path.exists()
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return False
    return True
