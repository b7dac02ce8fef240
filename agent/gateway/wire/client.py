"""One caller's connection: HTTP/1.0 and 1.1 as a server.

One request is worked on at a time: its body goes to the `RequestSink` that its server has chosen,
and the connection is the `Caller` of that. It frames replies for the caller's HTTP version, decides
whether it goes on afterwards, and closes so that what was written is read. While a request is under
way nothing behind it is read. What a request says is `requests.py`'s.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Final, cast

from agent.gateway.wire.closing import Closing
from agent.gateway.wire.date import framed_head
from agent.gateway.wire.dechunk import BadChunk
from agent.gateway.wire.flow import ReadFlow
from agent.gateway.wire.head import BadHead, HeadTemplate, RequestHead
from agent.gateway.wire.http1 import (
    CONTINUE,
    JOIN_BYTES,
    LAST_CHUNK,
    Fields,
    chunk,
    reply_head,
)
from agent.gateway.wire.mode import BODY, CLOSED, HEAD, LINGER, PASSED, RAW, REPLY
from agent.gateway.wire.passing import Passed, as_sent, send
from agent.gateway.wire.ports import RequestSink, Server
from agent.gateway.wire.requests import RequestStream

log = logging.getLogger(__name__)

PIPELINED_AT_ONCE: Final = 16
"""Requests of one connection served in one turn of the loop."""


NO_HEAD: Final = RequestHead()
"""Stands for what is no request: the answer has a body, whatever was asked before."""


class ClientConnection:
    """One connection of a caller: an `asyncio.Protocol`, but none of Python's classes below it."""

    __slots__ = (
        "_awaits_go_ahead",
        "_chunked_reply",
        "_closing",
        "_flow",
        "_full",
        "_keep_alive",
        "_mode",
        "_passed",
        "_passing",
        "_plain",
        "_pumping",
        "_replied",
        "_requests",
        "_served",
        "_server",
        "_since",
        "_transport",
        "head",
        "leaving",
        "remote",
        "sink",
        "waited_s",
    )

    def __init__(self, server: Server[ClientConnection], passed: Passed | None = None) -> None:
        # of the connection
        self._server = server
        self._plain = server.plain_heads
        self._requests = RequestStream(server.plain_heads)
        self._transport: asyncio.Transport
        self._flow: ReadFlow
        self._closing: Closing
        self._mode = HEAD
        self._full = False
        """True while the caller reads slowly."""
        self._pumping = False
        self._served = False
        self._since = server.loop.time()
        """When the present wait for the caller began; 0 at a reply's end. Read by `check` only."""
        self.remote = ""
        # on its way from and to other workers
        self._passed = passed
        """What another worker has read of it: it comes before what the socket has."""
        self._passing: tuple[bytes, float] | None = None
        """What goes along with it, while it waits to be passed on."""
        self.leaving = False
        """True once it is to be passed on at the next occasion."""
        self.waited_s = passed.waited_s if passed is not None else 0.0
        """How long its first request has waited in another worker; 0 from then on."""
        # of the request
        self.head: RequestHead = NO_HEAD
        self.sink: RequestSink | None = None
        self._keep_alive = True
        self._awaits_go_ahead = False
        # of the reply
        self._replied = False
        self._chunked_reply = False

    def __repr__(self) -> str:
        modes = ("head", "body", "reply", "raw", "linger", "closed", "passed on")
        return f"<ClientConnection {self.remote or 'unix'} {modes[self._mode]} {self.sink!r}>"

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection in, or turn it away when there are too many."""
        self._transport = cast("asyncio.Transport", transport)
        self._flow = ReadFlow(self._transport)
        self._closing = Closing(self._transport)
        peer = transport.get_extra_info("peername")
        self.remote = peer[0] if isinstance(peer, tuple) else ""
        if not self._server.connected(self):
            self._keep_alive = False
            self._server.turn_away(self)
        passed, self._passed = self._passed, None
        if passed is not None and passed.data:
            self.data_received(passed.data)

    def connection_lost(self, exc: Exception | None) -> None:
        """The caller is gone, or we closed: the call is told, the instance is not."""
        self._mode = CLOSED
        self._server.disconnected(self)
        sink, self.sink = self.sink, None
        if sink is not None:
            sink.caller_gone()

    def eof_received(self) -> bool:
        """The caller sends no more: as a cancelled call looks the same, the call is over."""
        if self._mode == HEAD and self._requests.tail:
            self.head = NO_HEAD
            self._refuse_junk("the request ends in the middle of its head")
        elif self._mode == RAW and self.sink is not None:
            self.sink.request_body(b"", True)
        return self._mode == BODY and self._replied  # it stops, and reads an early reply on

    def pause_writing(self) -> None:
        """The caller reads slowly: its call reads no more, no next request is begun."""
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
        """Work on what came; a plain head that comes alone goes the short way."""
        requests = self._requests
        if self._mode == HEAD and not (requests.ahead or requests.tail or self._full):
            same = data == self.head.raw  # differs in its first bytes, or was read already
            head = self.head if same else self._plain.read(data)
            if head is not None:
                try:
                    self._begin(head)
                except Exception:  # as in `_pump`
                    log.exception("connection of %s", self.remote or "unix")
                    self.cut()
                return
        if requests.ahead:
            requests.add(data)
        else:
            requests.ahead = data
        if not self._pumping:
            self._pump()

    def _pump(self) -> None:
        """Work on what has come until it is used up or has to wait."""
        self._pumping = True
        requests = self._requests
        turns = 0
        try:
            while requests.ahead:
                mode = self._mode
                if mode == HEAD:
                    turns += 1
                    if self._full or turns > PIPELINED_AT_ONCE:
                        self._flow.pause()
                        if not self._full:
                            self._server.loop.call_soon(self._next)
                        return
                    self._read_head()
                elif mode in (REPLY, PASSED):
                    self._flow.pause()
                    return
                elif mode == BODY:
                    self._read_body()
                else:
                    self._read_other(mode)
        except Exception:  # the top of the data path: one broken call must not break others
            log.exception("connection of %s", self.remote or "unix")
            self.cut()
        finally:
            self._pumping = False

    def _next(self) -> None:
        """Work on what is here, now that nothing is in its way any more."""
        if self._requests.ahead and self._mode in (HEAD, RAW) and not self._pumping:
            self._flow.resume()
            self._pump()

    # -- the request

    def _read_head(self) -> None:
        """Read on in a head; once it is whole, set up for its body and pass it on."""
        requests = self._requests
        begins = not requests.tail
        try:
            head = requests.read_head()
        except BadHead as bad:
            self._keep_alive = False
            self.head = NO_HEAD
            self._server.refuse(self, bad.status, bad.code, str(bad))
            return
        if begins and (head is not None or requests.tail):
            self._since = self._server.loop.time()
        if head is not None:
            self._begin(head)

    def _begin(self, head: RequestHead) -> None:
        """Set up for the body behind a whole head, and pass both on."""
        requests = self._requests
        self.head = head
        self._keep_alive = head.keep_alive
        if self.leaving:
            self._mode = PASSED
            self._flow.pause()
            self._passing = (as_sent(head, [], None, False), 0.0)
            self._server.pass_on_soon(self)
            return
        if head.length == 0:
            self._mode = REPLY
            self._server.request(self, head, b"", True)
            return
        self._since = self._server.loop.time()
        self._awaits_go_ahead = head.expects and not requests.ahead
        self._mode = BODY
        try:
            first, done = requests.begin_body(head.length)
        except BadChunk as error:
            self._refuse_junk(str(error))
            return
        if done:
            self._mode = REPLY
        self._server.request(self, head, first, done)

    def _read_body(self) -> None:
        self._since = self._server.loop.time()
        try:
            piece, ended = self._requests.read_body()
        except BadChunk as error:
            self._give_up_on(str(error))
            return
        if ended:
            self._mode = REPLY
            self._flow.resume()
        if self.sink is not None and (piece or ended):
            self.sink.request_body(piece, ended)

    def _read_other(self, mode: int) -> None:
        """Pass on what is no HTTP any more, or drop what nobody reads."""
        self._since = self._server.loop.time()
        data = self._requests.take()
        if mode == RAW and self.sink is not None:
            self.sink.request_body(data, False)
        elif mode == LINGER and self._closing.sends_too_much(len(data)):
            self._flow.pause()  # until `check` cuts it: the caller has time to read

    def _refuse_junk(self, message: str) -> None:
        """What came is no request: say so and read nothing more."""
        self._keep_alive = False
        if self._mode not in (HEAD, REPLY):
            self._mode = LINGER
        self._server.refuse(self, 400, "BadRequest", message)

    def _give_up_on(self, message: str, status: int = 400, code: str = "BadRequest") -> None:
        """The body is broken: the call cannot go on; say why if nothing was said yet."""
        sink, self.sink = self.sink, None
        if sink is not None:
            sink.caller_gone()
        self._keep_alive = False
        if self._replied:
            self.abort()
        else:
            self._server.refuse(self, status, code, message)

    # -- Caller

    def ready_reply(self, head: HeadTemplate, request_id: bytes, body: bytes) -> bool:
        """Write a whole reply, unless its ready-made head does not fit; then return False."""
        server = self._server
        if not self._keep_alive or self._mode != REPLY or self.head.old or server.draining:
            return False
        self.sink = None
        self._mode = HEAD
        self._since = 0.0
        if len(body) <= JOIN_BYTES:
            self._transport.write(head(request_id) + body)
        else:
            self._transport.writelines((head(request_id), body))
        if self._requests.ahead:  # later: the call that ends has not given its connection back yet
            server.loop.call_soon(self._next)
        return True

    def reply(
        self, status: int, headers: Fields, length: int | None, body: bytes, ended: bool
    ) -> None:
        """Write head and first bytes in one go."""
        self._replied = True
        bodyless = status in (204, 304) or self.head.method == b"HEAD"
        if self._keep_alive and (self._mode != REPLY or self._server.draining):
            self._keep_alive = False
        if length is None and not bodyless:
            if self.head.old:
                self._keep_alive = False
            else:
                self._chunked_reply = True
        keep, old = self._keep_alive, self.head.old
        head = framed_head(status, headers, length, self._chunked_reply, keep, old)
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
        if self._mode == REPLY and self._keep_alive:
            self._mode = HEAD
            self._replied = False
            self._since = 0.0
            self._next()
        elif self._mode in (REPLY, RAW):
            self.close_now()
        elif self._mode != CLOSED:
            self._linger()

    def _linger(self) -> None:
        """Close our side, and read what still comes: the caller may not have read the reply yet."""
        self._mode = LINGER
        self._since = self._server.loop.time()
        self._flow.resume()
        self._closing.close_ours(self._since)

    def abort(self) -> None:
        """Break the reply off: chunks stay open, a length is not reached, or the peer is reset."""
        self.sink = None
        if self._mode == BODY and not self.head.old:
            self._linger()  # what came of the reply is to be read
        else:
            self._mode = CLOSED
            self._closing.break_off(old=self.head.old)

    def switch(self, headers: Fields, data: bytes) -> None:
        """Write the 101; from here on bytes pass as they are."""
        self._mode = RAW
        self._keep_alive = False
        self._replied = True
        self._transport.write(reply_head(101, headers) + data)
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

    # -- the clock

    def check(self, now: float, head_s: float, idle_s: float) -> None:
        """End waits for the caller that took too long."""
        if not self._since:  # a reply went out since the last look
            self._since = now
            self._served = True
        waited_s = now - self._since
        mode = self._mode
        if mode == HEAD:
            if self._requests.tail:
                if waited_s > head_s:
                    self._keep_alive = False
                    self.head = NO_HEAD
                    message = f"no whole head within {head_s:g} s"
                    self._server.refuse(self, 408, "RequestTimeout", message)
            elif waited_s > (idle_s if self._served else min(head_s, idle_s)):
                self._close_when_sent(now)
        elif mode == BODY:
            limited = self._flow.paused or self.sink is None or self.sink.limited
            if waited_s > idle_s and not limited:
                self._give_up_on(f"the body stopped for {idle_s:g} s", 408, "RequestTimeout")
        elif mode == LINGER:
            if self._closing.lingers_too_long(now, waited_s):
                self._close_when_sent(now)
        elif mode == CLOSED and waited_s > idle_s:
            self._close_when_sent(now)

    # -- to the next worker

    def pass_on(self, passing: socket.socket) -> None:
        """Pass the connection on, unless something is under way on it here."""
        if self._transport.is_closing() or self._transport.get_write_buffer_size():
            return
        read = self._passing or self._withdraw()
        if read is None:
            return
        data, waited_s = read[0] + self._requests.take(), read[1]
        self._mode = PASSED
        self._flow.pause()
        if send(passing, self._transport.get_extra_info("socket"), data, waited_s):
            self._transport.abort()
        else:
            self._passing = (data, waited_s)

    def _withdraw(self) -> tuple[bytes, float] | None:
        """Return what was read of a request that goes on elsewhere, and how long it has waited.

        None when its call cannot be given up any more, or the connection is of no use elsewhere.
        """
        if self._mode == HEAD and not self._requests.tail:
            return b"", 0.0
        if self._mode not in (BODY, REPLY) or self.sink is None or self._replied:
            return None
        left = self.sink.withdraw()
        if left is None:
            return None
        self.sink = None
        chunks = self._requests.chunks if self.head.length is None else None
        asked = self.head.expects and not self._awaits_go_ahead
        return as_sent(self.head, left[0], chunks, asked), left[1]

    # -- the end

    def close_if_idle(self) -> None:
        """Close when no request is under way (the gateway drains)."""
        if self._mode == HEAD and not self._requests.tail:
            self.close_now()

    def close_now(self) -> None:
        """Close when what was written is out."""
        self._mode = CLOSED
        self._transport.close()

    def cut(self) -> None:
        """Close at once, whatever was not sent yet."""
        self._mode = CLOSED
        self._transport.abort()

    def _close_when_sent(self, now: float) -> None:
        """Close an idle connection; one whose caller still reads the last reply gets more time."""
        if self._closing.is_read():
            self._since = now
        else:
            self.cut()
