"""What is mounted where, out of /proc/self/mountinfo (proc(5)).

A mount point may have any name, also one that is no text: such a line must not stop whoever looks
for another one.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_HERE = Path("/proc/self/mountinfo")
# Blank, tab, newline, backslash and hash stand as three octal digits.
_ESCAPED = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mounted:
    """One mount: its point, the kind of file system and its options, how it propagates."""

    point: str
    kind: str
    options: tuple[str, ...]
    shared: bool


def text() -> str:
    """Return the table of this process's namespace, oldest mount first, for `parse`."""
    return os.fsdecode(_HERE.read_bytes())


def parse(table: str) -> list[Mounted]:
    """Read a table; lines of another form are left out."""
    found = []
    for line in table.split("\n"):
        left, separator, right = line.partition(" - ")
        fields, rest = left.split(" "), right.split(" ")
        if separator and len(fields) >= 6 and len(rest) >= 3:
            shared = any(field.startswith("shared:") for field in fields[6:])
            found.append(Mounted(_plain(fields[4]), rest[0], tuple(rest[-1].split(",")), shared))
    return found


def _plain(field: str) -> str:
    unescaped = _ESCAPED.sub(lambda found: bytes([int(found[1], 8)]), os.fsencode(field))
    return os.fsdecode(unescaped)
