"""One call, from the caller's head to the last byte of the reply.

An exchange stands between a `Caller` and one `UpstreamConnection`. It is driven by callbacks of
both and by the desk's clock and never awaits; connecting, and asking why an exchange broke, are
background tasks made only then. Whatever happens, a lease is released exactly once, in `_settle`.
Replies pass through as they come; event calls and jobs, whose replies are whole, are in `event.py`.
Its fields and stages are in `state.py`.
"""

from __future__ import annotations

import logging
from time import perf_counter
from typing import TYPE_CHECKING, Final

from agent.aio.tasks import spawn
from agent.contracts.base import CallReport, Headers, Reply
from agent.contracts.failures import from_error
from agent.errors import AgentError, FunctionFailed
from agent.gateway.answer import failure_reply, mark, response_too_large, server_timing
from agent.gateway.connecting import Connecting
from agent.gateway.state import (
    COLLECTING,
    DONE,
    EXPLAINING,
    QUEUED,
    RUNNING,
)
from agent.gateway.template import first_request, reply_template
from agent.gateway.wire import LAST_CHUNK, chunk
from agent.model.failure import Failure, FailureKind
from agent.model.records import Meters

if TYPE_CHECKING:
    from agent.calls.ports import Lease
    from agent.gateway.caller import Caller
    from agent.gateway.head import ReplyHead
    from agent.gateway.upstream import UpstreamConnection

log = logging.getLogger(__name__)

WAITING_BODY_BYTES: Final = 65536
"""Of a body that streams, kept while its call waits for an instance; then the caller is paused."""
NO_METERS: Final = Meters()


class Exchange(Connecting):
    """One HTTP call. The caller's side fills in what it knows, then calls `start`."""

    # -- from the caller

    def start(self) -> None:
        """Begin: check the size, then ask for an instance."""
        view = self.view
        view.counters.inflight += 1
        if self.length != 0 and (self.length or self.body_bytes) > view.request_bytes > 0:
            self._end(Failure(FailureKind.REQUEST_TOO_LARGE, limit=view.request_bytes))
        else:
            self._begin()

    def request_body(self, data: bytes, ended: bool) -> None:
        """Take further bytes of the request's body, in order; `ended` comes exactly once."""
        if self.stage == DONE or self.caller is None:
            return
        self.body_bytes += len(data)
        limit = self.view.request_bytes
        if self.body_bytes > limit > 0 and not self._switched:
            self._give_up(Failure(FailureKind.REQUEST_TOO_LARGE, limit=limit))
            return
        self.request_done = ended
        if self.stage == RUNNING:
            self._forward(data, ended)
        else:
            self._keep(data)
            if ended and self.stage == COLLECTING:
                self._collected()

    def caller_gone(self) -> None:
        """The caller closed its connection: nobody waits for the answer any more."""
        if self.caller is None or self.stage == DONE:
            return
        self.caller = None
        if self.stage in (QUEUED, COLLECTING):
            self._give_up(Failure(FailureKind.CLIENT_CANCELLED))
        elif self.stage == RUNNING:
            self._gone_while_running()
        # CONNECTING, EXPLAINING and JOB end by themselves soon, and find nobody to answer.

    def caller_full(self) -> None:
        """The caller reads slowly: read no more of the reply."""
        if self.conn is not None:
            self.conn.flow.pause()

    def caller_drained(self) -> None:
        """The caller has caught up."""
        if self.conn is not None:
            self.conn.flow.resume()

    def withdraw(self) -> tuple[list[bytes], float] | None:
        """Give the call up if it has reached no instance: it is made anew in another worker."""
        if self.stage not in (QUEUED, COLLECTING) or self.caller is None:
            return None
        if self.stage == QUEUED:
            self.view.target.abandon(self)
        self.caller = None
        self._settle(None)
        self.view.counters.inflight -= 1
        return self.pieces or [], self.waited_s + perf_counter() - self._started_at

    # -- from the target (ports.Waiter)

    def granted(self, lease: Lease) -> None:
        """Use the lease: a pooled connection at once, or a new one."""
        self.lease = lease
        view, desk, endpoint = self.view, self.desk, lease.endpoint
        self.call.instance = endpoint.id
        if desk.waiting:
            desk.waiting.discard(self)
        self.deadline = desk.time() + view.call_s
        self.line[self] = None
        if self.traced:
            self._granted_at = perf_counter()
        try:
            # Every connection here came from our own connector: `ports` knows no HTTP.
            idle: list[UpstreamConnection] = endpoint.idle  # type: ignore[assignment]
            while idle:
                conn = idle.pop()
                if not conn.closed:
                    self._reused = True
                    self._send(conn)
                    return
            self._connect()
        except Exception:  # called from inside the pool, which must not see our faults
            log.exception("call %s of %s", self.call.request_id, view.target.version.name)
            self._end(Failure(FailureKind.INTERNAL))

    def refused(self, failure: Failure) -> None:
        """There is no instance for this call."""
        if self.stage != DONE:
            self._end(failure)

    # -- from the instance

    def reply_began(self, head: ReplyHead, body: bytes, ended: bool) -> None:
        """Take the head of the instance's reply and what came of the body with it."""
        caller, conn, lease, view = self.caller, self.conn, self.lease, self.view
        if caller is None or conn is None or lease is None:
            self._replied = True
            if ended:
                self._done(head.status)
            return
        cold = lease.cold_start
        if ended and head.kept and cold is None and not self.traced:
            if head.view is not view:
                head.view = view
                head.template = reply_template(view, head, self.call, self.desk.random)
            ready = head.template
            if ready is not None and caller.whole(ready, self.identity, body):
                self._done(head.status)
                return
        length = head.length
        limit = view.response_bytes
        if (length or len(body)) > limit > 0 and self.call.method != b"HEAD":
            self._end(response_too_large(limit))
            return
        report = conn.report if cold is None else CallReport(NO_METERS, cold, b"", conn.instance)
        try:
            passed = view.http_reply(self.call, head.status, head.headers, report)
        except FunctionFailed as error:
            self._end(error.failure)
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
            limit = self.view.response_bytes
            if self._reply_bytes > limit > 0:
                self._end(response_too_large(limit))
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
            self._end(Failure(FailureKind.BAD_RESPONSE, "it answered 101, which nobody asked for"))
            return
        if caller is None:
            self._end(self.failure or Failure(FailureKind.CLIENT_CANCELLED))
            return
        report = CallReport(NO_METERS, lease.cold_start, b"", conn.instance)
        try:
            passed = self.view.http_reply(self.call, 101, head.headers, report)
        except FunctionFailed as error:
            self._end(error.failure)
            return
        self._mark(passed, report)
        self._replied = self._switched = True
        self._status = 101
        self.request_done = False
        caller.switch(passed, data)

    def upstream_ended(self, reply_came: bool, nonsense: str) -> None:
        """The connection ended before the reply did; `nonsense` says what came that is no HTTP."""
        self.conn = None
        if self._switched:
            self._end(None)
        elif nonsense:
            self._end(Failure(FailureKind.BAD_RESPONSE, nonsense), recycle=self.view.single)
        elif not reply_came and self.repeatable:
            self._retried = True
            self.desk.counters.upstream_retries += 1
            self._connect()
        else:
            self._explain()

    def upstream_full(self) -> None:
        """The instance reads slowly: ask the caller to wait with the body."""
        if self.caller is not None:
            self.caller.pause_request()

    def upstream_drained(self) -> None:
        """The instance has caught up."""
        if self.caller is not None:
            self.caller.resume_request()

    # -- from the clock

    def expired(self) -> None:
        """The time limit has passed: answer, and end it unless others run beside it."""
        if self.failure is not None and self.failure.kind is FailureKind.TIMEOUT:
            self._end(self.failure)  # a zombie whose time is over
            return
        limit_s = self.view.call_s
        failure = Failure(FailureKind.TIMEOUT, waited_s=limit_s, limit=limit_s)
        alone = self.view.single
        if alone or self.stage != RUNNING or not self.request_done or self.conn is None:
            self._end(failure, recycle=alone)
            return
        self.failure = failure
        self._tell(failure)
        self.conn.flow.resume()
        self.line.pop(self, None)
        self.desk.watch_zombie(self)

    def cut(self) -> None:
        """End it now, because the gateway closes."""
        if self.stage != DONE:
            self._give_up(Failure(FailureKind.DRAINING, "the node is shutting down"))

    # -- the request

    def _collected(self) -> None:
        self.length = self.body_bytes
        self._acquire()

    def _acquire(self) -> None:
        self.stage = QUEUED
        if self.desk.passing_on and self.caller is not None and self.caller.movable:
            self.desk.waiting.add(self)  # until its connection is passed on
            return
        try:
            lease = self.view.acquire(self)
        except AgentError as error:
            self._end(from_error(error))
            return
        if lease is not None:
            self.granted(lease)
        elif self.stage == QUEUED:
            self.desk.waiting.add(self)

    _begin = _acquire

    def _keep(self, data: bytes) -> None:
        """Hold body bytes back until there is a connection for them."""
        if not data:
            return
        if not self.desk.reserve(len(data)):
            self._give_up(Failure(FailureKind.NO_CAPACITY, "too many large requests are waiting"))
            return
        self._held_bytes += len(data)
        if self.pieces is None:
            self.pieces = []
        self.pieces.append(data)
        if self.stage != COLLECTING and self.body_bytes > WAITING_BODY_BYTES:
            self.upstream_full()

    def _send(self, conn: UpstreamConnection) -> None:
        """Write the head and what there is of the body in one go."""
        call, length, head = self.call, self.length, self.head
        self.conn = conn
        self.stage = RUNNING
        if head is None or not head.kept or head.view is not self.view or head.length != length:
            data = self.view.request_head(call, length)
        else:
            made = head.templates.get(call.remote)
            if made is not None:
                data = made(self.identity)
            else:
                data = first_request(self.view, head, call, self.desk.random)
        conn.begin(self, call.instance, call.method == b"HEAD" and call.kind == "http")
        if length == 0:
            conn.write(data)
        else:
            self._send_with_body(conn, data)

    def _send_with_body(self, conn: UpstreamConnection, data: bytes) -> None:
        length = self.length
        if self.pieces is not None:
            body = self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)
            self.pieces = None
            data += body if length is not None else chunk(body)
        if self.request_done:
            conn.write(data if length is not None else data + LAST_CHUNK)
            return
        conn.write(data)
        if self.caller is not None:
            self.caller.go_ahead()
            if not conn.full:
                self.caller.resume_request()

    def _forward(self, data: bytes, ended: bool) -> None:
        conn = self.conn
        if conn is None:
            return
        if self._switched:
            conn.write(data)
            if ended:
                self._end(None)
        elif self.length is not None:
            conn.write(data)
        else:
            if data:
                conn.write(chunk(data))
            if ended:
                conn.write(LAST_CHUNK)

    # -- the end

    def _gone_while_running(self) -> None:
        gone = Failure(FailureKind.CLIENT_CANCELLED)
        policy = self.view.cancel
        if policy != "keep" or not self.request_done or self._switched or self.conn is None:
            self._end(gone, recycle=policy == "recycle")
        else:
            self.failure = gone
            self.conn.flow.resume()

    def _explain(self) -> None:
        """Find out why it broke. What was answered already is broken off at once."""
        self.stage = EXPLAINING
        if self._replied:
            self._break_off()
        _ = spawn(f"explain {self.call.instance}", self._ask_why())

    async def _ask_why(self) -> None:
        lease = self.lease
        if lease is None or self.stage != EXPLAINING:
            return
        failure = Failure(FailureKind.INTERNAL)
        try:
            waited_s = perf_counter() - self._started_at
            failure = await self.view.target.explain(lease, waited_s)
        finally:
            if self.stage == EXPLAINING:
                self._end(self.failure or failure, recycle=self.view.single)

    def _done(self, status: int) -> None:
        """The instance's reply is whole: give back connection and lease."""
        self._leave_connection()
        self._settle(self.failure)
        if self.caller is None:
            status = self._told
        self.view.counters.ended(status, perf_counter() - self._started_at)

    def _leave_connection(self) -> None:
        conn, lease = self.conn, self.lease
        self.conn = None
        if conn is None:
            return
        if self.request_done and lease is not None:
            conn.rest(lease.endpoint)
        else:
            conn.drop()

    def _give_up(self, failure: Failure) -> None:
        """End it on our side of the target, which must not grant it an instance any more."""
        if self.stage == QUEUED:
            self.view.target.abandon(self)
        self._end(failure)

    def _end(self, failure: Failure | None, *, recycle: bool = False) -> None:
        """End before the reply is whole, and answer with the failure if nothing was answered."""
        conn = self.conn
        if conn is not None:
            self.conn = None
            conn.drop()
        caller = self.caller
        self._settle(failure, recycle=recycle)
        if failure is not None:
            self._tell(failure)
        elif caller is not None:
            caller.more(b"", True)
        self.view.counters.ended(self._told, perf_counter() - self._started_at)

    def _settle(self, failure: Failure | None, *, recycle: bool = False) -> None:
        """Leave every list and release the lease. The only place that releases."""
        self.stage = DONE
        self.line.pop(self, None)
        if self.desk.waiting:
            self.desk.waiting.discard(self)
        if self._held_bytes:
            self.desk.unreserve(self._held_bytes)
            self._held_bytes = 0
        if failure is not None:
            self.failure = failure
            self.view.counters.failed(failure.kind.value)
        lease = self.lease
        if lease is not None:
            self.lease = None
            self.settled = lease
            if lease.cold_start is not None:
                self.view.counters.cold_starts += 1
            self.view.release(lease, self.call, failure, recycle=recycle)

    def _break_off(self) -> None:
        caller, self.caller = self.caller, None
        if caller is not None:
            caller.abort()

    def _tell(self, failure: Failure) -> None:
        """Tell the caller, or break off what was told; afterwards nobody waits any more."""
        if self._replied:
            self._break_off()
        elif self.caller is not None:
            caller, self.caller = self.caller, None
            call = self.call
            self._deliver(caller, failure_reply(self.view.contract, failure, call, self.report))

    def _deliver(self, caller: Caller, reply: Reply) -> None:
        """Give a whole reply of the contract to the caller."""
        headers = list(reply.headers)
        self._mark(headers, self.report)
        self._told = reply.status
        caller.reply(reply.status, headers, len(reply.body), reply.body, True)

    def _mark(self, headers: Headers, report: CallReport | None) -> None:
        cold = report.cold_start if report is not None else None
        mark(headers, self.call.request_id, cold)
        if self.traced:
            now = perf_counter()
            granted = self._granted_at or now
            wait_ms, function_ms = (granted - self._started_at) * 1000, (now - granted) * 1000
            headers.append(server_timing(wait_ms, function_ms, cold))
