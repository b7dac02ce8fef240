"""A few megabytes kept back on the data's file system, given up when it has no byte left.

To remove something is to write: SQLite and containerd note it first. On a full disk they could not,
and nothing could ever make room again. So a file lies there that holds nothing; before a removal it
goes if need be, and it comes back once there is room. Its methods block.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)

NAME = "reserve"
# SQLite's log of changes grows to 4 MB, containerd's by a few pages a removal.
MOST_BYTES = 16 << 20
SHARE = 50  # of a small file system
TAKE_AT = 4  # so many times its size must be free before it comes back


class Ballast:
    """The file, in the directory of the agent's data."""

    def __init__(self, data: Path) -> None:
        self._path = data / NAME

    def give(self) -> None:
        """Give it up if less than its size is free."""
        with contextlib.suppress(OSError):  # whoever writes now hears of it
            size, free = self._size_and_free()
            if free < size:
                self._path.unlink()
                log.warning("%s is given up: the disk is full", self._path)

    def take(self) -> None:
        """Set it aside again if there is room, as it is at first."""
        draft = self._path.with_suffix(".new")
        try:
            size, free = self._size_and_free()
            if self._path.exists() or free < TAKE_AT * size:
                return
            with draft.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, size)
            draft.replace(self._path)
        except OSError as error:
            log.warning("%s cannot be set aside: %s", self._path, os.strerror(error.errno or 0))
            draft.unlink(missing_ok=True)

    def _size_and_free(self) -> tuple[int, int]:
        told = os.statvfs(self._path.parent)
        whole, free = told.f_blocks * told.f_frsize, told.f_bavail * told.f_frsize
        return min(MOST_BYTES, whole // SHARE), free
