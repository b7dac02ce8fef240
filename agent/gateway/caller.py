"""The two sides of the border between a caller's connection and what serves its request.

`Caller` is where a reply goes, `Sink` is what takes a request's body. A connection (`client.py`) is
a caller; an exchange (`exchange.py`) is a sink; memory (`local.py`) and doors that wrap replies
(`envelope.py`) stand in for either.
"""

from __future__ import annotations

from typing import Protocol

from agent.contracts.base import Headers
from agent.gateway.template import HeadTemplate


class Caller(Protocol):
    """Where a reply goes. Nothing is called after `ended` or `abort`.

    `movable`: its connection can be passed on to another worker before anything was replied.
    """

    movable: bool

    def whole(self, head: HeadTemplate, request_id: bytes, body: bytes) -> bool:
        """Take a whole reply with a ready-made head, which says that the connection goes on.

        Returns False, and takes nothing, when it does not go on or heads are wanted as pairs.
        """

    def reply(
        self, status: int, headers: Headers, length: int | None, body: bytes, ended: bool
    ) -> None:
        """Take head and first bytes; `length` is the whole body's, None when unknown."""

    def more(self, data: bytes, ended: bool) -> None:
        """Take further bytes of the body."""

    def abort(self) -> None:
        """Break the reply off so that the caller notices."""

    def switch(self, headers: Headers, data: bytes) -> None:
        """Take a 101 and the first bytes of the other protocol; `more` carries the rest."""

    def go_ahead(self) -> None:
        """Ask for the body, if the caller waits to be asked (100 Continue)."""

    def pause_request(self) -> None:
        """Send no more body for now."""

    def resume_request(self) -> None:
        """Send on."""


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

    def withdraw(self) -> tuple[list[bytes], float] | None:
        """Give the request up, if it has reached no instance: it goes on in another worker.

        Returns what came of the body and for how long the request has waited, seconds; None when
        it is too late, and then nothing has changed.
        """
