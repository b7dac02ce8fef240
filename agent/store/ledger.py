"""The in-flight ledger: which instance is in how many calls of which worker, in shared memory.

One mmap file on tmpfs outlives every worker. Each worker has a generation and writes only its own
lane of each row, so two workers can count on the same instance at once without a lock; a successor
reads the other lanes and knows which instances are taken. After a kill -9 the lanes stay as they
were: that is the point. What follows from them is `core/reconcile.py`'s.

A call's begin and end are a store into memory each, no system call.
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
# A cell is one lane of one row, alone in its cache line: 8 bytes unused, calls in flight u32.
_CELL_BYTES = 64
_COUNT_WORD = 2
_ROW_BYTES = LANES * _CELL_BYTES
_CELL_WORDS = _CELL_BYTES // 4
_ROW_WORDS = _ROW_BYTES // 4


@dataclass(frozen=True, slots=True)
class Foreign:
    """Calls of another worker on one row."""

    row: int
    generation: int
    pid: int
    inflight: int


class Row:
    """One worker's calls on one row. `begin` and `end` are on the warm path."""

    __slots__ = ("_at", "_counts")

    def __init__(self, counts: memoryview[int] | list[int], at: int) -> None:
        self._counts = counts
        self._at = at

    def begin(self) -> None:
        """Count one more call."""
        self._counts[self._at] += 1

    def end(self) -> bool:
        """Count one call less; False when none was counted."""
        inflight = self._counts[self._at]
        if not inflight:
            return False
        self._counts[self._at] = inflight - 1
        return True

    @property
    def inflight(self) -> int:
        """The calls counted now."""
        return self._counts[self._at]

    def clear(self) -> None:
        """Forget the calls on a row whose instance is gone."""
        self._counts[self._at] = 0


def no_row() -> Row:
    """Return a count for an instance that has no row."""
    return Row([0], 0)


class Ledger:
    """The file as one worker sees it. `generation` is this worker's, 1 for the first ever."""

    def __init__(self, memory: mmap.mmap, rows: int, generation: int) -> None:
        self.rows = rows
        self.generation = generation
        self._memory = memory
        self._first = _first_cell(generation)
        self._view = memoryview(memory)
        self._counts = self._view.cast("I")

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

    def row(self, row: int) -> Row:
        """Return this worker's count of one row. Raises Bug for a row that is not there."""
        if not 0 <= row < self.rows:
            raise Bug(f"the in-flight ledger has no row {row}")
        return Row(self._counts, self._first + row * _ROW_WORDS)

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
            first = _first_cell(generation)
            for row in range(self.rows):
                inflight = self._counts[first + row * _ROW_WORDS]
                if inflight:
                    found.append(Foreign(row, generation, pid, inflight))
        return sorted(found, key=lambda calls: (calls.row, calls.generation))

    def forget(self, generation: int) -> None:
        """Forget a worker that has ended and was dealt with; its lane is free again."""
        if generation == self.generation or generation not in self.workers():
            raise Bug(f"generation {generation} is not another worker's")
        _clear_lane(self._memory, self.rows, generation % LANES, 0, 0)

    def close(self) -> None:
        """Let go of the memory; this worker's calls stay as they are. Safe to call twice."""
        for view in (self._counts, self._view):
            view.release()
        self._memory.close()


def _first_cell(generation: int) -> int:
    """Return where a generation's count of row 0 is, in words."""
    return _ROWS_AT // 4 + generation % LANES * _CELL_WORDS + _COUNT_WORD


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
