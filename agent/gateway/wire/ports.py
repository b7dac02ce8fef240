"""What connections ask of those above them, and what these may ask of a caller's connection.

A caller's connection (`client.py`) has one `Server`, gives each request's body to a `RequestSink`
and is itself the `Caller` that takes the reply; memory, and doors that wrap replies, stand in for
it. A connection to an instance (`upstream.py`) gives what comes back to a `ReplySink`.
"""

from __future__ import annotations

import asyncio
from typing import Protocol, TypeVar

from agent.gateway.wire.head import HeadTemplate, ReplyHead, RequestHead
from agent.gateway.wire.http1 import Fields
from agent.gateway.wire.plain import PlainHeads

C = TypeVar("C", contravariant=True)
"""A caller's connection, as its server sees it."""


class Caller(Protocol):
    """Where a reply goes. Nothing is called after `ended` or `abort`.

    `leaving`: its connection is on its way to another worker, and its call with it, unless that has
    reached an instance.
    """

    leaving: bool

    def ready_reply(self, head: HeadTemplate, request_id: bytes, body: bytes) -> bool:
        """Take a whole reply with a ready-made head, which says that the connection goes on.

        Returns False, and takes nothing, when it does not go on or heads are wanted as pairs.
        """

    def reply(
        self, status: int, headers: Fields, length: int | None, body: bytes, ended: bool
    ) -> None:
        """Take head and first bytes; `length` is the whole body's, None when unknown."""

    def more(self, data: bytes, ended: bool) -> None:
        """Take further bytes of the body."""

    def abort(self) -> None:
        """Break the reply off so that the caller notices."""

    def switch(self, headers: Fields, data: bytes) -> None:
        """Take a 101 and the first bytes of the other protocol; `more` carries the rest."""

    def go_ahead(self) -> None:
        """Ask for the body, if the caller waits to be asked (100 Continue)."""

    def pause_request(self) -> None:
        """Send no more body for now."""

    def resume_request(self) -> None:
        """Send on."""


class RequestSink(Protocol):
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

    def withdraw(self) -> tuple[list[bytes], float] | None:
        """Give the request up, if it has reached no instance: it goes on in another worker.

        Returns what came of the body and for how long the request has waited, seconds; None when
        it is too late, and then nothing has changed.
        """


class ReplySink(Protocol):
    """Who sent a request to an instance and takes the reply."""

    def reply_began(self, head: ReplyHead, body: bytes, ended: bool) -> None:
        """Take the head and the first bytes."""

    def reply_went_on(self, data: bytes, ended: bool) -> None:
        """Take more."""

    def switched_protocols(self, head: ReplyHead, data: bytes) -> None:
        """Take a 101; from here on `reply_went_on` carries raw bytes."""

    def upstream_ended(self, reply_came: bool, malformed: str) -> None:
        """The connection is gone before the reply was whole; `malformed` came that is no HTTP."""

    def upstream_full(self) -> None:
        """Write no more for now."""

    def upstream_drained(self) -> None:
        """Write on."""


class Server(Protocol[C]):
    """Whom callers' connections belong to, and who decides where their requests go.

    `draining`: no connection goes on behind its present reply.
    """

    loop: asyncio.AbstractEventLoop
    plain_heads: PlainHeads
    draining: bool

    def connected(self, client: C) -> bool:
        """Count a new connection in; False when there are too many."""

    def disconnected(self, client: C) -> None:
        """Forget a closed connection."""

    def request(self, client: C, head: RequestHead, first: bytes, done: bool) -> None:
        """Start what a whole head asks for; `first` is what came of the body, `done` if all."""

    def refuse(self, client: C, status: int, code: str, message: str) -> None:
        """Answer what is no request: the caller's fault, before anything else is known."""

    def turn_away(self, client: C) -> None:
        """Answer a connection that is one too many."""

    def pass_on_soon(self, client: C) -> None:
        """Pass the connection on, as soon as its own work of this turn is done."""
