"""Connections to instances: HTTP/1.1 as a client, idle or carrying one call at a time.

A connection at rest lies in its instance's list of idle ones and leaves it by itself when the
instance closes it or speaks out of turn. We close it after IDLE_S at rest, never during a call.
Heads that come again are recognised (`head.py`) and bodies of known length counted; the parser sees
the rest. Sockets come from a callable, because they must be made inside the functions' network.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, Protocol, cast

import httptools

from agent.errors import FunctionFailed
from agent.gateway.wire.flow import ReadFlow
from agent.gateway.wire.head import KEPT_HEAD_BYTES, HeadCache, ReplyHead
from agent.gateway.wire.http1 import HEAD_END, Fields
from agent.gateway.wire.last_words import last_words
from agent.gateway.wire.ports import ReplySink
from agent.gateway.wire.reply_rules import keeps_s, unfinished, wrong
from agent.gateway.wire.roundtrip import RoundTrip
from agent.gateway.wire.unread import is_open, was_unread
from agent.model.failure import Failure, FailureKind

IDLE_S: Final = 14 * 60.0
"""The clouds close an idle connection at 15 minutes at the latest; sweeps are a minute apart."""
REFUSALS: Final = 300
"""From here on a reply is none to the request's body, which may stay unread."""

TakeSocket = Callable[[], socket.socket | None]
MakeSocket = Callable[[], Awaitable[socket.socket]]


class IdleList(Protocol):
    """Where connections to one instance lie idle, newest last."""

    def append(self, conn: UpstreamConnection, /) -> None:
        """Take one in."""

    def remove(self, conn: UpstreamConnection, /) -> None:
        """Let one go; raises ValueError when it is not there."""


class CloseNotes(Protocol):
    """Who notes when an instance closes what is at rest."""

    def closed(self, rested_s: float) -> None:
        """Note that it closed one after so long a rest."""


class UpstreamConnection:
    """One connection to one instance: an `asyncio.Protocol`, as in `client.py`."""

    __slots__ = (
        "_at_rest_in",
        "_body",
        "_bytes_came",
        "_complete",
        "_connector",
        "_fin_came",
        "_head",
        "_head_done",
        "_head_told",
        "_informational",
        "_known_head",
        "_left",
        "_loop",
        "_no_body",
        "_parser",
        "_raw",
        "_reusable",
        "_sink",
        "_sock",
        "_transport",
        "closed",
        "flow",
        "full",
        "instance",
        "keeping",
        "report",
        "rested_at",
        "write",
    )

    def __init__(self, connector: UpstreamConnector, sock: socket.socket) -> None:
        # of the connection
        self._connector = connector
        self._sock = sock
        """The transport's; looked at, never closed here."""
        self._known_head = connector.heads.get
        self._loop = connector.loop
        self._transport: asyncio.Transport
        self.flow: ReadFlow
        self._parser: Any = None
        self.closed = False
        """By either side; a closed one may still lie in somebody's list of idle ones."""
        self._at_rest_in: IdleList | None = None
        self._fin_came = False
        self.rested_at = self._loop.time()
        self.full = False
        """True while request bytes should wait."""
        self.write: Callable[[bytes], None]
        self.instance = ""
        self.keeping: CloseNotes | None = None
        """Its instance's, from its first call on."""
        self.report: Any = None
        """What its users say of a call to this instance. Theirs; nothing here looks at it."""
        # of the call
        self._sink: ReplySink | None = None
        self._no_body = False
        self._raw = False
        # of the reply
        self._bytes_came = 0
        self._left = 0
        """Bytes of a counted body still to come; then the parser sees nothing of it."""
        self._head = ReplyHead()
        self._informational = False
        self._head_done = False
        self._head_told = False
        self._body: list[bytes] = []
        self._complete = False
        self._reusable = True

    def __repr__(self) -> str:
        state = "closed" if self.closed else "busy" if self._sink is not None else "idle"
        return f"<UpstreamConnection {self.instance or '?'} {state}>"

    # -- also for hooks and for whoever asks whether an instance is ready

    @property
    def usable(self) -> bool:
        """False once either side has closed it, or while it is in a call."""
        return not self.closed and self._sink is None

    @property
    def silent(self) -> bool:
        """True while nothing of the present reply has come."""
        return not self._bytes_came

    def found_open(self) -> bool:
        """Ask the kernel whether this connection at rest is open and silent."""
        return is_open(self._sock)

    def has_not_read(self, request_bytes: int) -> bool:
        """Say whether the instance surely read nothing of a request; it closed and said nothing."""
        return self._fin_came and was_unread(self._sock, request_bytes)

    @property
    def unsent(self) -> bool:
        """True while some of the request has not gone out."""
        return self._transport.get_write_buffer_size() > 0

    def close(self) -> None:
        """Close it; safe to call twice."""
        if not self.closed:
            self._leave()
            self._transport.close()

    async def roundtrip(
        self, head: bytes, body: bytes, deadline: float
    ) -> tuple[int, Fields, bytes]:
        """Send one request and return status, headers and the whole body (at most 1 MB).

        `deadline` is absolute loop time. Raises FunctionFailed(BAD_RESPONSE) when the connection
        breaks or the answer is no HTTP, TimeoutError past the deadline. The connection is closed
        when it cannot carry another request.
        """
        if not self.usable:
            raise FunctionFailed(Failure(FailureKind.BAD_RESPONSE, "the connection is closed"))
        trip = RoundTrip(self._loop)
        self.begin(trip, head.startswith(b"HEAD "))
        self.write(head + body)
        try:
            async with asyncio.timeout_at(deadline):
                answer = await trip.answer
        except BaseException:
            self.drop()
            raise
        self._after_reply()
        return answer

    # -- for its users

    def begin(self, sink: ReplySink, no_body: bool) -> None:
        """Begin a call; the request is written next. `no_body`: the reply to a HEAD."""
        self._sink = sink
        self._at_rest_in = None
        self._no_body = no_body
        self._bytes_came = 0

    def rest(self, idle: IdleList) -> None:
        """Go idle in its instance's list after a whole reply, or close if that cannot be."""
        if self._head_done or not self._reusable or self.closed or self.flow.paused:
            if not self._after_reply():
                return
        else:  # a known head: nothing to clear
            self._sink = None
            self.rested_at = self._loop.time()
        self._at_rest_in = idle
        idle.append(self)

    def drop(self) -> None:
        """Close at once, in the middle of whatever it was doing."""
        self._sink = None
        if not self.closed:
            self._leave()
            self._transport.abort()

    def _after_reply(self) -> bool:
        self._sink = None
        if self.closed or not self._reusable:
            self.close()
            return False
        if self._head_done:
            self._forget_reply()
        self.rested_at = self._loop.time()
        if self.flow.paused:
            self.flow.resume()
        return True

    def _forget_reply(self) -> None:
        """Make ready for the parser's next reply."""
        self._head = ReplyHead()
        self._head_done = self._head_told = self._complete = False
        if self._no_body:
            self._parser = None  # it waits for a body that will not come

    def _leave(self) -> None:
        self.closed = True
        self._connector.connections.discard(self)
        idle, self._at_rest_in = self._at_rest_in, None
        if idle is not None:
            with suppress(ValueError):  # somebody has taken it out, and found it closed
                idle.remove(self)

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin at rest, in nobody's list yet."""
        self._transport = cast("asyncio.Transport", transport)
        self.write = self._transport.write
        self.flow = ReadFlow(self._transport)
        self._connector.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the sink; a body without a length ends here, if it ended in order."""
        if not self.closed:
            self._leave()
        if exc is not None and self._sink is not None:
            for data in last_words(self._sock):
                self.data_received(data)
                if self._sink is None:  # the reply is whole
                    return
        sink, self._sink = self._sink, None
        if sink is None:
            return
        self._reusable = False
        if self._raw or (self._ends_by_closing() and (exc is None or self._refused())):
            sink.reply_went_on(b"", True)
        else:
            sink.upstream_ended(self._bytes_came > 0, "")

    def _ends_by_closing(self) -> bool:
        return self._head_told and self._head.length is None and not self._head.coding

    def _refused(self) -> bool:
        """Say whether a reset at the reply's end means only that our body was not wanted."""
        return self._head.status >= REFUSALS

    def eof_received(self) -> None:
        """The instance closed: an idle connection is gone for good from this moment."""
        self._fin_came = True
        if self._sink is None and not self.closed:
            if self.keeping is not None:
                self.keeping.closed(self._loop.time() - self.rested_at)
            self.close()

    def pause_writing(self) -> None:
        """The instance reads slowly."""
        self.full = True
        if self._sink is not None:
            self._sink.upstream_full()

    def resume_writing(self) -> None:
        """The instance has caught up."""
        self.full = False
        if self._sink is not None:
            self._sink.upstream_drained()

    def data_received(self, data: bytes) -> None:
        """Take a reply; a head that is known and whose body is counted goes the short way."""
        sink = self._sink
        if sink is None:
            self.close()
            return
        if not self._bytes_came and not self._no_body:
            stop = data.find(HEAD_END, 0, KEPT_HEAD_BYTES) + 4
            head = self._known_head(data[:stop])
            if head is not None:
                body = data[stop:]
                self._bytes_came = stop
                if len(body) == head.length:
                    sink.reply_began(head, body, True)
                else:
                    self._known(sink, head, body)
                return
        self._bytes_came += len(data)
        if self._left:
            self._counted(sink, data)
        elif self._raw:
            sink.reply_went_on(data, False)
        else:
            self._parse(sink, data)

    def _known(self, sink: ReplySink, head: ReplyHead, body: bytes) -> None:
        left = (head.length or 0) - len(body)
        if left > 0:
            self._left = left
            sink.reply_began(head, body, False)
            return
        if left < 0:
            self._reusable = False  # more came than one reply
            body = body[:left]
        sink.reply_began(head, body, True)

    def _counted(self, sink: ReplySink, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            data = data[: self._left]
            self._left = 0
            self._reusable = False
        sink.reply_went_on(data, not self._left)

    def _parse(self, sink: ReplySink, data: bytes) -> None:
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(self)
        broken = ""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._raw = True
            self._reusable = False
            sink.switched_protocols(self._head, data[upgrade.args[0] :])
            return
        except httptools.HttpParserError as error:
            if not self._complete:
                broken = f"the answer is not HTTP: {error}"
            self._reusable = False  # more came than one reply
        broken = broken or self._wrong()
        if broken:
            self._break_off(sink, broken)
            return
        body, ended = self._body, self._complete
        if body:
            self._body = []
        piece = body[0] if len(body) == 1 else b"".join(body)
        if self._head_told:
            if piece or ended:
                sink.reply_went_on(piece, ended)
        elif self._head_done:
            self._head_told = True
            if self._bytes_came == len(data):
                self._learn(data)
            sink.reply_began(self._head, piece, ended)

    def _wrong(self) -> str:
        """Return what makes a reply that is HTTP so far one that cannot pass, if anything."""
        head = self._head
        return wrong(head) if self._head_done else unfinished(head, self._bytes_came)

    def _learn(self, data: bytes) -> None:
        """Offer a head to the cache: it must be alone in front of a body that can be counted."""
        head = self._head
        if head.length is None or not head.keep_alive or self._no_body or head.status in (204, 304):
            return
        stop = data.find(HEAD_END, 0, KEPT_HEAD_BYTES) + 4
        # Not of an informational reply, nor of empty lines before one.
        if stop > 3 and data.startswith(b"HTTP/") and not data.startswith(b"HTTP/1.1 1"):
            self._connector.heads.learn(data[:stop], head)

    def _break_off(self, sink: ReplySink, malformed: str) -> None:
        self.drop()
        sink.upstream_ended(True, malformed)

    # -- httptools: only fields are set here, decisions wait for the end of the read

    def on_message_begin(self) -> None:
        """Note that more begins than the reply asked for."""
        if self._complete:
            self._reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; Content-Length becomes ours to write."""
        if self._head_done:
            return  # a trailer
        size = len(name)
        if size == 14 and name.lower() == b"content-length":
            self._head.length = int(value)
            return
        if size == 17 and name.lower() == b"transfer-encoding":
            self._head.coding += value.strip().lower()
        elif size == 10 and name.lower() == b"keep-alive":
            self._head.keeps_s = keeps_s(value)
        self._head.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is whole; a 1xx is skipped."""
        if self._head_done:
            self._reusable = False  # a second reply to one request
            return
        status = self._parser.get_status_code()
        if 100 <= status < 200 and status != 101:
            self._informational = True
            self._head = ReplyHead()
            return
        head = self._head
        head.status = status
        head.keep_alive = self._reusable = self._parser.should_keep_alive()
        self._head_done = True
        if self._no_body:  # the parser cannot know that
            self._complete = True

    def on_body(self, data: bytes) -> None:
        """Keep a piece of the body until the read has been parsed."""
        if self._complete:
            self._reusable = False
        else:
            self._body.append(data)

    def on_message_complete(self) -> None:
        """The reply is whole."""
        if self._informational:
            self._informational = False
        else:
            self._complete = True


class UpstreamConnector:
    """Makes connections to instances out of sockets made elsewhere.

    `take_socket` gives a fresh non-blocking TCP socket of the functions' network at once, or None;
    then `make_socket` is awaited, if there is one. Made on the running loop.
    """

    def __init__(self, take_socket: TakeSocket, make_socket: MakeSocket | None = None) -> None:
        self._take_socket = take_socket
        self._make_socket = make_socket
        self.heads = HeadCache()
        self.connections: set[UpstreamConnection] = set()
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()

    async def adopt(self, sock: socket.socket) -> UpstreamConnection:
        """Take over a connected, non-blocking socket."""
        conn = UpstreamConnection(self, sock)
        protocol = cast("asyncio.Protocol", conn)
        await self.loop.create_connection(lambda: protocol, sock=sock)
        return conn

    async def open(self, address: str, port: int, deadline: float) -> UpstreamConnection:
        """Connect to an instance until `deadline`, absolute loop time.

        Raises OSError when it refuses, TimeoutError past the deadline.
        """
        sock = self._take_socket()
        if sock is None:
            if self._make_socket is None:
                raise OSError("no socket of the functions' network is at hand")
            async with asyncio.timeout_at(deadline):
                sock = await self._make_socket()
        try:
            async with asyncio.timeout_at(deadline):
                await self.loop.sock_connect(sock, (address, port))
            return await self.adopt(sock)
        except BaseException:
            sock.close()
            raise

    def sweep(self, now: float) -> int:
        """Close what has been at rest for IDLE_S seconds; return how many."""
        self.heads.clear()
        stale = [c for c in self.connections if c.usable and now - c.rested_at > IDLE_S]
        for conn in stale:
            conn.close()
        return len(stale)

    def close(self) -> None:
        """Close every connection."""
        for conn in list(self.connections):
            conn.drop()
