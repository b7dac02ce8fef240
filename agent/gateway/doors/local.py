"""Calls made in memory, for the scheduler's Invoke: the same exchange, without a socket.

`LocalCaller` collects the reply. It is bounded by the contract's own limit for event calls; an HTTP
reply that streams for ever is cut at LOCAL_REPLY_BYTES. `Gateway.call` is the way in.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final

from agent.contracts.base import CallReport, Headers
from agent.gateway.exchanges.exchange import Exchange
from agent.gateway.wire.head import HeadTemplate
from agent.model.failure import Failure, FailureKind
from agent.model.records import ColdStart

LOCAL_REPLY_BYTES: Final = 64 << 20
"""Twice the largest contract's limit."""


@dataclass(frozen=True, slots=True)
class LocalResult:
    """A call's reply and what is known of it. `failure` is set when the platform answered."""

    status: int
    headers: Headers
    body: bytes
    request_id: str
    cold_start: ColdStart | None = None
    report: CallReport | None = None
    failure: Failure | None = field(default=None)


class LocalCaller:
    """Collects one reply in memory."""

    leaving = False

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._ended: asyncio.Future[None] = loop.create_future()
        self._exchange: Exchange | None = None
        self._status = 0
        self._headers: Headers = []
        self._pieces: list[bytes] = []
        self._size = 0
        self._broken: Failure | None = None

    async def result_of(self, exchange: Exchange) -> LocalResult:
        """Start the exchange and wait for its end."""
        self._exchange = exchange
        exchange.start()
        try:
            await self._ended
        except asyncio.CancelledError:
            exchange.caller_gone()
            raise
        report = exchange.report
        return LocalResult(
            self._status,
            self._headers,
            b"".join(self._pieces),
            exchange.call.request_id,
            report.cold_start if report is not None else None,
            report,
            exchange.failure or self._broken,
        )

    # -- Caller

    def ready_reply(self, head: HeadTemplate, request_id: bytes, body: bytes) -> bool:
        """Say no: heads are wanted as pairs here."""
        return False

    def reply(
        self, status: int, headers: Headers, length: int | None, body: bytes, ended: bool
    ) -> None:
        """Keep head and first bytes."""
        self._status = status
        self._headers = headers
        self.more(body, ended)

    def more(self, data: bytes, ended: bool) -> None:
        """Keep more."""
        self._size += len(data)
        self._pieces.append(data)
        if ended:
            self._end()
        elif self._size > LOCAL_REPLY_BYTES and self._exchange is not None:
            self._broken = Failure(FailureKind.RESPONSE_TOO_LARGE, limit=LOCAL_REPLY_BYTES)
            self._exchange.caller_gone()
            self._end()

    def abort(self) -> None:
        """The reply broke off: what came is kept, the failure says why."""
        self._broken = Failure(FailureKind.BAD_RESPONSE, "the reply broke off")
        self._end()

    def switch(self, headers: Headers, data: bytes) -> None:
        """Never comes: a call in memory asks for no upgrade."""

    def go_ahead(self) -> None:
        """Nothing: the body is here."""

    def pause_request(self) -> None:
        """Nothing: the body is here."""

    def resume_request(self) -> None:
        """Nothing: the body is here."""

    def _end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)
