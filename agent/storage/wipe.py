"""Empties a directory that a function has written: any depth, any names, any modes, no room left.

A function may nest directories deeper than a path or a stack can be long, and may have filled its
file system to the last block. So this walks with one descriptor, down by name and up by "..", and
makes nothing. Blocks; used off the loop. Raises OSError as it comes.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def empty(directory: Path, keep: Collection[str] = ()) -> None:
    """Remove everything in `directory` but the entries named in `keep`. Follows no link.

    Nobody else may be at work in it: the way up is trusted.
    """
    here = os.open(directory, _FLAGS)
    try:
        # the way down: each directory's name, and which of its own are still to be emptied
        way = [("", _remove_plain(here, keep))]
        while True:
            name, left = way[-1]
            if left:
                inner = left.pop()
                here = _step(here, inner)
                way.append((inner, _remove_plain(here, ())))
                continue
            way.pop()
            if not way:
                return
            here = _step(here, "..")
            os.rmdir(name, dir_fd=here)
    finally:
        os.close(here)


def _step(here: int, name: str) -> int:
    there = os.open(name, _FLAGS, dir_fd=here)
    os.close(here)
    return there


def _remove_plain(directory: int, keep: Collection[str]) -> list[str]:
    """Remove what is no directory; return the names of the directories."""
    with os.scandir(directory) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in found:
        if not is_directory and name not in keep:
            os.unlink(name, dir_fd=directory)
    return [name for name, is_directory in found if is_directory and name not in keep]
