"""Heads of requests that say nothing unusual, read in one pass over their lines.

Almost every head is such a one, and this costs a third of what the parser does with it. Whatever is
not surely plain is left to the parser (`head.py`), which alone says what is wrong with a head: so
nothing is taken here that it would refuse, and nothing read otherwise. Names come again and again;
what one means is looked up by its bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from agent.gateway.wire.head import HOST, RequestHead
from agent.gateway.wire.http1 import MAX_HEADERS, MAX_REQUEST_HEAD_BYTES, STEERING_FIELDS

METHODS: Final = frozenset((b"GET", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"HEAD"))
VERSION: Final = b" HTTP/1.1"
TARGET: Final = (
    b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~!$&'()*+,;=:@/?%"
)
"""Signs of a target that is surely well-formed: RFC 3986, sections 3.3 and 3.4."""
TOKEN: Final = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'*+-.^_`|~"
"""Signs of a field's name: RFC 9110 section 5.6.2."""
NO_CONTROLS: Final = bytes(
    sign if (sign >= 32 and sign != 127) or sign in b"\r\n" else 32 for sign in range(256)
)
"""Turns controls into blanks, so that a head with any is another than before."""
LENGTH_DIGITS: Final = 15
NAMES: Final = 1024
"""Known at once, each of at most ..."""
NAME_BYTES: Final = 64
"""... so many bytes; callers choose them."""
HOSTS: Final = 256
KEEPS: Final = frozenset((b"keep-alive", b"Keep-Alive"))

PLAIN: Final = 0
HOST_FIELD: Final = 1
LENGTH_FIELD: Final = 2
CONNECTION_FIELD: Final = 3
LOOKED_AT: Final = 4
UNUSUAL: Final = 5
"""What a name means here: nothing to us, or which field it is; the parser reads unusual heads."""
KINDS: Final[dict[bytes, int]] = {
    b"host": HOST_FIELD,
    b"content-length": LENGTH_FIELD,
    b"connection": CONNECTION_FIELD,
    b"proxy-connection": UNUSUAL,  # the parser takes it for a Connection
}


class PlainHeads:
    """Reads plain heads. `looked_at` says of which names, as sent, those above want the fields."""

    __slots__ = ("_hosts", "_known", "_looked_at")

    def __init__(self, looked_at: Callable[[bytes], bool]) -> None:
        self._looked_at = looked_at
        self._known: dict[bytes, int] = {}
        """What names mean, as sent."""
        self._hosts: dict[bytes, str] = {}

    def read(self, raw: bytes) -> RequestHead | None:
        """Return the head that `raw` is; None when it is not exactly one whole plain head."""
        size = len(raw)
        if size > MAX_REQUEST_HEAD_BYTES or not raw.endswith(b"\r\n\r\n"):
            return None
        lines = raw.splitlines()
        if len(lines) > MAX_HEADERS or raw.translate(NO_CONTROLS) != raw:
            return None
        head = RequestHead()
        if not _request_line(head, lines[0]):
            return None
        head.size = size
        head.raw = raw
        return head if self._fields(head, lines) else None

    def _fields(self, head: RequestHead, lines: list[bytes]) -> bool:
        """Take the fields in; False when one is unusual, or some line does not end in CRLF."""
        known = self._known
        plain: list[bytes] = []
        hosts = lengths = 0
        del lines[-1]
        left = head.size - len(lines[0]) - 4
        del lines[0]
        for line in lines:
            left -= len(line) + 2
            name, colon, value = line.partition(b": ")
            kind = known.get(name)
            if kind is None:
                kind = self._learn(name)
            if len(colon) != 2:
                return False
            if kind == PLAIN:
                plain.append(line)
            elif kind == HOST_FIELD:
                hosts += 1
                head.host = value
            elif kind == LOOKED_AT:
                head.looked_at.append((name, value.lstrip(b" ")))
            elif kind == CONNECTION_FIELD:
                if value == b"close":
                    head.keep_alive = False
                elif value not in KEEPS:
                    return False
            elif kind == LENGTH_FIELD and value.isdigit() and len(value) <= LENGTH_DIGITS:
                lengths += 1
                head.length = int(value)
            else:
                return False
        if plain:
            plain.append(b"")
            head.lines = b"\r\n".join(plain)
        return hosts == 1 and lengths <= 1 and not left and self._host(head)

    def _host(self, head: RequestHead) -> bool:
        """Check the Host and note it as text; False when the parser is to say what is wrong."""
        host = head.host
        text = self._hosts.get(host)
        if text is None:
            if not HOST.fullmatch(host):
                return False
            text = host.decode("latin-1")
            if len(self._hosts) >= HOSTS:
                self._hosts.clear()
            self._hosts[host] = text
        head.host_text = text
        return True

    def _learn(self, name: bytes) -> int:
        """Return what a name means."""
        kind = PLAIN
        lower = name.lower()
        if not name or name.translate(None, TOKEN):
            kind = UNUSUAL
        elif lower in KINDS:
            kind = KINDS[lower]
        elif lower in STEERING_FIELDS:
            kind = UNUSUAL
        elif self._looked_at(name):
            kind = LOOKED_AT
        if len(name) <= NAME_BYTES:
            if len(self._known) >= NAMES:
                self._known.clear()
            self._known[name] = kind
        return kind


def _request_line(head: RequestHead, line: bytes) -> bool:
    """Take the request line in; False when it is unusual."""
    method, _, rest = line.partition(b" ")
    if method not in METHODS or not rest.startswith(b"/") or not rest.endswith(VERSION):
        return False
    target = rest[: -len(VERSION)]
    head.method, head.target = method, target
    return not target.translate(None, TARGET)
