"""Which uid, gid and groups an image's USER means, from the image's own passwd and group files.

Follows the OCI image specification: `user`, `uid`, `user:group`, `uid:gid` and the mixed forms.
Files are given as bytes (b"" where the image has none); reading them out of the image safely is
`agent/sandbox`'s. Lines that are malformed are passed over, as libc does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from agent.errors import InvalidSpec, Problem

MAX_ID = 65535  # the container's user namespace maps 0..65535
MAX_FILE_BYTES = 1 << 20
MAX_GROUPS = 1024


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
    """Return who `user` means; empty is root.

    A number needs no entry, and has group 0 then. Supplementary groups come from the group file,
    unless a group is named. Raises InvalidSpec for a name that the image does not know, or a number
    outside 0-65535.
    """
    name, _, group_name = user.partition(":")
    name = name or "0"
    entry = _entry(name, passwd)
    uid = entry.uid if entry else _number(name, "user", "/etc/passwd")
    home = entry.home if entry and entry.home else "/"
    if group_name:
        return User(uid, _gid(group_name, group), (), home)
    gid = entry.gid if entry else 0
    groups = _memberships(entry.name, group) if entry else []
    return User(uid, gid, tuple(g for g in groups if g != gid), home)


def _entry(name: str, passwd: bytes) -> _Passwd | None:
    """Find by name first, as the container runtimes do, then by number."""
    entries = list(_passwd_entries(passwd))
    by_name = next((entry for entry in entries if entry.name == name), None)
    if by_name or not _is_id(name):
        return by_name
    return next((entry for entry in entries if entry.uid == int(name)), None)


def _fields(data: bytes, least: int) -> Iterator[list[str]]:
    for line in data[:MAX_FILE_BYTES].decode("utf-8", "replace").splitlines():
        fields = line.strip().split(":")
        if len(fields) >= least and fields[0] and not fields[0].startswith("#"):
            yield fields


def _passwd_entries(passwd: bytes) -> Iterator[_Passwd]:
    for fields in _fields(passwd, 4):
        if _is_id(fields[2]) and _is_id(fields[3]):
            home = fields[5] if len(fields) > 5 and fields[5].startswith("/") else ""
            yield _Passwd(fields[0], int(fields[2]), int(fields[3]), home)


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 6 and int(text) <= MAX_ID


def _gid(name: str, group: bytes) -> int:
    for fields in _fields(group, 3):
        if fields[0] == name and _is_id(fields[2]):
            return int(fields[2])
    return _number(name, "group", "/etc/group")


def _memberships(name: str, group: bytes) -> list[int]:
    found = [
        int(fields[2])
        for fields in _fields(group, 4)
        if _is_id(fields[2]) and name in fields[3].split(",")
    ]
    return list(dict.fromkeys(found))[:MAX_GROUPS]


def _number(text: str, what: str, file: str) -> int:
    if _is_id(text):
        return int(text)
    if text.isdecimal():
        problem = f"{what} {text[:20]} is outside 0-{MAX_ID}, the ids a container has"
    else:
        problem = f"{what} {text[:64]!r} is not in the image's {file}; use a number or a known name"
    raise InvalidSpec([Problem("user", problem)])
