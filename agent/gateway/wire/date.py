"""Heads of replies with a Date (RFC 9110 section 6.6.1): with a clock one adds it where none came.

A function's own Date stays where its contract passes it on. The line is made once a second.
"""

from __future__ import annotations

from email.utils import formatdate
from functools import lru_cache
from time import time

from agent.gateway.wire.http1 import Fields, connection_line, framing_line, reply_head


def date_line() -> bytes:
    """Return the Date line of now; RFC 9110 asks for whole seconds, of the wall clock."""
    return _line(int(time()))


@lru_cache(maxsize=1)
def _line(second: int) -> bytes:
    return f"Date: {formatdate(second, usegmt=True)}\r\n".encode("ascii")


def with_one_date(headers: Fields) -> tuple[Fields, bool]:
    """Return a reply's headers with no second Date, and whether they have one at all."""
    at = [n for n, (name, _) in enumerate(headers) if len(name) == 4 and name.lower() == b"date"]
    if len(at) > 1:
        headers = [pair for n, pair in enumerate(headers) if n not in at[1:]]
    return headers, bool(at)


def framed_head(
    status: int, headers: Fields, length: int | None, chunked: bool, keep: bool, old: bool
) -> bytes:
    """Return a reply's head with its Date and its framing."""
    headers, dated = with_one_date(headers)
    date = b"" if dated else date_line()
    framing = framing_line(status, length, chunked)
    return reply_head(status, headers, date, framing, connection_line(keep=keep, old=old))
