"""Event calls: the reply is here whole before any of it is passed on.

The request goes out like any other, but with a known length (collected first when the caller sent
chunks). The reply is buffered up to the contract's limit, because the contract makes the caller's
reply out of all of it.
"""

from __future__ import annotations

import logging
from typing import Final

from agent.contracts.base import CallReport
from agent.errors import FunctionFailed
from agent.gateway.exchanges.answer import response_too_large
from agent.gateway.exchanges.exchange import NO_METERS, Exchange
from agent.gateway.exchanges.stage import COLLECTING, RUNNING
from agent.gateway.wire.head import ReplyHead
from agent.model.failure import Failure, FailureKind

log = logging.getLogger(__name__)

LOG_SETTLE_S: Final = 0.01
"""How much later than its answer a function's last lines may come: the shim copies its output."""


class EventExchange(Exchange):
    """One event call."""

    _reply_head: ReplyHead

    def _begin(self) -> None:
        if self.length is not None:
            self._acquire()
            return
        self.stage = COLLECTING
        if self.request_done:
            self._collected()
            return
        self.shared.waiting.add(self)
        if self.caller is not None:
            self.caller.go_ahead()

    def caller_full(self) -> None:
        """Read on: nothing of this reply has been passed on yet."""

    def reply_began(self, head: ReplyHead, body: bytes, ended: bool) -> None:
        """Take the head and what came of the body; mostly all of it."""
        self._reply_head = head
        if head.keeps_s:
            self.callee.keeps_s = head.keeps_s
        if not self._too_large(head.length or 0):
            self.reply_went_on(body, ended)

    def reply_went_on(self, data: bytes, ended: bool) -> None:
        """Collect the reply; at its end let the contract make its own of it."""
        self._reply_bytes += len(data)
        if self._too_large(self._reply_bytes):
            return
        if not ended:
            if self.caller is not None and not self._hold(data):
                message = "too many large replies are waiting"
                self.end(Failure(FailureKind.NO_CAPACITY, message))
        else:
            body = data if self.buffer is None else b"".join((*self.buffer.take(), data))
            if self.call.want_log_tail:
                self._leave_connection()
                self.shared.loop.call_later(LOG_SETTLE_S, self._log_settled, body)
            else:
                self._convert(body)

    def _log_settled(self, body: bytes) -> None:
        """Go on once the log is there, unless the call has ended meanwhile."""
        if self.stage == RUNNING:
            self._convert(body)

    def _too_large(self, size: int) -> bool:
        limit = self.callee.response_bytes
        if not size > limit > 0:
            return False
        self.end(response_too_large(limit))
        return True

    def _convert(self, body: bytes) -> None:
        """End the call, and let the contract make the caller's reply."""
        caller = self.caller
        head = self._reply_head
        self._done(head.status)  # counted as the function answered
        if caller is None:
            return
        report = self.report or CallReport(NO_METERS)
        try:
            reply = self.callee.contract.event_reply(
                self.call, head.status, head.headers, body, report
            )
        except FunctionFailed as error:
            self._answer_failure(error.failure)
            return
        except Exception:  # a dialect's fault must not leave the caller without an answer
            log.exception("call %s of %s", self.call.request_id, self.callee.target.version.name)
            self._answer_failure(Failure(FailureKind.INTERNAL))
            return
        self.caller = None
        self._deliver(caller, reply)
