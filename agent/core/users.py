"""Which uid, gid and groups an image's USER means, from the image's own passwd and group files.

As Docker and podman find them (moby/sys/user, GetExecUser), row by row in tests/unit/test_users.py:
a number is always an id, never a name; the first entry that fits counts; supplementary groups come
from the group file unless a group is named; HOME is that of the first entry of the uid. Stricter in
two ways: an entry whose id is no number is passed over (there it is root's), and comments and nss
lines ("+::") are no entries. Files are given as bytes (b"" where the image has none); reading them
out of the image safely is `agent/sandbox`'s.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from agent.errors import InvalidSpec, Problem

MAX_ID = 65535  # the container's user namespace maps 0..65535
MAX_FILE_BYTES = 1 << 20
MAX_GROUPS = 1024
MAX_DIGITS = 20  # beyond these an id is too large whatever follows

_LINE = re.compile(rb"[^\n]+")
_NUMBER = re.compile(r"([+-]?)0*([0-9]+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class User:
    """Who the program runs as. `groups` are the supplementary ones, without the first."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = "/"


@dataclass(frozen=True, slots=True)
class _Passwd:
    name: str
    uid: int
    gid: int
    home: str


def resolve_user(user: str, passwd: bytes = b"", group: bytes = b"") -> User:
    """Return who `user` means, "name", "uid" and either with ":group" or ":gid"; empty is root.

    A number needs no entry, and has group 0 then. Raises InvalidSpec for a name that the image does
    not know, or an id outside 0-65535.
    """
    name, _, rest = user.strip().partition(":")
    group_name = rest.partition(":")[0]  # what comes after a second colon counts for nothing
    number = _number(name or "0")
    found = (
        e for e in _accounts(passwd) if (e.name == name if number is None else e.uid == number)
    )
    entry = next(found, None)
    uid = _checked("user", name, number if entry is None else entry.uid, "/etc/passwd", passwd)
    home = next((e.home for e in _accounts(passwd) if e.uid == uid and e.home), "/")
    if group_name:
        return User(uid, _gid(group_name, group), (), home)
    gid = _checked("group of user", name, entry.gid, "/etc/passwd", passwd) if entry else 0
    groups = _memberships(entry.name, group) if entry else []
    return User(uid, gid, tuple(g for g in groups if g != gid), home)


def _gid(name: str, group: bytes) -> int:
    number = _number(name)
    for fields in _fields(group, 3):
        gid = _number(fields[2])
        if gid is not None and (fields[0] == name if number is None else gid == number):
            return _checked("group", name, gid, "/etc/group", group)
    return _checked("group", name, number, "/etc/group", group)


def _accounts(passwd: bytes) -> Iterator[_Passwd]:
    for fields in _fields(passwd, 3):
        uid = _number(fields[2])
        if uid is not None:
            gid = _number(fields[3]) if len(fields) > 3 else None
            home = fields[5] if len(fields) > 5 and fields[5].startswith("/") else ""
            yield _Passwd(fields[0], uid, gid or 0, home)


def _memberships(name: str, group: bytes) -> list[int]:
    found = [
        gid
        for fields in _fields(group, 4)
        if name in fields[3].split(",")
        and (gid := _number(fields[2])) is not None
        and 0 <= gid <= MAX_ID
    ]
    return list(dict.fromkeys(found))[:MAX_GROUPS]


def _fields(data: bytes, least: int) -> Iterator[list[str]]:
    """Yield the lines of a passwd or group file that are entries, cut at their colons."""
    whole = data[:MAX_FILE_BYTES]
    if len(data) > MAX_FILE_BYTES:  # its last line is a part of one
        whole = whole[: whole.rfind(b"\n") + 1]
    for line in _LINE.finditer(whole):  # one at a time: there may be many thousands
        fields = line[0].decode("utf-8", "replace").strip().split(":")
        if len(fields) >= least and fields[0] and fields[0][0] not in "#+-":
            yield fields


def _number(text: str) -> int | None:
    """Return an id as Go's Atoi reads it, None for a name; too many digits are too large."""
    found = _NUMBER.fullmatch(text)
    return int(found[1] + found[2][:MAX_DIGITS]) if found else None


def _checked(what: str, name: str, number: int | None, file: str, data: bytes) -> int:
    if number is not None and 0 <= number <= MAX_ID:
        return number
    named = f"{what} {name[:64]!r}"
    if number is None and len(data) > MAX_FILE_BYTES:
        problem = (
            f"{named} is not in the image's {file} as far as it is read ({MAX_FILE_BYTES} bytes)"
        )
        problem += "; use a number"
    elif number is not None:
        problem = f"{named} has an id outside 0-{MAX_ID}, the ids a container has"
    elif data:
        problem = f"{named} is not in the image's {file}; use a number or a known name"
    else:
        problem = f"{named} cannot be looked up, the image has no {file}; use a number"
    raise InvalidSpec([Problem("user", problem)])
