"""What a registry wants for an answer: WWW-Authenticate taken apart (RFC 9110, section 11.6.1).

Pure; `agent/containerd/authorization.py` answers. Bearer goes before Basic, as containerd and
Docker choose; other schemes are left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

MAX_HEADER_CHARS = 8192
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PART = re.compile(
    rf"(?P<name>{_TOKEN})"
    rf'(?:\s*=\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<plain>{_TOKEN}(?:/[^\s,]*)?)))?'
)
_SCHEMES = ("bearer", "basic")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to authorize; `scheme` is bearer or basic."""

    scheme: str
    fields: dict[str, str] = field(default_factory=dict)


def challenges(headers: Sequence[str]) -> list[Challenge]:
    """Return the challenges of all WWW-Authenticate headers that can be answered, best first."""
    found: list[Challenge] = []
    for header in headers:
        found += _of(header[:MAX_HEADER_CHARS])
    known = [each for each in found if each.scheme in _SCHEMES]
    return sorted(known, key=lambda each: _SCHEMES.index(each.scheme))


def _of(header: str) -> list[Challenge]:
    found: list[Challenge] = []
    for part in _PART.finditer(header):
        name = part["name"].lower()
        if part["quoted"] is None and part["plain"] is None:
            found.append(Challenge(name))
        elif found:
            value = part["plain"] or re.sub(r"\\(.)", r"\1", part["quoted"] or "")
            found[-1].fields.setdefault(name, value)
    return found
