"""HTTP calls: replies pass through as they come, and connections may become something else.

A warm reply whose head is known goes out with a ready-made head and in one go.
"""

from __future__ import annotations

from typing import Final

from agent.contracts.base import CallReport
from agent.contracts.headers import chosen_protocol
from agent.errors import FunctionFailed
from agent.gateway.exchanges.answer import response_too_large
from agent.gateway.exchanges.exchange import NO_METERS, Exchange
from agent.gateway.exchanges.template import reply_template
from agent.gateway.wire.head import ReplyHead
from agent.model.failure import Failure, FailureKind

SAFE: Final = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE"))
"""Methods sent again when a pooled connection was dead (RFC 9110, 9.2.1)."""


class HttpExchange(Exchange):
    """One HTTP call."""

    @property
    def safe(self) -> bool:
        """True if making the request twice is as good as once."""
        upgrade = self.head is not None and self.head.upgrade
        return self.length == 0 and not upgrade and self.call.method in SAFE

    def reply_began(self, head: ReplyHead, body: bytes, ended: bool) -> None:
        """Take the head of the instance's reply and what came of the body with it."""
        caller, conn, lease, callee = self.caller, self.conn, self.lease, self.callee
        if caller is None or conn is None or lease is None:
            self._replied = True
            if ended:
                self._done(head.status)
            return
        cold = lease.cold_start
        if ended and head.kept and cold is None and not self.traced:
            if head.made_for is not callee:
                head.made_for = callee
                head.template = reply_template(callee, head, self.call, self.shared.random)
            ready = head.template
            if ready is not None and caller.ready_reply(ready, self.request_id_bytes, body):
                self._done(head.status)
                return
        if head.keeps_s:
            callee.keeps_s = head.keeps_s
        length = head.length
        limit = callee.response_bytes
        if (length or len(body)) > limit > 0 and self.call.method != b"HEAD":
            self.end(response_too_large(limit))
            return
        report: CallReport = conn.report
        if cold is not None:
            report = CallReport(NO_METERS, cold, b"", conn.instance)
        try:
            passed = callee.http_reply(self.call, head.status, head.headers, report)
        except FunctionFailed as error:
            self.end(error.failure)
            return
        self._mark(passed, report)
        self._replied = True
        self._status = head.status
        self._reply_bytes = len(body)
        if ended:
            self._done(head.status)
            if length is None and self.call.method != b"HEAD":
                length = len(body)
        caller.reply(head.status, passed, length, body, ended)

    def reply_went_on(self, data: bytes, ended: bool) -> None:
        """Take more of the instance's reply."""
        caller = self.caller
        if caller is not None and not self._switched:
            self._reply_bytes += len(data)
            limit = self.callee.response_bytes
            if self._reply_bytes > limit > 0:
                self.end(response_too_large(limit))
                return
        if ended:
            self._done(self._status)
        if caller is not None:
            caller.more(data, ended)

    def switched_protocols(self, head: ReplyHead, data: bytes) -> None:
        """The instance answered 101: from here on bytes pass both ways as they come."""
        caller, conn, lease = self.caller, self.conn, self.lease
        asked = self.head is not None and self.head.upgrade and self.call.kind == "http"
        if not asked or conn is None or lease is None:
            super().switched_protocols(head, data)
            return
        if chosen_protocol(head.headers) != b"websocket":
            message = "it answered 101 with another protocol than websocket, which was asked for"
            self.end(Failure(FailureKind.BAD_RESPONSE, message))
            return
        if caller is None:
            self.end(self.failure or Failure(FailureKind.CLIENT_CANCELLED))
            return
        report = CallReport(NO_METERS, lease.cold_start, b"", conn.instance)
        try:
            passed = self.callee.http_reply(self.call, 101, head.headers, report)
        except FunctionFailed as error:
            self.end(error.failure)
            return
        self._mark(passed, report)
        self._replied = self._switched = True
        self._status = 101
        self.request_done = False
        caller.switch(passed, data)
