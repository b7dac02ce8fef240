"""One caller's connection: HTTP/1.0 and 1.1 as a server.

A head is cut out of the stream first and only then parsed, so that the parser never sees more than
one request; what a caller sends ahead (pipelining) stays unparsed, and reading stops, until the
reply before it is out. Bodies are counted or dechunked here and handed on as they come. The
connection is the `Caller` of its exchange. Where a request goes is decided in `server.py`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from typing import TYPE_CHECKING, Final, Protocol, cast

import httptools

from agent.contracts.base import Headers, Reply
from agent.contracts.own_errors import own_error
from agent.gateway.dechunk import BadChunk, Dechunker
from agent.gateway.flow import ReadFlow
from agent.gateway.wire import (
    CONTINUE,
    HEAD_END,
    JOIN_BYTES,
    LAST_CHUNK,
    MAX_HEADERS,
    MAX_REQUEST_HEAD_BYTES,
    STEERING,
    Field,
    chunk,
    chunked_line,
    connection_line,
    content_length,
    reply_head,
)

if TYPE_CHECKING:
    from agent.gateway.server import Gateway

log = logging.getLogger(__name__)

HEAD, BODY, CHUNKS, REPLY, RAW, LINGER, CLOSED = range(7)
"""What the next bytes are: a head, a counted body, chunks, the request after this one (it waits),
another protocol, something nobody reads any more; or the connection is closing."""

LINGER_S: Final = 2.0
"""How long a caller that was refused early may go on sending before it is cut off."""
LINGER_BYTES: Final = 1 << 20
PIPELINED_AT_ONCE: Final = 16
"""Requests of one connection served in one turn of the loop."""
_RESET: Final = struct.pack("ii", 1, 0)


class Sink(Protocol):
    """What takes a request's body: an exchange, or a door that must read the body first."""

    @property
    def limited(self) -> bool:
        """True while a time limit of its own ends this call."""

    def request_body(self, data: bytes, ended: bool) -> None:
        """Take further bytes."""

    def caller_gone(self) -> None:
        """The connection is closed."""

    def caller_full(self) -> None:
        """The caller reads slowly."""

    def caller_drained(self) -> None:
        """The caller has caught up."""


class ClientConnection(asyncio.Protocol):
    """One connection of a caller. Fields are grouped by how long they live."""

    __slots__ = (
        "_ahead",
        "_at",
        "_awaits_go_ahead",
        "_chunked_reply",
        "_dechunker",
        "_flow",
        "_full",
        "_gateway",
        "_head_done",
        "_hosts",
        "_keep",
        "_left",
        "_lingered_bytes",
        "_mode",
        "_old",
        "_parser",
        "_pumping",
        "_replied",
        "_served",
        "_since",
        "_tail",
        "_transport",
        "_unsent_bytes",
        "_upgrade_asked",
        "chunked",
        "head_bytes",
        "headers",
        "host",
        "length",
        "method",
        "remote",
        "sink",
        "target",
        "traced",
        "upgrade",
    )

    def __init__(self, gateway: Gateway) -> None:
        # of the connection
        self._gateway = gateway
        self._transport: asyncio.Transport
        self._flow: ReadFlow
        self._parser = httptools.HttpRequestParser(self)
        self._mode = HEAD
        self._since = gateway.loop.time()
        """When the present wait for the caller began; read by `check` only."""
        self._ahead = b""
        """What has come and is not worked on yet, from `_at` on."""
        self._at = 0
        self._pumping = False
        self._full = False
        self._served = False
        self._lingered_bytes = 0
        self._unsent_bytes = 0
        self.remote = ""
        # of the reply
        self._chunked_reply = False
        # of the request
        self.sink: Sink | None = None
        self._dechunker: Dechunker | None = None
        self._old = False
        self._keep = True
        self._left = 0
        self.method = b""
        self._next_request()

    def _next_request(self) -> None:
        self._tail = b""
        self._head_done = False
        self._replied = False
        self._hosts = 0
        self._awaits_go_ahead = False
        self._upgrade_asked = False
        self.target = b""
        self.headers: Headers = []
        self.head_bytes = 0
        self.host = b""
        self.length = 0
        self.chunked = False
        self.upgrade = False
        self.traced = False

    def __repr__(self) -> str:
        modes = ("head", "body", "chunks", "reply", "raw", "linger", "closed")
        return f"<ClientConnection {self.remote or 'unix'} {modes[self._mode]} {self.sink!r}>"

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection in, or turn it away when there are too many."""
        self._transport = cast("asyncio.Transport", transport)
        self._flow = ReadFlow(self._transport)
        peer = transport.get_extra_info("peername")
        self.remote = peer[0] if isinstance(peer, tuple) else ""
        if not self._gateway.connected(self):
            self._keep = False
            message = "this node has too many connections; try again"
            request_id = self._gateway.desk.random().hex()
            reply = own_error(
                503, "Overloaded", message, request_id, fault="platform", retryable=True
            )
            self.answer(reply, request_id)

    def connection_lost(self, exc: Exception | None) -> None:
        """The caller is gone, or we closed: the exchange is told, the instance is not."""
        self._mode = CLOSED
        self._gateway.disconnected(self)
        sink, self.sink = self.sink, None
        if sink is not None:
            sink.caller_gone()

    def eof_received(self) -> None:
        """The caller sends no more: as a cancelled call looks the same, the call is over."""
        if self._mode == HEAD and self.head_bytes:
            self._keep = False
            self.refuse(400, "BadRequest", "the request ends in the middle of its head")
        elif self._mode == RAW and self.sink is not None:
            self.sink.request_body(b"", True)

    def pause_writing(self) -> None:
        """The caller reads slowly: its exchange reads no more, no next request is begun."""
        self._full = True
        if self.sink is not None:
            self.sink.caller_full()

    def resume_writing(self) -> None:
        """The caller has caught up."""
        self._full = False
        if self.sink is not None:
            self.sink.caller_drained()
        elif self._mode == HEAD:
            self._flow.resume()
            self._pump()

    def data_received(self, data: bytes) -> None:
        """Work on what came."""
        self._ahead = self._ahead[self._at :] + data if self._ahead else data
        self._at = 0
        if not self._pumping:
            self._pump()

    def _pump(self) -> None:
        """Work on what has come until it is used up or has to wait."""
        self._pumping = True
        turns = 0
        try:
            while self._at < len(self._ahead):
                mode = self._mode
                if mode == HEAD:
                    turns += 1
                    if self._full or turns > PIPELINED_AT_ONCE:
                        self._flow.pause()
                        if not self._full:
                            self._gateway.loop.call_soon(self._pump_on)
                        return
                    self._read_head()
                elif mode == REPLY:
                    self._flow.pause()
                    return
                else:
                    self._read_body(mode)
            self._ahead = b""
            self._at = 0
        except Exception:  # the top of the data path: one broken call must not break others
            log.exception("connection of %s", self.remote or "unix")
            self.cut()
        finally:
            self._pumping = False

    def _pump_on(self) -> None:
        if self._mode == HEAD and not self._pumping:
            self._flow.resume()
            self._pump()

    # -- the request's head

    def _read_head(self) -> None:
        data, at = self._ahead, self._at
        if not self.head_bytes:
            self._since = self._gateway.loop.time()
        stop = self._head_stop(data, at)
        piece = data if at == 0 and stop == len(data) else data[at:stop]
        self._at = stop
        self.head_bytes += len(piece)
        if self.head_bytes > MAX_REQUEST_HEAD_BYTES:
            self._too_large(f"the head is larger than {MAX_REQUEST_HEAD_BYTES} bytes")
            return
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            parser, self._parser = self._parser, httptools.HttpRequestParser(self)
            self.upgrade = self._upgrade_asked and self.method != b"CONNECT"
            self._keep = self.upgrade
            self._request(parser.get_http_version())
            return
        except httptools.HttpParserError as error:
            self._junk(f"this is not HTTP/1.1: {error}")
            return
        if self._head_done:
            self._request(self._parser.get_http_version())
        else:
            self._tail = (self._tail + piece[-3:])[-3:]

    def _head_stop(self, data: bytes, at: int) -> int:
        """Return where the head ends in `data`, or the data's end."""
        tail = self._tail
        if tail:
            split = (tail + data[at : at + 3]).find(HEAD_END)
            if split >= 0:
                return at + split + 4 - len(tail)
        end = data.find(HEAD_END, at)
        return end + 4 if end >= 0 else len(data)

    def _request(self, version: str) -> None:
        """A whole head is here: check what must hold for any request, then pass it on."""
        self._old = old = version == "1.0"
        wrong = self._wrong(version, old)
        if wrong:
            self._junk(wrong)
            return
        if len(self.headers) > MAX_HEADERS:
            self._too_large(f"the head has more than {MAX_HEADERS} fields")
            return
        self._served = True
        first = b""
        length = self.length
        if self.chunked or length:
            # The old parser stands inside a body that it will not see.
            self._parser = httptools.HttpRequestParser(self)
            if self._awaits_go_ahead and self._at < len(self._ahead):
                self._awaits_go_ahead = False
            if self.chunked:
                self._mode = CHUNKS
                self._dechunker = dechunker = Dechunker()
                try:
                    first, self._at = dechunker.feed(self._ahead, self._at)
                except BadChunk as error:
                    self._junk(str(error))
                    return
                done = dechunker.done
            else:
                first = self._ahead[self._at : self._at + length]
                self._at += len(first)
                self._left = length - len(first)
                self._mode = BODY
                done = not self._left
            if done:
                self._mode = REPLY
        else:
            self._mode = REPLY
        self._gateway.request(self, first, self._mode == REPLY)

    def _too_large(self, message: str) -> None:
        self._keep = False
        self.refuse(431, "HeadersTooLarge", message)

    def _wrong(self, version: str, old: bool) -> str:
        if version != "1.1" and not old:
            return f"HTTP/{version} is not spoken here: use HTTP/1.1"
        if self._hosts > 1 or (not self._hosts and not old):
            return "a request needs exactly one Host"
        if self.chunked and old:
            return "HTTP/1.0 has no chunks"
        self.upgrade = self.upgrade and not old
        return ""

    # httptools: only fields are set

    def on_url(self, url: bytes) -> None:
        """Keep the target byte for byte."""
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header, and note those that steer us."""
        self.headers.append((name, value))
        field = STEERING.get(name.lower())
        if field is None:
            return
        if field is Field.HOST:
            self._hosts += 1
            self.host = value.strip()
        elif field is Field.CONTENT_LENGTH:
            self.length = int(value)
        elif field is Field.TRANSFER_ENCODING:
            self.chunked = True
        elif field is Field.EXPECT:
            self._awaits_go_ahead = value.strip().lower() == b"100-continue"
        elif field is Field.UPGRADE:
            self._upgrade_asked = True
        else:
            self.traced = value.strip() == b"1"

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._head_done = True
        self.method = self._parser.get_method()
        self._keep = self._parser.should_keep_alive()

    # -- the request's body

    def _read_body(self, mode: int) -> None:
        data, at = self._ahead, self._at
        self._since = self._gateway.loop.time()
        if mode == BODY:
            piece = data[at : at + self._left] if at or len(data) > self._left else data
            self._at = at + len(piece)
            self._left -= len(piece)
            ended = not self._left
        elif mode == CHUNKS and self._dechunker is not None:
            try:
                piece, self._at = self._dechunker.feed(data, at)
            except BadChunk as error:
                self._give_up_on(str(error))
                return
            ended = self._dechunker.done
        else:
            self._at = len(data)
            if mode == RAW and self.sink is not None:
                self.sink.request_body(data[at:], False)
            elif mode == LINGER:
                self._lingered_bytes += len(data) - at
                if self._lingered_bytes > LINGER_BYTES:
                    self._flow.pause()  # until `check` cuts it: the caller has time to read
            return
        if ended:
            self._mode = REPLY
            self._flow.resume()
        if self.sink is not None and (piece or ended):
            self.sink.request_body(piece, ended)

    def _give_up_on(self, why: str) -> None:
        """The body is broken: the exchange cannot go on; say why if nothing was said yet."""
        sink, self.sink = self.sink, None
        if sink is not None:
            sink.caller_gone()
        if self._replied:
            self.abort()
        else:
            self._junk(why)

    # -- Caller: the reply

    def reply(
        self, status: int, headers: Headers, length: int | None, body: bytes, ended: bool
    ) -> None:
        """Write head and first bytes in one go."""
        self._replied = True
        bodyless = status in (204, 304) or self.method == b"HEAD"
        framing = b""
        if length is not None:
            if status != 204 and (length or status != 304):
                framing = content_length(length)
        elif not bodyless:
            if self._old:
                self._keep = False
            else:
                framing = chunked_line()
                self._chunked_reply = True
        if self._keep and (self._mode != REPLY or self._gateway.draining):
            self._keep = False
        connection = (
            b"" if self._keep and not self._old else connection_line(keep=self._keep, old=self._old)
        )
        head = reply_head(status, headers, framing, connection)
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

    def more(self, data: bytes, ended: bool) -> None:
        """Write more of the body."""
        if data and self.method != b"HEAD":
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
            self._since = self._gateway.loop.time()
            self._next_request()
            if self._ahead and not self._pumping:
                self._flow.resume()
                self._pump()
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
        if self._old:
            sock = self._transport.get_extra_info("socket")
            if sock.family in (socket.AF_INET, socket.AF_INET6):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._transport.abort()
        else:
            self._transport.close()

    def switch(self, headers: Headers, data: bytes) -> None:
        """Write the 101; from here on bytes pass as they are."""
        self._mode = RAW
        self._keep = False
        self._transport.write(reply_head(101, headers, b"", b"") + data)
        self._flow.resume()
        if self._at < len(self._ahead) and not self._pumping:
            self._pump()

    def go_ahead(self) -> None:
        """Say 100 Continue to a caller that asked for it."""
        if self._awaits_go_ahead:
            self._awaits_go_ahead = False
            if not self._old:
                self._transport.write(CONTINUE)

    def pause_request(self) -> None:
        """Read no more body."""
        if self._mode != REPLY:
            self._flow.pause()

    def resume_request(self) -> None:
        """Read on."""
        if self._mode != REPLY:
            self._flow.resume()

    # -- refusing

    def answer(self, reply: Reply, request_id: str) -> None:
        """Answer a request that never became an exchange."""
        self._gateway.counters.refused(reply.status)
        headers = [*reply.headers, (b"X-Kindling-Request-Id", request_id.encode())]
        self.reply(reply.status, headers, len(reply.body), reply.body, True)

    def refuse(self, status: int, code: str, message: str) -> None:
        """Answer in our own error shape: the caller's fault, before anything else is known."""
        request_id = self._gateway.desk.random().hex()
        self.answer(own_error(status, code, message, request_id), request_id)

    def _junk(self, why: str) -> None:
        """What came is no request: say so and read nothing more."""
        self._keep = False
        if self._mode not in (HEAD, REPLY):
            self._mode = LINGER
        self.refuse(400, "BadRequest", why)

    def cut(self) -> None:
        """Close at once, whatever was not sent yet."""
        self._mode = CLOSED
        self._transport.abort()

    # -- the clock

    def check(self, now: float, head_s: float, idle_s: float) -> None:
        """End waits for the caller that took too long."""
        waited_s = now - self._since
        mode = self._mode
        if mode == HEAD:
            if self.head_bytes:
                if waited_s > head_s:
                    self._keep = False
                    self.refuse(408, "RequestTimeout", f"no whole head within {head_s:g} s")
            elif waited_s > (idle_s if self._served else min(head_s, idle_s)):
                self._close_when_sent(now)
        elif mode in (BODY, CHUNKS):
            limited = self._flow.paused or self.sink is None or self.sink.limited
            if waited_s > idle_s and not limited:
                self._timed_out(idle_s)
        elif mode == LINGER:
            if waited_s > LINGER_S:
                self.cut()
        elif mode == CLOSED and waited_s > idle_s:
            self._close_when_sent(now)

    def close_if_idle(self) -> None:
        """Close when no request is under way (the gateway drains)."""
        if self._mode == HEAD and not self.head_bytes:
            self._mode = CLOSED
            self._transport.close()

    def close_now(self) -> None:
        """Close when what was written is out (the gateway closes)."""
        self._mode = CLOSED
        self._transport.close()

    def _timed_out(self, idle_s: float) -> None:
        sink, self.sink = self.sink, None
        if sink is not None:
            sink.caller_gone()
        self._keep = False
        if self._replied:
            self.abort()
        else:
            self.refuse(408, "RequestTimeout", f"the body stopped for {idle_s:g} s")

    def _close_when_sent(self, now: float) -> None:
        """Close an idle connection; one whose caller still reads the last reply gets more time."""
        unsent = self._transport.get_write_buffer_size()
        if unsent and unsent != self._unsent_bytes:
            self._unsent_bytes = unsent
            self._since = now
        else:
            self.cut()
