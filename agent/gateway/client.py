"""One caller's connection: HTTP/1.0 and 1.1 as a server.

A head is cut out of the stream before anything reads it (`head.py`), so that no parser ever sees
more than one request; what a caller sends ahead (pipelining) stays untouched, and reading stops,
until the reply before it is out. Bodies are counted or dechunked here and handed on as they come.
How replies are written is `reply.py`'s, where a request goes is decided in `server.py`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from typing import TYPE_CHECKING, Final, cast

from agent.contracts.base import Reply
from agent.contracts.own_errors import own_error
from agent.gateway.dechunk import BadChunk, Dechunker
from agent.gateway.flow import ReadFlow
from agent.gateway.head import KEPT_HEAD_BYTES, BadHead, HeadReader, RequestHead
from agent.gateway.passing import Passed, as_sent, send
from agent.gateway.reply import (
    BODY,
    CHUNKS,
    CLOSED,
    HEAD,
    LINGER,
    NO_HEAD,
    PASSED,
    RAW,
    REPLY,
    ReplyWriter,
)
from agent.gateway.wire import HEAD_END

if TYPE_CHECKING:
    from agent.gateway.server import Gateway

log = logging.getLogger(__name__)

LINGER_S: Final = 2.0
"""How long a caller that was refused early has to read the answer before it is cut off."""
LINGER_BYTES: Final = 64 << 20
"""How much it may send: most clients read the refusal only after all of their body, and the largest
contract takes half of this."""
PIPELINED_AT_ONCE: Final = 16
"""Requests of one connection served in one turn of the loop."""


class ClientConnection(ReplyWriter):
    """One connection of a caller."""

    __slots__ = (
        "_at",
        "_dechunker",
        "_full",
        "_known_head",
        "_left",
        "_lingered_bytes",
        "_passed",
        "_passing",
        "_pumping",
        "_reader",
        "_tail",
        "_unsent_bytes",
        "remote",
        "waited_s",
    )

    movable = True

    def __init__(self, gateway: Gateway, passed: Passed | None = None) -> None:
        super().__init__(gateway)
        self._known_head = gateway.heads.get
        self._reader = HeadReader()
        self._at = 0
        """Where in `_ahead` to go on."""
        self._tail = b""
        """The last bytes of a head that has not ended yet."""
        self._left = 0
        self._dechunker: Dechunker | None = None
        self._pumping = False
        self._full = False
        self._lingered_bytes = 0
        self._unsent_bytes = 0
        self._passed = passed
        """What another worker has read of this connection: it comes before what the socket has."""
        self._passing: tuple[bytes, float] | None = None
        """What goes along with the connection, while it waits to be passed on."""
        self.remote = ""
        self.waited_s = passed.waited_s if passed is not None else 0.0
        """How long its first request has waited in another worker; 0 from then on."""

    def __repr__(self) -> str:
        modes = ("head", "body", "chunks", "reply", "raw", "linger", "closed", "passed on")
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
        passed, self._passed = self._passed, None
        if passed is not None and passed.data:
            self.data_received(passed.data)

    def connection_lost(self, exc: Exception | None) -> None:
        """The caller is gone, or we closed: the exchange is told, the instance is not."""
        self._mode = CLOSED
        self._gateway.disconnected(self)
        sink, self.sink = self.sink, None
        if sink is not None:
            sink.caller_gone()

    def eof_received(self) -> None:
        """The caller sends no more: as a cancelled call looks the same, the call is over."""
        if self._mode == HEAD and self._reader.size:
            self.head = NO_HEAD
            self._junk("the request ends in the middle of its head")
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
        """Work on what came; a head that is known and comes alone goes the short way."""
        if self._mode == HEAD and len(data) <= KEPT_HEAD_BYTES and not self._ahead:
            head = self._known_head(data)
            short = head is not None and head.length == 0 and not self._tail and not self._full
            if head is not None and short and not self._gateway.desk.passing_on:
                self.head = head
                self._keep = head.keep
                self._mode = REPLY
                try:
                    self._gateway.request(self, head, b"", True)
                except Exception:  # as in `_pump`
                    log.exception("connection of %s", self.remote or "unix")
                    self.cut()
                return
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
                elif mode in (REPLY, PASSED):
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
        data, at, reader = self._ahead, self._at, self._reader
        first = not reader.size
        if first:
            while data.startswith(b"\r\n", at):  # RFC 9112, 2.2: left over from a body
                at += 2
            self._at = at
            if at >= len(data):
                return
            self._since = self._gateway.loop.time()
        stop, ended = self._head_stop(data, at)
        piece = data if at == 0 and stop == len(data) else data[at:stop]
        self._at = stop
        known = first and ended and len(piece) <= KEPT_HEAD_BYTES
        head = self._known_head(piece) if known else None
        if head is None:
            try:
                head = reader.feed(piece)
            except BadHead as bad:
                self._keep = False
                self.head = NO_HEAD
                self.refuse(bad.status, bad.code, str(bad))
                return
            if head is None:
                self._tail = (self._tail + piece[-3:])[-3:]
                return
            if known:
                self._gateway.heads.learn(piece, head)
        self._tail = b""
        self._begin(head)

    def _head_stop(self, data: bytes, at: int) -> tuple[int, bool]:
        """Return where the head ends in `data` and True, or the data's end and False."""
        tail = self._tail
        if tail:
            split = (tail + data[at : at + 3]).find(HEAD_END)
            if split >= 0:
                return at + split + 4 - len(tail), True
        end = data.find(HEAD_END, at)
        return (end + 4, True) if end >= 0 else (len(data), False)

    def _begin(self, head: RequestHead) -> None:
        """A whole head is here: set up for its body and pass it on."""
        self.head = head
        self._keep = head.keep
        if self._gateway.desk.passing_on:
            self._mode = PASSED
            self._flow.pause()
            self._passing = (as_sent(head, [], None, False), 0.0)
            self._gateway.pass_on_soon(self)
            return
        if head.length == 0:
            self._mode = REPLY
            self._gateway.request(self, head, b"", True)
            return
        self._awaits_go_ahead = head.expects and self._at >= len(self._ahead)
        if head.length is None:
            self._mode = CHUNKS
            self._dechunker = dechunker = Dechunker()
            try:
                first, self._at = dechunker.feed(self._ahead, self._at)
            except BadChunk as error:
                self._junk(str(error))
                return
            done = dechunker.done
        else:
            first = self._ahead[self._at : self._at + head.length]
            self._at += len(first)
            self._left = head.length - len(first)
            self._mode = BODY
            done = not self._left
        if done:
            self._mode = REPLY
        self._gateway.request(self, head, first, done)

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

    def _next(self) -> None:
        """The reply is out: take the next request, which may be here already."""
        if self._ahead and self._mode in (HEAD, RAW) and not self._pumping:
            self._flow.resume()
            self._pump()

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

    def _give_up_on(self, why: str, status: int = 400, code: str = "BadRequest") -> None:
        """The body is broken: the exchange cannot go on; say why if nothing was said yet."""
        sink, self.sink = self.sink, None
        if sink is not None:
            sink.caller_gone()
        self._keep = False
        if self._replied:
            self.abort()
        else:
            self.refuse(status, code, why)

    # -- the clock

    def check(self, now: float, head_s: float, idle_s: float) -> None:
        """End waits for the caller that took too long."""
        if not self._since:  # a reply went out since the last look
            self._since = now
            self._served = True
        waited_s = now - self._since
        mode = self._mode
        if mode == HEAD:
            if self._reader.size:
                if waited_s > head_s:
                    self._keep = False
                    self.head = NO_HEAD
                    self.refuse(408, "RequestTimeout", f"no whole head within {head_s:g} s")
            elif waited_s > (idle_s if self._served else min(head_s, idle_s)):
                self._close_when_sent(now)
        elif mode in (BODY, CHUNKS):
            limited = self._flow.paused or self.sink is None or self.sink.limited
            if waited_s > idle_s and not limited:
                self._give_up_on(f"the body stopped for {idle_s:g} s", 408, "RequestTimeout")
        elif mode == LINGER:
            if waited_s > LINGER_S:
                self.cut()
        elif mode == CLOSED and waited_s > idle_s:
            self._close_when_sent(now)

    # -- from one worker to the next

    def pass_on(self, passing: socket.socket) -> None:
        """Pass the connection on to the next worker, unless something is under way on it here."""
        if self._transport.is_closing() or self._transport.get_write_buffer_size():
            return
        mode, waited_s = self._mode, 0.0
        data = b""
        if self._passing:
            data, waited_s = self._passing
        elif mode == HEAD and not self._reader.size:
            waited_s = 0.0
        elif mode in (BODY, CHUNKS, REPLY) and self.sink is not None and not self._replied:
            left = self.sink.withdraw()
            if left is None:
                return
            waited_s = left[1]
            dechunker = self._dechunker if self.head.length is None else None
            asked = self.head.expects and not self._awaits_go_ahead
            data = as_sent(self.head, left[0], dechunker, asked)
            self.sink = None
        else:
            return
        data += self._ahead[self._at :]
        self._ahead, self._at = b"", 0
        self._mode = PASSED
        self._flow.pause()
        descriptor = os.dup(self._transport.get_extra_info("socket").fileno())
        try:
            if send(passing, descriptor, data, waited_s):
                self._transport.abort()
            else:
                self._passing = (data, waited_s)
        finally:
            os.close(descriptor)

    def close_if_idle(self) -> None:
        """Close when no request is under way (the gateway drains)."""
        if self._mode == HEAD and not self._reader.size:
            self.close_now()

    def close_now(self) -> None:
        """Close when what was written is out."""
        self._mode = CLOSED
        self._transport.close()

    def _close_when_sent(self, now: float) -> None:
        """Close an idle connection; one whose caller still reads the last reply gets more time."""
        unsent = self._transport.get_write_buffer_size()
        if unsent and unsent != self._unsent_bytes:
            self._unsent_bytes = unsent
            self._since = now
        else:
            self.cut()
