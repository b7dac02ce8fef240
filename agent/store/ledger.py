"""The in-flight ledger: which instance is in how many calls of which worker, in shared memory.

One mmap file on tmpfs outlives every worker. Each worker has a generation and a lane of its own: a
count per row, so that many workers count on the same instance at once without a lock, and none
disturbs another's cache lines. A successor reads the other lanes and knows which instances are
taken. A lane belongs to its worker until that has ended and somebody has dealt with what it left:
after a kill -9 the counts stay as they were, which is the point. What follows from them is
`core/reconcile.py`'s.

A call's begin and end are a store into memory each, no system call.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agent.errors import Bug, FailedPrecondition, RuntimeUnavailable
from agent.linux.process import Identity, start_time

MAGIC = b"KINDLED2"
LANES = 128
"""Workers that may be alive at once: one serves, the others finish calls of up to a day."""

# Header: magic, rows, newest generation; then per lane: generation, pid, the process's start time.
_HEADER = struct.Struct("<8sII")
_LANE = struct.Struct("<QQQ")
_LANES_AT = 64
_COUNTS_AT = 4096
_COUNT_BYTES = 4
_LINE_BYTES = 64  # of a processor's cache: two lanes never share one


@dataclass(frozen=True, slots=True)
class OtherWorker:
    """Another worker that has a lane: its generation and its process."""

    generation: int
    process: Identity

    @property
    def alive(self) -> bool:
        """Whether that very process still runs."""
        return self.process.alive


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

    def __init__(self, memory: mmap.mmap, rows: int, generation: int, lane: int) -> None:
        self.rows = rows
        self.generation = generation
        self._memory = memory
        self._first = _first_count(rows, lane)
        self._view = memoryview(memory)
        self._counts = self._view.cast("I")

    @staticmethod
    def open(path: Path, rows: int) -> Ledger:
        """Open or make the file for at least `rows` rows, and become the next generation.

        A file of another layout, or too small, is replaced; workers that still use it go on
        unseen. Raises FailedPrecondition when every lane has a living worker, RuntimeUnavailable.
        """
        try:
            return _opened(path, rows)
        except OSError as error:
            raise RuntimeUnavailable(
                f"the in-flight ledger cannot be opened: {path}: {error.strerror}"
            ) from error

    @staticmethod
    def check_room(path: Path, rows: int) -> None:
        """Raise FailedPrecondition if `open` would now; changes nothing."""
        with suppress(FileNotFoundError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            there = _layout(file.fileno())
            if there is not None and there[0] >= rows:
                # A copy: to look for a lane may put two dead workers' calls together.
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as memory:
                    _free_lane(memory, there[0])

    def row(self, row: int) -> Row:
        """Return this worker's count of one row. Raises Bug for a row that is not there."""
        if not 0 <= row < self.rows:
            raise Bug(f"the in-flight ledger has no row {row}")
        return Row(self._counts, self._first + row)

    def others(self) -> list[OtherWorker]:
        """Return the other workers that have not been forgotten, oldest first."""
        lanes = _lanes(self._memory)
        found = [owner for owner in lanes.values() if owner.generation != self.generation]
        return sorted(found, key=lambda owner: owner.generation)

    def calls(self, generation: int) -> Counter[int]:
        """Return another worker's calls in flight by row; empty for one that has no lane."""
        lane = self._lane_of(generation)
        return _calls(self._counts, self.rows, lane) if lane is not None else Counter()

    def forget(self, generation: int) -> None:
        """Forget a worker that has ended and was dealt with; its lane is free again."""
        lane = self._lane_of(generation)
        if generation == self.generation or lane is None:
            raise Bug(f"generation {generation} is not another worker's")
        _write_lane(self._memory, self.rows, lane, None)

    def close(self) -> None:
        """Let go of the memory; this worker's calls stay as they are. Safe to call twice."""
        for view in (self._counts, self._view):
            view.release()
        self._memory.close()

    def _lane_of(self, generation: int) -> int | None:
        lanes = _lanes(self._memory)
        return next((lane for lane, one in lanes.items() if one.generation == generation), None)


def _lane_words(rows: int) -> int:
    """Return how many counts lie between two lanes: whole cache lines."""
    size = rows * _COUNT_BYTES
    return (size + -size % _LINE_BYTES) // _COUNT_BYTES


def _first_count(rows: int, lane: int) -> int:
    """Return where a lane's count of row 0 is, in words."""
    return _COUNTS_AT // _COUNT_BYTES + lane * _lane_words(rows)


def _size(rows: int) -> int:
    # Sparse: tmpfs holds only the pages of lanes that were used.
    return _COUNTS_AT + LANES * _lane_words(rows) * _COUNT_BYTES


def _opened(path: Path, rows: int) -> Ledger:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        there = _layout(fd)
        if there is not None and there[0] >= rows:
            rows, newest = there
        elif os.fstat(fd).st_size == 0:
            newest = 0
            os.ftruncate(fd, _size(rows))
        else:
            # The old inode lives on as long as somebody has it mapped.
            path.unlink()
            return _opened(path, rows)
        memory = mmap.mmap(fd, _size(rows))
        try:
            lane = _free_lane(memory, rows)
        except BaseException:
            memory.close()
            raise
        pid = os.getpid()
        owner = OtherWorker(newest + 1, Identity(pid, start_time(pid) or 0))
        _HEADER.pack_into(memory, 0, MAGIC, rows, owner.generation)
        _write_lane(memory, rows, lane, owner)
        return Ledger(memory, rows, owner.generation, lane)
    finally:
        # mmap keeps a duplicate of the fd, and the lock with it, unless it is taken off.
        fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)


def _free_lane(memory: mmap.mmap, rows: int) -> int:
    """Return a lane that no worker has, living or dead with calls that somebody must judge.

    A worker that dies again and again before it serves would use up all lanes: then the calls of
    two dead ones are put together, for it does not matter which of them was in a call.
    """
    owners = _lanes(memory)
    for lane in range(LANES):
        if lane not in owners:
            return lane
    dead = [lane for lane, owner in owners.items() if not owner.alive]
    with memoryview(memory) as view, view.cast("I") as counts:
        for lane in dead:
            if not _calls(counts, rows, lane):
                return lane
        if len(dead) < 2:
            raise FailedPrecondition(
                f"{LANES} workers still finish calls; a further one starts when one has ended"
            )
        spare, kept = dead[0], dead[1]
        for row, count in _calls(counts, rows, spare).items():
            counts[_first_count(rows, kept) + row] += count
    return spare


def _layout(fd: int) -> tuple[int, int] | None:
    """Return rows and newest generation, None when the file is not one of ours."""
    header = os.pread(fd, _HEADER.size, 0)
    if len(header) < _HEADER.size:
        return None
    magic, rows, newest = _HEADER.unpack(header)
    if magic != MAGIC or os.fstat(fd).st_size != _size(rows):
        return None
    return rows, newest


def _lanes(memory: mmap.mmap) -> dict[int, OtherWorker]:
    """Return the lanes that are in use and whose they are."""
    found = {}
    for lane in range(LANES):
        generation, pid, start = _LANE.unpack_from(memory, _LANES_AT + lane * _LANE.size)
        if generation:
            found[lane] = OtherWorker(generation, Identity(pid, start))
    return found


def _calls(counts: memoryview[int], rows: int, lane: int) -> Counter[int]:
    first = _first_count(rows, lane)
    return Counter({row: n for row, n in enumerate(counts[first : first + rows]) if n})


def _write_lane(memory: mmap.mmap, rows: int, lane: int, owner: OtherWorker | None) -> None:
    """Empty a lane and give it to a worker, or to nobody."""
    at = _first_count(rows, lane) * _COUNT_BYTES
    size = rows * _COUNT_BYTES
    memory[at : at + size] = bytes(size)
    entry = (0, 0, 0)
    if owner is not None:
        entry = (owner.generation, owner.process.pid, owner.process.start)
    _LANE.pack_into(memory, _LANES_AT + lane * _LANE.size, *entry)
