"""HTTP/1.1 as bytes: which header fields steer the gateway, and how a reply's head is written.

Header names keep the sender's case; they are looked up lower-cased. Framing (Content-Length,
Transfer-Encoding, Connection) is always the gateway's own and is never copied from one side to the
other. Nothing here reads or writes a socket; `client.py` and `upstream.py` do.
"""

from __future__ import annotations

from enum import IntEnum
from http import HTTPStatus
from typing import Final

Fields = list[tuple[bytes, bytes]]
"""Header fields as they came: name and value."""

HEAD_END: Final = b"\r\n\r\n"
MAX_REQUEST_HEAD_BYTES: Final = 65536
"""A caller's head, before any contract is known; contracts allow 8-32 KB."""
MAX_REPLY_HEAD_BYTES: Final = 262144
"""A function's head; contracts refuse far less, this only bounds memory."""
MAX_HEADERS: Final = 256
"""Fields in one head; nginx and the clouds stop between 100 and 200."""
JOIN_BYTES: Final = 65536
"""Up to here copying head and body into one write is cheaper than two buffers."""


class Steering(IntEnum):
    """Fields of a caller's head that steer the gateway itself."""

    CONTENT_LENGTH = 1
    TRANSFER_ENCODING = 2
    UPGRADE = 3
    EXPECT = 4
    HOST = 5
    TRACE = 6


STEERING_FIELDS: Final[dict[bytes, Steering]] = {
    b"host": Steering.HOST,
    b"content-length": Steering.CONTENT_LENGTH,
    b"transfer-encoding": Steering.TRANSFER_ENCODING,
    b"upgrade": Steering.UPGRADE,
    b"expect": Steering.EXPECT,
    b"x-kindling-trace": Steering.TRACE,
}

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK: Final = b"0\r\n\r\n"
_CLOSE: Final = b"Connection: close\r\n"
_KEEP: Final = b"Connection: keep-alive\r\n"
_CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"


def _status_line(status: int) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return b"HTTP/1.1 %d %b\r\n" % (status, phrase.encode("latin-1"))


STATUS_LINES: Final[list[bytes]] = [_status_line(status) for status in range(1000)]
_DIGITS: Final[list[bytes]] = [b"Content-Length: %d\r\n" % length for length in range(4096)]


def content_length(length: int) -> bytes:
    """Return the Content-Length line for `length` bytes."""
    return _DIGITS[length] if length < 4096 else b"Content-Length: %d\r\n" % length


def reply_head(status: int, headers: Fields, *lines: bytes) -> bytes:
    """Return a reply's head; `lines` are whole ones or empty."""
    fields = [b"%b: %b\r\n" % field for field in headers]
    return b"".join((STATUS_LINES[status], *fields, *lines, b"\r\n"))


def connection_line(*, keep: bool, old: bool) -> bytes:
    """Return the Connection line: said only where it differs from the version's default."""
    return (_KEEP if old else b"") if keep else _CLOSE


def framing_line(status: int, length: int | None, chunked: bool) -> bytes:
    """Return the line that frames a reply's body: a length if it is known, chunks, or nothing."""
    if length is None:
        return _CHUNKED if chunked else b""
    return content_length(length) if status != 204 and (length or status != 304) else b""


def chunk(data: bytes) -> bytes:
    """Frame one non-empty chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)
