"""Removes directory trees that others have written: any depth, names, modes, no room left.

A function may nest directories deeper than a path or a stack can be long, fill its file system to
the last block, and still be at work. So this walks by descriptors, down by name and up by "..",
with three of them at most; it makes nothing, follows no link and leaves what is mounted alone. It
keeps some bytes for each level it is down and a bounded number of names. Every call has a time, for
whoever refills a directory could hold it up for ever. Blocks: used off the loop.
"""

from __future__ import annotations

import errno
import os
import time
from array import array
from collections.abc import Collection
from contextlib import suppress
from itertools import islice
from pathlib import Path

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OWN = 0o700
# Names kept over all levels; past them a directory is looked through again for each one in it.
_MAX_NAMES = 10_000
# What could not go is passed over from then on; with so much of it going on makes no sense.
_MAX_STAYING = 10_000
_MAX_TOLD = 1_000
_NONE: list[str] = []

_NOT_EMPTY = (errno.ENOTEMPTY, errno.EEXIST)
_CHANGED = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)


def empty(directory: Path, keep: Collection[str] = (), *, within_s: float) -> list[Path]:
    """Remove everything in `directory` but the names in `keep`, as far as it goes.

    Returns what is left there beside those, at most a thousand paths; `directory` itself when it
    cannot be looked at. No directory is an empty one.
    """
    try:
        root = _enter(None, os.fspath(directory))
    except FileNotFoundError:
        return []
    except OSError:
        return [directory]
    try:
        with suppress(OSError):
            _Walk(root, keep, within_s, tolerant=True).run()
        with os.scandir(root) as entries:
            left = (directory / entry.name for entry in entries if entry.name not in keep)
            return list(islice(left, _MAX_TOLD))
    except OSError:
        return [directory]
    finally:
        os.close(root)


def empty_or_raise(directory: Path, keep: Collection[str] = (), *, within_s: float) -> None:
    """Remove everything in `directory` but the names in `keep`.

    Raises OSError, which names the first thing that would not go, or TimeoutError, which is one.
    """
    root = _enter(None, os.fspath(directory))
    try:
        _Walk(root, keep, within_s, tolerant=False).run()
    except OSError as error:
        raise OSError(
            error.errno, f"{error.strerror}: {error.filename!r}", str(directory)
        ) from error
    finally:
        os.close(root)


def remove(path: Path, *, within_s: float) -> bool:
    """Remove a file, a link or a whole tree; return whether nothing is there any more."""
    try:
        path.unlink()
    except FileNotFoundError:
        return True
    except IsADirectoryError:
        return _remove_directory(path, within_s)
    except OSError:
        return False
    return True


def _remove_directory(path: Path, within_s: float) -> bool:
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        # Anything else, a mount above all, keeps its content as well.
        if error.errno not in _NOT_EMPTY or empty(path, within_s=within_s):
            return False
        return _remove_directory(path, 0)
    return True


class _Walk:
    """One walk through the tree below the directory behind the descriptor `root`."""

    def __init__(
        self, root: int, keep: Collection[str], within_s: float, *, tolerant: bool
    ) -> None:
        self._root = root
        self._keep = keep
        self._deadline = time.monotonic() + within_s
        self._tolerant = tolerant
        status = os.fstat(root)
        self._device = status.st_dev
        # The way down: every directory's number, and which of its own are still to be emptied.
        self._way = array("Q", [status.st_ino])
        self._left: list[list[str]] = [_NONE]
        self._names = 0
        # What stays, as the number of the directory it is in and its name; a directory in which
        # something stays by its own number, because its name is forgotten by then.
        self._staying: set[tuple[int, str | int]] = set()
        self._here = os.dup(root)
        self._progress = False
        self._stays_here = False

    def run(self) -> None:
        """Walk until nothing is left but what stays; raises OSError as described above."""
        try:
            while self._step():
                pass
        finally:
            os.close(self._here)

    def _step(self) -> bool:
        """Look through a directory, or go down or up once; False when all is done."""
        if not self._left[-1]:
            self._look()
        if self._left[-1]:
            self._down(self._left[-1].pop())
            self._names -= 1
            return True
        if len(self._way) > 1:
            self._up()
            return True
        # A file system may have passed something over while others were removed beside it.
        return self._progress

    def _look(self) -> None:
        """Remove what goes at once; keep the names of directories that must be emptied first."""
        self._progress = self._stays_here = False
        found: list[str] = []
        most = max(1, _MAX_NAMES - self._names)
        keep = self._keep if len(self._way) == 1 else ()
        with os.scandir(self._here) as entries:
            for entry in entries:
                if time.monotonic() >= self._deadline:
                    raise TimeoutError(errno.ETIMEDOUT, "not removed in time", entry.name)
                if entry.name in keep:
                    continue
                if self._passed_over(entry):
                    self._stays_here = True
                elif not self._gone(entry):
                    found.append(entry.name)
                    if len(found) == most:
                        break
        self._names += len(found)
        self._left[-1] = found or _NONE

    def _gone(self, entry: os.DirEntry[str]) -> bool:
        """Remove an entry; False when it is a directory with something in it."""
        try:
            if entry.is_dir(follow_symlinks=False):
                # Fails for a mount point before it fails for what is in it (vfs_rmdir, fs/namei.c).
                os.rmdir(entry.name, dir_fd=self._here)
            else:
                os.unlink(entry.name, dir_fd=self._here)
        except OSError as error:
            if error.errno in _NOT_EMPTY:
                return False
            if error.errno not in _CHANGED:
                self._stay(entry.name, error)
                return True
        self._progress = True
        return True

    def _down(self, name: str) -> None:
        try:
            there = _enter(self._here, name)
        except OSError as error:
            if error.errno not in _CHANGED:
                self._stay(name, error)
            return
        status = os.fstat(there)
        if status.st_dev != self._device:
            os.close(there)
            self._stay(name, OSError(errno.EXDEV, "another file system is mounted there", name))
            return
        self._move(there)
        self._way.append(status.st_ino)
        self._left.append(_NONE)

    def _up(self) -> None:
        """Go to the directory we came from; begin anew if this one is elsewhere by now."""
        number = self._way.pop()
        self._left.pop()
        # Not by its name: that is forgotten. The next look removes it, for it is empty.
        there = os.open("..", _FLAGS, dir_fd=self._here)
        status = os.fstat(there)
        if (status.st_dev, status.st_ino) != (self._device, self._way[-1]):
            os.close(there)
            self._move(os.dup(self._root))
            del self._way[1:]
            self._left, self._names = [_NONE], 0
            return
        if self._stays_here:
            self._staying.add((self._way[-1], number))
        self._move(there)

    def _move(self, there: int) -> None:
        os.close(self._here)
        self._here = there

    def _stay(self, name: str, error: OSError) -> None:
        """Pass a thing over from now on; raises `error` where nothing may stay."""
        if not self._tolerant or len(self._staying) >= _MAX_STAYING:
            raise error
        self._stays_here = True
        self._staying.add((self._way[-1], name))

    def _passed_over(self, entry: os.DirEntry[str]) -> bool:
        if not self._staying:
            return False
        if (self._way[-1], entry.name) in self._staying:
            return True
        with suppress(OSError):
            status = entry.stat(follow_symlinks=False)
            return (self._way[-1], status.st_ino) in self._staying
        return False


def _enter(here: int | None, name: str) -> int:
    """Open a directory of `here`, or of the working one, so that its content can be removed."""
    try:
        there = os.open(name, _FLAGS, dir_fd=here)
    except PermissionError:
        _give_rights(here, name)
        there = os.open(name, _FLAGS, dir_fd=here)
    mode = os.fstat(there).st_mode
    if mode & _OWN != _OWN:
        with suppress(PermissionError):
            os.fchmod(there, mode & 0o7777 | _OWN)
    return there


def _give_rights(here: int | None, name: str) -> None:
    """Give the owner the rights it has taken from itself."""
    place = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
    try:
        # By the descriptor: a link put in its place meanwhile would lead to another file.
        os.chmod(f"/proc/self/fd/{place}", _OWN)
    finally:
        os.close(place)
