"""Disk that an import takes for a while: files without a name, bounded by what is free.

Such a file is gone with the process that holds it, however that ends, so no crash leaves any, and
of two workers neither meets the other's. What a filesystem has names for in this directory was left
by an agent that still gave them: `sweep` removes it at a worker's start.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from pathlib import Path
from typing import IO

from agent.errors import InvalidSpec, Problem, RuntimeUnavailable

log = logging.getLogger(__name__)

# Left free for everybody else: records, logs, writable layers, and the image an import unpacks.
RESERVE_BYTES = 1 << 30


class ScratchFile:
    """A file without a name below `directory`, for at most `max_bytes` of `what`; it blocks.

    `when` ends the refusal of more. Unbuffered, so that a full disk shows where it is written to.
    """

    def __init__(self, directory: Path, what: str, max_bytes: int, when: str = "") -> None:
        self._directory = directory
        self._what = what
        self._max_bytes = max_bytes
        self._when = when
        self._bytes = 0
        # Cancelling a caller does not end the thread that writes for it: `close` waits for that.
        self._in_use = threading.Lock()
        try:
            # Outlives this function; `close` closes it.
            self.stream: IO[bytes] = tempfile.TemporaryFile(buffering=0, dir=directory)  # noqa: SIM115
        except OSError as error:
            raise self._no_capacity(os.strerror(error.errno or 0)) from error

    @property
    def path(self) -> Path:
        """A path under which this process may open it again while it is open."""
        return Path(f"/proc/self/fd/{self.stream.fileno()}")

    def write(self, piece: bytes) -> None:
        """Append bytes.

        Raises InvalidSpec past `max_bytes`, RuntimeUnavailable when the disk would be too full.
        """
        self._bytes += len(piece)
        if self._bytes > self._max_bytes:
            text = f"is larger than {self._max_bytes} bytes{self._when}"
            raise InvalidSpec([Problem(self._what, text)])
        room = os.statvfs(self.stream.fileno())
        free_bytes = room.f_bavail * room.f_frsize
        if free_bytes - len(piece) < RESERVE_BYTES:
            kept = f"{free_bytes >> 20} MB are free and {RESERVE_BYTES >> 20} MB must stay so"
            raise self._no_capacity(f"{kept}; remove images that nobody uses")
        left = memoryview(piece)
        try:
            with self._in_use:
                while left:
                    left = left[self.stream.write(left) :]
        except OSError as error:
            raise self._no_capacity(os.strerror(error.errno or 0)) from error

    def close(self) -> None:
        """Give the disk back, after a write that may still be under way on another thread."""
        with self._in_use:
            self.stream.close()

    def _no_capacity(self, why: str) -> RuntimeUnavailable:
        return RuntimeUnavailable(f"{self._what} cannot be kept in {self._directory}: {why}")


def sweep(directory: Path) -> None:
    """Remove what has a name in `directory`: nobody alive uses it. Blocks."""
    for path in directory.iterdir() if directory.is_dir() else ():
        try:
            path.unlink(missing_ok=True)
            log.warning("%s was left by an import that a crash cut short: removed", path)
        except OSError as error:  # no reason not to start
            log.warning("%s was not removed: %s", path, os.strerror(error.errno or 0))
