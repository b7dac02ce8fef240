"""The half of a caller's connection that writes: it is the `Caller` of its exchange.

It frames replies for the caller's HTTP version, decides whether the connection goes on afterwards,
and closes it so that what was written is read. It reads nothing; that is `client.py`.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from abc import abstractmethod
from typing import TYPE_CHECKING, Final

from agent.contracts.base import Headers
from agent.gateway.caller import Sink
from agent.gateway.flow import ReadFlow
from agent.gateway.head import RequestHead
from agent.gateway.template import HeadTemplate
from agent.gateway.wire import (
    CONTINUE,
    JOIN_BYTES,
    LAST_CHUNK,
    chunk,
    chunked_line,
    connection_line,
    content_length,
    reply_head,
)

if TYPE_CHECKING:
    from agent.gateway.server import Gateway

HEAD, BODY, CHUNKS, REPLY, RAW, LINGER, CLOSED, PASSED = range(8)
"""What the next bytes are: a head, a counted body, chunks, the request after this one (it waits),
another protocol, something nobody reads any more; or the connection is closing, or on its way to
another worker, which reads on."""

_RESET: Final = struct.pack("ii", 1, 0)
NO_HEAD: Final = RequestHead()
"""Stands for what is no request: the answer has a body, whatever was asked before."""


class ReplyWriter(asyncio.Protocol):
    """Writes replies. Fields are shared with the reading half."""

    __slots__ = (
        "_ahead",
        "_awaits_go_ahead",
        "_chunked_reply",
        "_flow",
        "_gateway",
        "_keep",
        "_mode",
        "_replied",
        "_served",
        "_since",
        "_transport",
        "head",
        "sink",
    )

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._transport: asyncio.Transport
        self._flow: ReadFlow
        self._mode = HEAD
        self._ahead = b""
        """What has come and is not worked on yet."""
        self._since = gateway.loop.time()
        """When the present wait for the caller began; 0 at a reply's end. Read by `check` only."""
        self._served = False
        self._keep = True
        self._awaits_go_ahead = False
        self._replied = False
        self._chunked_reply = False
        self.head = NO_HEAD
        self.sink: Sink | None = None

    @abstractmethod
    def _next(self) -> None:
        """Take the next request."""

    # -- Caller

    def whole(self, head: HeadTemplate, request_id: bytes, body: bytes) -> bool:
        """Write a whole reply, unless its ready-made head does not fit; then return False."""
        gateway = self._gateway
        if not self._keep or self._mode != REPLY or self.head.old or gateway.draining:
            return False
        self.sink = None
        self._mode = HEAD
        self._since = 0.0
        if len(body) <= JOIN_BYTES:
            self._transport.write(head(request_id) + body)
        else:
            self._transport.writelines((head(request_id), body))
        if self._ahead:  # later: the exchange that ends has not given its connection back yet
            gateway.loop.call_soon(self._next)
        return True

    def reply(
        self, status: int, headers: Headers, length: int | None, body: bytes, ended: bool
    ) -> None:
        """Write head and first bytes in one go."""
        self._replied = True
        bodyless = status in (204, 304) or self.head.method == b"HEAD"
        if self._keep and (self._mode != REPLY or self._gateway.draining):
            self._keep = False
        head = self._framed(status, headers, length, bodyless)
        if bodyless or not body:
            self._transport.write(head)
        elif self._chunked_reply:
            self._transport.write(head + chunk(body))
        elif len(body) <= JOIN_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))
        if ended:
            self._reply_ended()

    def _framed(self, status: int, headers: Headers, length: int | None, bodyless: bool) -> bytes:
        """Return the head with the framing that fits the caller's version."""
        framing = b""
        old = self.head.old
        if length is not None:
            if status != 204 and (length or status != 304):
                framing = content_length(length)
        elif not bodyless:
            if old:
                self._keep = False
            else:
                framing = chunked_line()
                self._chunked_reply = True
        return reply_head(status, headers, framing, connection_line(keep=self._keep, old=old))

    def more(self, data: bytes, ended: bool) -> None:
        """Write more of the body."""
        if data and self.head.method != b"HEAD":
            if not self._chunked_reply:
                self._transport.write(data)
            elif len(data) <= JOIN_BYTES:
                self._transport.write(chunk(data) + LAST_CHUNK if ended else chunk(data))
                if ended:
                    self._chunked_reply = False
            else:
                self._transport.writelines((b"%x\r\n" % len(data), data, b"\r\n"))
        if ended:
            if self._chunked_reply:
                self._transport.write(LAST_CHUNK)
            self._reply_ended()

    def _reply_ended(self) -> None:
        """Go on to the next request, or close."""
        self.sink = None
        self._chunked_reply = False
        if self._mode == REPLY and self._keep:
            self._mode = HEAD
            self._replied = False
            self._since = 0.0
            self._next()
        elif self._mode in (REPLY, RAW):
            self._mode = CLOSED
            self._transport.close()
        elif self._mode != CLOSED:
            self._linger()

    def _linger(self) -> None:
        """Close our side only: what the caller still sends must not destroy the reply (RST)."""
        self._mode = LINGER
        self._since = self._gateway.loop.time()
        self._flow.resume()
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def abort(self) -> None:
        """Break the reply off: chunks stay open, a length is not reached, or the peer is reset."""
        self.sink = None
        self._mode = CLOSED
        if self.head.old:
            sock = self._transport.get_extra_info("socket")
            if sock.family in (socket.AF_INET, socket.AF_INET6):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._transport.abort()
        else:
            self._transport.close()

    def cut(self) -> None:
        """Close at once, whatever was not sent yet."""
        self._mode = CLOSED
        self._transport.abort()

    def switch(self, headers: Headers, data: bytes) -> None:
        """Write the 101; from here on bytes pass as they are."""
        self._mode = RAW
        self._keep = False
        self._replied = True
        self._transport.write(reply_head(101, headers, b"", b"") + data)
        self._flow.resume()
        self._next()

    def go_ahead(self) -> None:
        """Say 100 Continue to a caller that asked for it."""
        if self._awaits_go_ahead:
            self._awaits_go_ahead = False
            self._transport.write(CONTINUE)

    def pause_request(self) -> None:
        """Read no more body."""
        if self._mode != REPLY:
            self._flow.pause()

    def resume_request(self) -> None:
        """Read on."""
        if self._mode != REPLY:
            self._flow.resume()
