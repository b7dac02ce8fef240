"""The in-flight ledger: which instance is in how many calls of which worker, in shared memory.

One mmap file on tmpfs outlives every worker. Each worker has a generation and writes only its own
lane of each row, so two workers can count on the same instance at once without a lock; a successor
reads the other lanes and knows which instances are taken. After a kill -9 the lanes stay as they
were: that is the point. What follows from them is `core/reconcile.py`'s.

`begin` and `end` are on the warm path: a few stores into memory, no system call.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from agent.errors import Bug, RuntimeUnavailable

MAGIC = b"KINDLED1"
LANES = 4
"""Generations that may be alive at once: two in a worker swap, and room for a hasty next one."""

# Header: magic, rows, newest generation; then per lane: generation, pid.
_HEADER = struct.Struct("<8sII")
_LANE = struct.Struct("<QQ")
_LANES_AT = 64
_ROWS_AT = 4096
# A cell (one lane of one row): since_ns u64, inflight u32, unused u32, call id.
_CELL_BYTES = 64
_CALL_AT = 16
_CALL_BYTES = _CELL_BYTES - _CALL_AT
_ROW_BYTES = LANES * _CELL_BYTES


@dataclass(frozen=True, slots=True)
class Foreign:
    """Calls of another worker on one row. `call_id` and `since_ns` are of the newest of them."""

    row: int
    generation: int
    pid: int
    inflight: int
    call_id: str
    since_ns: int


class Ledger:
    """The file as one worker sees it. `generation` is this worker's, 1 for the first ever."""

    def __init__(self, memory: mmap.mmap, rows: int, generation: int) -> None:
        self.rows = rows
        self.generation = generation
        self._memory = memory
        self._base = _ROWS_AT + generation % LANES * _CELL_BYTES
        view = memoryview(memory)
        self._u32 = view.cast("I")
        self._u64 = view.cast("Q")
        self._view = view

    @staticmethod
    def open(path: Path, rows: int) -> Ledger:
        """Open or make the file for at least `rows` rows, and become the next generation.

        A file of another layout, or too small, is replaced; workers that still use it go on
        unseen. Raises RuntimeUnavailable.
        """
        try:
            return _opened(path, rows)
        except OSError as error:
            raise RuntimeUnavailable(
                f"the in-flight ledger cannot be opened: {path}: {error.strerror}"
            ) from error

    # -- hot

    def begin(self, row: int, call_id: str = "", now_ns: int = 0) -> None:
        """Count one more call on a row. Raises Bug for a row that is not there."""
        if not 0 <= row < self.rows:
            raise Bug(f"the in-flight ledger has no row {row}")
        at = self._base + row * _ROW_BYTES
        self._u32[(at >> 2) + 2] += 1
        self._u64[at >> 3] = now_ns
        call = call_id.encode()[:_CALL_BYTES]
        at += _CALL_AT
        self._memory[at : at + _CALL_BYTES] = call.ljust(_CALL_BYTES, b"\0")

    def end(self, row: int) -> bool:
        """Count one call less; False when none was counted."""
        if not 0 <= row < self.rows:
            return False
        at = (self._base + row * _ROW_BYTES >> 2) + 2
        if self._u32[at] == 0:
            return False
        self._u32[at] -= 1
        return True

    # -- cold

    def inflight(self, row: int) -> int:
        """Return this worker's calls on a row."""
        return self._u32[(self._base + row * _ROW_BYTES >> 2) + 2]

    def clear(self, row: int) -> None:
        """Forget this worker's calls on a row whose instance is gone."""
        self._u32[(self._base + row * _ROW_BYTES >> 2) + 2] = 0

    def workers(self) -> dict[int, int]:
        """Return the pids of other generations that have not been forgotten, by generation."""
        found = {}
        for lane in range(LANES):
            generation, pid = _lane(self._memory, lane)
            if generation and generation != self.generation:
                found[generation] = pid
        return found

    def foreign(self) -> list[Foreign]:
        """Return the calls of other workers, by row."""
        found: list[Foreign] = []
        for generation, pid in self.workers().items():
            lane_at = _ROWS_AT + generation % LANES * _CELL_BYTES
            for row in range(self.rows):
                at = lane_at + row * _ROW_BYTES
                inflight = self._u32[(at >> 2) + 2]
                if inflight:
                    call = self._memory[at + _CALL_AT : at + _CELL_BYTES].rstrip(b"\0")
                    call_id = call.decode("utf-8", "replace")
                    since_ns = self._u64[at >> 3]
                    found.append(Foreign(row, generation, pid, inflight, call_id, since_ns))
        return sorted(found, key=lambda calls: (calls.row, calls.generation))

    def forget(self, generation: int) -> None:
        """Forget a worker that has ended and was dealt with; its lane is free again."""
        if generation == self.generation or generation not in self.workers():
            raise Bug(f"generation {generation} is not another worker's")
        _clear_lane(self._memory, self.rows, generation % LANES, 0, 0)

    def close(self) -> None:
        """Let go of the memory; this worker's calls stay as they are. Safe to call twice."""
        for view in (self._u32, self._u64, self._view):
            view.release()
        self._memory.close()


def _opened(path: Path, rows: int) -> Ledger:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        there = _layout(fd)
        if there is not None and there[0] >= rows:
            rows, newest = there
        elif os.fstat(fd).st_size == 0:
            newest = 0
            os.ftruncate(fd, _ROWS_AT + rows * _ROW_BYTES)
        else:
            # The old inode lives on as long as somebody has it mapped.
            path.unlink()
            return _opened(path, rows)
        memory = mmap.mmap(fd, _ROWS_AT + rows * _ROW_BYTES)
        generation = newest + 1
        _HEADER.pack_into(memory, 0, MAGIC, rows, generation)
        _clear_lane(memory, rows, generation % LANES, generation, os.getpid())
        return Ledger(memory, rows, generation)
    finally:
        # mmap keeps a duplicate of the fd, and the lock with it, unless it is taken off.
        fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)


def _layout(fd: int) -> tuple[int, int] | None:
    """Return rows and newest generation, None when the file is not one of ours."""
    header = os.pread(fd, _HEADER.size, 0)
    if len(header) < _HEADER.size:
        return None
    magic, rows, newest = _HEADER.unpack(header)
    whole = os.fstat(fd).st_size == _ROWS_AT + rows * _ROW_BYTES
    return (rows, newest) if magic == MAGIC and whole else None


def _lane(memory: mmap.mmap, lane: int) -> tuple[int, int]:
    generation, pid = _LANE.unpack_from(memory, _LANES_AT + lane * _LANE.size)
    return generation, pid


def _clear_lane(memory: mmap.mmap, rows: int, lane: int, generation: int, pid: int) -> None:
    blank = bytes(_CELL_BYTES)
    for row in range(rows):
        at = _ROWS_AT + row * _ROW_BYTES + lane * _CELL_BYTES
        memory[at : at + _CELL_BYTES] = blank
    _LANE.pack_into(memory, _LANES_AT + lane * _LANE.size, generation, pid)
