"""One small request of our own to an instance, and its whole answer: how hooks are made.

`UpstreamConnection.roundtrip` puts one of these where an exchange would be.
"""

from __future__ import annotations

import asyncio
from typing import Final

from agent.errors import FunctionFailed
from agent.gateway.wire.head import ReplyHead
from agent.gateway.wire.http1 import Fields
from agent.model.failure import Failure, FailureKind

HOOK_REPLY_BYTES: Final = 1 << 20
"""More than any hook has to say."""


class RoundTrip:
    """Reads one whole small reply into a future."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.answer: asyncio.Future[tuple[int, Fields, bytes]] = loop.create_future()
        self._head = ReplyHead()
        self._body: list[bytes] = []
        self._size = 0

    def reply_began(self, head: ReplyHead, body: bytes, ended: bool) -> None:
        """Keep the head and go on."""
        self._head = head
        self.reply_went_on(body, ended)

    def reply_went_on(self, data: bytes, ended: bool) -> None:
        """Collect the body; the future is set at its end."""
        self._size += len(data)
        self._body.append(data)
        if self._size > HOOK_REPLY_BYTES:
            self._fail(f"the answer is larger than {HOOK_REPLY_BYTES} bytes")
        elif ended and not self.answer.done():
            head = self._head
            self.answer.set_result((head.status, head.headers, b"".join(self._body)))

    def switched_protocols(self, head: ReplyHead, data: bytes) -> None:
        """Nobody asked for it."""
        self._fail("it answered 101, which nobody asked for")

    def upstream_ended(self, reply_came: bool, malformed: str) -> None:
        """The connection is gone."""
        self._fail(malformed or "the connection ended before the answer did")

    def upstream_full(self) -> None:
        """Nothing: a hook's request is small."""

    def upstream_drained(self) -> None:
        """Nothing: a hook's request is small."""

    def _fail(self, message: str) -> None:
        if not self.answer.done():
            self.answer.set_exception(FunctionFailed(Failure(FailureKind.BAD_RESPONSE, message)))
