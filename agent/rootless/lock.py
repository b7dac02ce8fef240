"""One agent per run directory, node name, data directory and slots: locks that tell who is alive.

The kernel frees a lock when its holder ends, however it ends, so a stale file never blocks a start.
The lock file holds the owner's pid for the error message only; nobody acts on it. Directories and
files that two agents must not share are locked by their own descriptors.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from agent.errors import AlreadyExists

NAME = "lock"
# For those who only ask, root among them: what stands there may be a link or a pipe by now.
_ASK = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def acquire(run: Path) -> int:
    """Take the lock of a run directory and return the descriptor that holds it (close-on-exec).

    Raises AlreadyExists naming the pid of the agent that has it, and OSError.
    """
    path = run / NAME
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise AlreadyExists(
                f"an agent already runs on {run} (pid {pid}): stop it with 'kill {pid}', "
                f"or give this one another [paths] run and [node] name"
            ) from None
        if _is_same(path, descriptor):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            return descriptor
        # The last holder removed the file between our open and our lock: take the new one.
        os.close(descriptor)


def holder(run: Path) -> int | None:
    """Return the pid of the agent alive on this run directory, None if there is none.

    Answers None too where this process may not read the lock file.
    """
    try:
        descriptor = os.open(run / NAME, _ASK)
    except OSError:
        return None
    try:
        # A shared lock, so that two who only ask do not see each other as holders.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        return int(text) if text.isdigit() else 0
    finally:
        os.close(descriptor)
    return None


def is_held(path: Path) -> bool:
    """Return whether an agent that is alive has this file or directory (see `acquire_shared`).

    Answers False too where this process may not read it, and for a link.
    """
    try:
        descriptor = os.open(path, _ASK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def release(run: Path, descriptor: int) -> None:
    """Remove the file, then the lock; a waiting `acquire` notices and takes a new file."""
    (run / NAME).unlink(missing_ok=True)
    os.close(descriptor)


def acquire_shared(path: Path, mend: str) -> int:
    """Lock what two agents must not share; return the descriptor that holds it (close-on-exec).

    `path` is a file, or a directory that is made if missing. Raises AlreadyExists ending in `mend`
    if another agent has it, and OSError.
    """
    while True:
        if not path.exists():
            path.mkdir(exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise AlreadyExists(f"another agent that is alive uses {path}: {mend}") from None
        if _is_same(path, descriptor):
            return descriptor
        os.close(descriptor)


def _is_same(path: Path, descriptor: int) -> bool:
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    here = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)
