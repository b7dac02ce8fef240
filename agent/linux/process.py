"""Processes by pid and start time, and signals that cannot hit a later one of the same number.

A pid alone is a number the kernel gives out again. With the time its process started, in clock
ticks since boot, it names one process for good: `Identity`. What /proc says of parents and of who
is a zombie is read here, too. Who is to be signalled, and when, is decided above.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Collection
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

# Fields of /proc/<pid>/stat behind the name in parentheses, which is the second (proc(5)).
_STATE, _PARENT, _START = 3 - 3, 4 - 3, 22 - 3
_DEAD = ("Z", "X")
# Processes held by a descriptor each: far below any limit on open files.
_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Identity:
    """One process for good: its pid, and when it started in clock ticks since boot."""

    pid: int
    start: int

    @classmethod
    def of(cls, pid: int) -> Identity:
        """Return who has this pid now, a zombie too; raises ProcessLookupError if nobody has."""
        start = start_time(pid)
        if start is None:
            raise ProcessLookupError(f"no process has the pid {pid}")
        return cls(pid, start)

    @property
    def alive(self) -> bool:
        """Whether this very process runs; a zombie does not."""
        fields = _stat(self.pid)
        return fields is not None and int(fields[_START]) == self.start and not _is_dead(fields)

    def send(self, number: int) -> bool:
        """Send it a signal; False when it has ended or is not ours to signal."""
        # SAFETY: the pidfd is opened first and the start time compared after. If the pid had been
        # given out again before, the times differ; if it is after, the signal goes to the pidfd's
        # process, which is gone then (pidfd_open(2)). No other process can be hit.
        descriptor = open_pid(self.pid)
        if descriptor is None:
            return False
        try:
            return self.alive and send(descriptor, number)
        finally:
            os.close(descriptor)


def open_pid(pid: int) -> int | None:
    """Return a pidfd of the process that has this pid now, the caller's to close; None if nobody.

    Raises OSError when there are no descriptors left.
    """
    try:
        return os.pidfd_open(pid)
    except (ProcessLookupError, FileNotFoundError):
        return None
    except OSError as error:
        if error.errno == errno.EINVAL:  # no pid, or a thread's that leads no process
            return None
        raise


def send(pidfd: int, number: int) -> bool:
    """Send a signal; False when the process has been collected or is not ours to signal."""
    try:
        signal.pidfd_send_signal(pidfd, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def kill_members(members: Callable[[], Collection[int]]) -> int:
    """Kill whom `members` lists, asked again before each kill; return how many were signalled."""
    killed = 0
    listed = list(members())
    for first in range(0, len(listed), _AT_ONCE):
        with ExitStack() as held:
            opened: dict[int, int] = {}
            for pid in listed[first : first + _AT_ONCE]:
                descriptor = open_pid(pid)
                if descriptor is not None:
                    held.callback(os.close, descriptor)
                    opened[pid] = descriptor
            # SAFETY: listed again now that the pidfds are open. If a pidfd's process lives, the
            # number listed is its own, so it is a member; if it has ended, the signal goes
            # nowhere, whoever has the number by now (pidfd_open(2)).
            for pid in opened.keys() & set(members()):
                killed += send(opened[pid], signal.SIGKILL)
    return killed


def start_time(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None if there is none."""
    fields = _stat(pid)
    return None if fields is None else int(fields[_START])


def parent_of(pid: int) -> int:
    """Return the parent's pid, 0 if the process is gone or has none."""
    fields = _stat(pid)
    return 0 if fields is None else int(fields[_PARENT])


def is_zombie(pid: int) -> bool:
    """Return whether a process has ended, collected by its parent or not."""
    fields = _stat(pid)
    return fields is None or _is_dead(fields)


def ancestors(pid: int) -> list[int]:
    """Return `pid` and its ancestors, as far as this process can see them."""
    chain: list[int] = []
    while pid > 0 and pid not in chain:
        chain.append(pid)
        pid = parent_of(pid)
    return chain


def descendants(pid: int) -> list[int]:
    """Return the living processes below `pid`, zombies left out."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            children.setdefault(parent_of(int(name)), []).append(int(name))
    found: list[int] = []
    queue = [pid]
    while queue:
        below = children.get(queue.pop(), [])
        queue += below
        found += [child for child in below if not is_zombie(child)]
    return found


def _is_dead(fields: list[str]) -> bool:
    return fields[_STATE] in _DEAD


def _stat(pid: int) -> list[str] | None:
    """Return the fields behind the name; None if the process is gone."""
    # A process may vanish between open and read: ENOENT, then ESRCH.
    with suppress(FileNotFoundError, ProcessLookupError):
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
        # The name may itself hold blanks and parentheses.
        return text.rpartition(")")[2].split()
    return None
