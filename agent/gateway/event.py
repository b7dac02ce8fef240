"""Calls whose reply is whole before any of it is told: event calls, and calls of jobs.

An event call's request goes out like any other, but with a known length (collected first when the
caller sent chunks), and its reply is buffered up to the contract's limit, because the contract
makes the caller's reply out of all of it. A job call only collects its event; `Target.run_job` does
the rest.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from agent.aio.tasks import spawn
from agent.contracts.base import CallReport
from agent.contracts.failures import from_error
from agent.errors import AgentError, FunctionFailed
from agent.gateway.answer import response_too_large
from agent.gateway.exchange import NO_METERS, Exchange
from agent.gateway.state import COLLECTING, DONE, JOB, RUNNING
from agent.model.failure import Failure, FailureKind

if TYPE_CHECKING:
    from agent.gateway.head import ReplyHead

log = logging.getLogger(__name__)

LOG_SETTLE_S: Final = 0.01
"""How much later than its answer a function's last lines may come: the shim copies its output."""


class EventExchange(Exchange):
    """One event call."""

    _reply_head: ReplyHead
    _pieces_back: list[bytes] | None = None

    def _begin(self) -> None:
        if self.length is not None:
            self._acquire()
            return
        self.stage = COLLECTING
        if self.request_done:
            self._collected()
            return
        self.desk.waiting.add(self)
        if self.caller is not None:
            self.caller.go_ahead()

    def caller_full(self) -> None:
        """Read on: nothing of this reply has been told yet."""

    def reply_began(self, head: ReplyHead, body: bytes, ended: bool) -> None:
        """Take the head and what came of the body; mostly all of it."""
        self._reply_head = head
        if not self._too_large(head.length or 0):
            self.reply_went_on(body, ended)

    def reply_went_on(self, data: bytes, ended: bool) -> None:
        """Collect the reply; at its end let the contract make its own of it."""
        self._reply_bytes += len(data)
        if self._too_large(self._reply_bytes):
            return
        pieces = self._pieces_back
        if not ended:
            if self.caller is not None and not self._hold(data):
                return
        else:
            body = data if not pieces else b"".join((*pieces, data))
            if self.call.want_log_tail:
                self._leave_connection()
                self.desk.loop.call_later(LOG_SETTLE_S, self._settled, body)
            else:
                self._whole(body)

    def _settled(self, body: bytes) -> None:
        """Go on once the log is there, unless the call has ended meanwhile."""
        if self.stage == RUNNING:
            self._whole(body)

    def _hold(self, data: bytes) -> bool:
        if not self.desk.reserve(len(data)):
            self._end(Failure(FailureKind.NO_CAPACITY, "too many large replies are waiting"))
            return False
        self._held_bytes += len(data)
        if self._pieces_back is None:
            self._pieces_back = []
        self._pieces_back.append(data)
        return True

    def _too_large(self, size: int) -> bool:
        limit = self.view.response_bytes
        if not size > limit > 0:
            return False
        self._end(response_too_large(limit))
        return True

    def _whole(self, body: bytes) -> None:
        caller = self.caller
        head = self._reply_head
        self._done(head.status)  # counted as the function answered
        if caller is None:
            return
        report = self.report or CallReport(NO_METERS)
        try:
            reply = self.view.contract.event_reply(
                self.call, head.status, head.headers, body, report
            )
        except FunctionFailed as error:
            self._tell(error.failure)
            return
        except Exception:  # a dialect's fault must not leave the caller without an answer
            log.exception("call %s of %s", self.call.request_id, self.view.target.version.name)
            self._tell(Failure(FailureKind.INTERNAL))
            return
        self.caller = None
        self._deliver(caller, reply)


class JobExchange(Exchange):
    """One call of a job: no lease, no connection; a task waits for the job's start or end."""

    def _begin(self) -> None:
        self.stage = COLLECTING
        self.desk.waiting.add(self)
        if self.request_done:
            self._collected()
        elif self.caller is not None:
            self.caller.go_ahead()

    def _collected(self) -> None:
        self.stage = JOB
        _ = spawn(f"job call {self.call.request_id}", self._run())

    async def _run(self) -> None:
        event = b"".join(self.pieces or ())
        failure = Failure(FailureKind.INTERNAL)
        try:
            reply, self.job_report = await self.view.target.run_job(self.call, event)
        except AgentError as error:
            failure = from_error(error)
        else:
            if self.stage != DONE:
                caller = self.caller
                self.view.counters.cold_starts += self.job_report.cold_start is not None
                self._done(reply.status)
                self.caller = None
                if caller is not None:
                    self._deliver(caller, reply)
        finally:
            if self.stage != DONE:
                self._end(failure)
