"""Heads of requests, as the parser reads them, and of replies; repeated replies' are recognised.

Functions that answer again mostly send the same head. One seen twice is kept (bounded, and
forgotten within a minute), and those above keep a ready-made head for the caller beside it. Heads
of callers differ: `plain.py` reads what is plain of them, and what is not comes here. `requests.py`
and `upstream.py` read.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import httptools

from agent.gateway.wire.http1 import (
    MAX_HEADERS,
    MAX_REQUEST_HEAD_BYTES,
    STEERING_FIELDS,
    Fields,
    Steering,
)
from agent.model.upgrade import names_websocket

HeadTemplate = Callable[[bytes], bytes]
"""Returns the head of the call with a request id: one form, filled in with it and its trace."""

KEPT_HEADS: Final = 1024
KEPT_HEAD_BYTES: Final = 4096
"""Heads longer than this carry something of their own and will not come again."""
SEEN_HEADS: Final = 8192
"""Hashes of heads seen once, so that heads which never come again cost no memory."""

HOST: Final = re.compile(rb"(?:[\w.~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(?::\d*)?")
"""RFC 3986 section 3.2.2 and a port; how a name is made up is for whoever looks it up."""
_ABSOLUTE: Final = re.compile(rb"https?://([^/?]*)", re.IGNORECASE)
"""A target that says the host itself (RFC 9112 section 3.2.2)."""


class BadHead(Exception):
    """What came is no request we serve: `status` and `code` are those of the answer."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class RequestHead:
    """A caller's head. `length` is that of the body, None for chunks; `size` that of the head.

    Fields that are mostly as below are written only when they change.
    """

    method = b""
    target = b""
    host = b""
    host_text = ""
    length: int | None = 0
    size = 0
    old = False
    keep_alive = True
    upgrade = False
    """True if it asks for a WebSocket: no other upgrade is passed on."""
    traced = False
    expects = False
    lines = b""
    """The fields that nobody looks at, as they came, each with its line's end."""
    raw = b""
    """The whole head, where some of its fields are among the `lines`."""

    def __init__(self) -> None:
        self.looked_at: Fields = []
        """The fields that those above may look at: all of them where `lines` is empty."""

    @property
    def headers(self) -> Fields:
        """All fields as pairs; made when asked for."""
        if not self.raw:
            return self.looked_at
        pairs = [line.partition(b": ") for line in self.raw.split(b"\r\n")[1:-2]]
        return [(name, value.lstrip(b" ")) for name, _, value in pairs]


class ReplyHead:
    """An instance's head. `length` is that of the body, None when unknown."""

    # what it says
    status = 0
    length: int | None = None
    coding = b""
    """Of its Transfer-Encoding; the parser takes off `chunked` only."""
    keep_alive = False
    keeps_s = 0.0
    """For how long it says connections are kept, seconds; 0 if it does not."""
    # what follows from it
    kept = False
    made_for: object = None
    """What `template` was made for: it holds for nothing else."""
    template: HeadTemplate | None = None
    """The whole head for a caller that keeps its connection."""

    def __init__(self) -> None:
        self.headers: Fields = []


class HeadCache:
    """Replies' heads by their bytes."""

    __slots__ = ("_heads", "_seen", "get")

    def __init__(self) -> None:
        self._heads: dict[bytes, ReplyHead] = {}
        self._seen: set[int] = set()
        self.get: Callable[[bytes], ReplyHead | None] = self._heads.get

    def learn(self, raw: bytes, head: ReplyHead) -> None:
        """Keep a head that comes for the second time."""
        if len(raw) > KEPT_HEAD_BYTES:
            return
        mark = hash(raw)
        if mark not in self._seen:
            if len(self._seen) >= SEEN_HEADS:
                self._seen.clear()
            self._seen.add(mark)
            return
        if len(self._heads) >= KEPT_HEADS:
            self._heads.clear()
        head.kept = True
        self._heads[raw] = head

    def clear(self) -> None:
        """Forget everything: heads may hold credentials."""
        self._heads.clear()
        self._seen.clear()


class HeadReader:
    """Parses the heads of one connection, one at a time, in as many pieces as they come."""

    __slots__ = (
        "_coding",
        "_done",
        "_head",
        "_hosts",
        "_parser",
        "_upgrade",
        "_websocket",
        "size",
    )

    def __init__(self) -> None:
        self._parser: Any = None
        self.size = 0
        """Bytes of the present head so far."""
        self._begin()

    def feed(self, piece: bytes) -> RequestHead | None:
        """Read on; return the head when it is whole. Raises BadHead.

        A piece must not reach past the head's end.
        """
        self.size += len(piece)
        if self.size > MAX_REQUEST_HEAD_BYTES:
            raise _too_large(f"the head is larger than {MAX_REQUEST_HEAD_BYTES} bytes")
        if self._parser is None:
            self._parser = httptools.HttpRequestParser(self)
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            head = self._head  # the contracts pass the same ones on (`Dialect._http_head`)
            head.upgrade = self._websocket and head.method == b"GET" and head.length == 0
            head.keep_alive &= head.method != b"CONNECT"
        except httptools.HttpParserError as error:
            if self._parser.get_method() == b"PRI":  # RFC 9113 section 3.4
                raise _not_spoken("2") from error
            raise BadHead(400, "BadRequest", f"this is not HTTP/1.1: {error}") from error
        if not self._done:
            return None
        head = self._checked(self._head)
        if self._upgrade or head.length != 0:
            self._parser = None  # it stands inside a body, or behind one it will not see
        self._begin()
        return head

    def _begin(self) -> None:
        self._head = RequestHead()
        self._done = False
        self._hosts = 0
        self._coding = b""
        self._upgrade = self._websocket = False
        self.size = 0

    def _checked(self, head: RequestHead) -> RequestHead:
        """Check what must hold for any request, and return it."""
        version = self._parser.get_http_version()
        head.size = self.size
        if version != "1.1":
            if version != "1.0":
                raise _not_spoken(version)
            head.old = True
            head.upgrade = head.expects = False
            if self._upgrade:  # RFC 9110 section 7.8: ignored, so the instance must not see it
                fields = head.looked_at
                head.looked_at = [one for one in fields if one[0].lower() != b"upgrade"]
            if head.length is None:
                raise BadHead(400, "BadRequest", "HTTP/1.0 has no chunks")
        if self._hosts > 1 or (not self._hosts and not head.old):
            raise BadHead(400, "BadRequest", "a request needs exactly one Host")
        absolute = _ABSOLUTE.match(head.target) if head.target[:1] != b"/" else None
        if absolute is not None:
            head.host = absolute[1]
            head.host_text = head.host.decode("latin-1")
        if not HOST.fullmatch(head.host):
            raise BadHead(400, "BadRequest", "Host is no name or address with an optional port")
        if self._coding not in (b"", b"chunked"):
            message = "of all transfer codings only chunked is served here"
            raise BadHead(501, "NotImplemented", message)
        if len(head.looked_at) > MAX_HEADERS:
            raise _too_large(f"the head has more than {MAX_HEADERS} fields")
        return head

    # -- httptools: only fields are set

    def on_url(self, url: bytes) -> None:
        """Keep the target byte for byte."""
        self._head.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header, and note those that steer us."""
        head = self._head
        head.looked_at.append((name, value))
        field = STEERING_FIELDS.get(name.lower())
        if field is None:
            return
        if field is Steering.HOST:
            self._hosts += 1
            head.host = value.strip()
            head.host_text = head.host.decode("latin-1")
        elif field is Steering.CONTENT_LENGTH:
            head.length = int(value)
        elif field is Steering.TRANSFER_ENCODING:
            head.length = None
            self._coding += value.strip().lower()
        elif field is Steering.EXPECT:
            head.expects = value.strip().lower() == b"100-continue"
        elif field is Steering.UPGRADE:
            self._upgrade = True
            self._websocket = self._websocket or names_websocket(value)
        else:
            head.traced = value.strip() == b"1"

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._done = True
        self._head.method = self._parser.get_method()
        self._head.keep_alive = self._parser.should_keep_alive()


def _not_spoken(version: str) -> BadHead:
    return BadHead(400, "BadRequest", f"HTTP/{version} is not spoken: use HTTP/1.1")


def _too_large(message: str) -> BadHead:
    return BadHead(431, "HeadersTooLarge", message)
