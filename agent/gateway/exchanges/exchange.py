"""One call, from the caller's head to the last byte of the reply.

An exchange stands between a `Caller` and one `UpstreamConnection`. It is driven by callbacks of
both and by the gateway's clock and never awaits; connecting, and asking why it broke, are
background tasks made only then. Whatever happens, a lease is released exactly once, in `_settle`.
What becomes of the reply is the business of each kind of call: `http.py`, `event.py`, `job.py`.
"""

from __future__ import annotations

import logging
from time import perf_counter
from typing import Final

from agent.aio.tasks import spawn
from agent.calls.ports import Lease
from agent.contracts.base import Call, CallReport, Headers, Reply
from agent.contracts.failures import from_error
from agent.errors import AgentError
from agent.gateway.exchanges.answer import failure_reply, mark, server_timing
from agent.gateway.exchanges.background import ask_why, open_connection
from agent.gateway.exchanges.buffer import BodyBuffer
from agent.gateway.exchanges.reuse import SMALL_BYTES, repeatable, rested
from agent.gateway.exchanges.shared import Callee, DeadlineQueue, SharedState
from agent.gateway.exchanges.stage import (
    COLLECTING,
    CONNECTING,
    DONE,
    EXPLAINING,
    NEW,
    QUEUED,
    RUNNING,
)
from agent.gateway.wire.head import ReplyHead, RequestHead
from agent.gateway.wire.http1 import LAST_CHUNK, chunk
from agent.gateway.wire.ports import Caller
from agent.gateway.wire.upstream import UpstreamConnection
from agent.model.failure import Failure, FailureKind
from agent.model.records import Meters

log = logging.getLogger(__name__)

WAITING_BODY_BYTES: Final = 65536
"""Of a body that streams, kept while its call waits for an instance; then the caller is paused."""
NO_METERS: Final = Meters()


class Exchange:
    """One call. The caller's side fills in what it knows, then calls `start`.

    Fields that are mostly as below are written only when they change.
    """

    # the request
    head: RequestHead | None = None
    """The caller's head, when there is one on the wire."""
    first = b""
    """What came of the body before `start`."""
    body_bytes = 0
    buffer: BodyBuffer | None = None  # what of the body cannot go on yet; of an event's reply, all
    traced = False
    waited_s = 0.0
    """How long it has waited in another worker, which passed it on."""
    # where it stands
    stage = NEW
    deadline = 0.0
    lease: Lease | None = None
    conn: UpstreamConnection | None = None
    failure: Failure | None = None
    released: Lease | None = None
    """The lease once it is released; `report` is made of it."""
    job_report: CallReport | None = None
    _granted_at = 0.0
    _reused = False
    # the reply
    _replied = False
    _reply_bytes = 0
    _switched = False
    _status = 0
    """The instance's, of a reply that was begun."""
    _own_status = 0
    """What a reply of the contract's own said; 0 without one."""

    def __init__(
        self, shared: SharedState, callee: Callee, call: Call, caller: Caller, length: int | None
    ) -> None:
        self.shared = shared
        self.callee = callee
        self.call = call
        self.request_id = call.request_id
        self.request_id_bytes = call.request_id.encode()
        self.caller: Caller | None = caller
        """None once nobody waits for the answer any more."""
        self.length = length
        self.request_done = length == 0
        self.deadlines: DeadlineQueue = callee.deadlines
        """The queue of equal time limits in which it stands."""
        self.started_at = perf_counter()

    def __repr__(self) -> str:
        where = self.lease.endpoint.id if self.lease is not None else "no lease"
        name = self.callee.target.version.name
        return f"<{type(self).__name__} {self.call.request_id} {name} stage={self.stage} {where}>"

    @property
    def limited(self) -> bool:
        """True from the lease on: the call's time limit runs."""
        return self.deadline > 0

    @property
    def report(self) -> CallReport | None:
        """What the call has cost, once it has; None for one that reached no instance."""
        if self.released is not None:
            return self.callee.target.report(self.released)
        return self.job_report

    @property
    def safe(self) -> bool:
        """True if making the request twice is as good as once."""
        return False

    # -- from the caller

    def begin_body(self, data: bytes, done: bool) -> None:
        """Give what is here of the body before `start`."""
        self.request_done = done
        self.first = data
        self.body_bytes = len(data)

    def start(self) -> None:
        """Begin: check the size, then ask for an instance."""
        callee = self.callee
        callee.counters.inflight += 1
        if self.length != 0 and (self.length or self.body_bytes) > callee.request_bytes > 0:
            self.end(Failure(FailureKind.REQUEST_TOO_LARGE, limit=callee.request_bytes))
        else:
            self._begin()

    def request_body(self, data: bytes, ended: bool) -> None:
        """Take further bytes of the request's body, in order; `ended` comes exactly once."""
        if self.stage == DONE or self.caller is None:
            return
        self.body_bytes += len(data)
        limit = self.callee.request_bytes
        if self.body_bytes > limit > 0 and not self._switched:
            self._give_up(Failure(FailureKind.REQUEST_TOO_LARGE, limit=limit))
            return
        self.request_done = ended
        if self.stage == RUNNING:
            self._forward(data, ended)
        else:
            self._hold_back(data)
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
            self.callee.target.abandon(self)
        self.caller = None
        pieces = self._held_back()
        self._settle(None)
        self.callee.counters.inflight -= 1
        return pieces, self.waited_s + perf_counter() - self.started_at

    # -- from the target (ports.Waiter)

    def granted(self, lease: Lease) -> None:
        """Use the lease: a pooled connection at once, or a new one."""
        self.lease = lease
        callee, shared, endpoint = self.callee, self.shared, lease.endpoint
        self.call.instance = endpoint.id
        if shared.waiting:
            shared.waiting.discard(self)
        now = shared.time()
        self.deadline = now + callee.call_s
        self.deadlines[self] = None
        if self.traced:
            self._granted_at = perf_counter()
        try:
            # All of them came from our own connector: `ports` knows no HTTP.
            idle: list[UpstreamConnection] = endpoint.idle  # type: ignore[assignment]
            conn = idle.pop() if idle else None
            if conn is not None and (conn.closed or now - conn.rested_at > endpoint.keeping.hot_s):
                conn = rested(self, conn, idle, endpoint.keeping, now)
            if conn is not None:
                self._reused = True
                self.send_request(conn)
            else:
                self._connect()
        except Exception:  # called from inside the pool, which must not see our faults
            log.exception("call %s of %s", self.call.request_id, callee.target.version.name)
            self.end(Failure(FailureKind.INTERNAL))

    def refused(self, failure: Failure) -> None:
        """There is no instance for this call."""
        if self.stage != DONE:
            self.end(failure)

    # -- from the instance

    def reply_began(self, head: ReplyHead, body: bytes, ended: bool) -> None:
        """Take the head of the instance's reply and what came of the body with it."""
        raise NotImplementedError

    def reply_went_on(self, data: bytes, ended: bool) -> None:
        """Take more of the instance's reply."""
        raise NotImplementedError

    def switched_protocols(self, head: ReplyHead, data: bytes) -> None:
        """Refuse a 101: only an HTTP call can have asked for it."""
        self.end(Failure(FailureKind.BAD_RESPONSE, "it answered 101, which nobody asked for"))

    def upstream_ended(self, reply_came: bool, malformed: str) -> None:
        """The connection ended before the reply did; `malformed` says what came that is no HTTP."""
        conn, self.conn = self.conn, None
        again = self._reused and not reply_came and self.caller is not None
        if self._switched:
            self.end(None)
        elif malformed:
            self.end(Failure(FailureKind.BAD_RESPONSE, malformed), recycle=self.callee.single)
        elif again and conn is not None and repeatable(self, conn, self.shared.time()):
            self.shared.counters.upstream_retries += 1
            self._connect()
        else:
            self.explain()

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
            self.end(self.failure)  # a zombie whose time is over
            return
        limit_s = self.callee.call_s
        failure = Failure(FailureKind.TIMEOUT, waited_s=limit_s, limit=limit_s)
        alone = self.callee.single
        if alone or self.stage != RUNNING or not self.request_done or self.conn is None:
            self.end(failure, recycle=alone)
            return
        self.failure = failure
        self._answer_failure(failure)
        self.conn.flow.resume()
        self.deadlines.pop(self, None)
        self.shared.watch_zombie(self)

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
        caller = self.caller
        if caller is not None and caller.leaving:
            self.shared.waiting.add(self)  # until its connection is passed on
            return
        try:
            lease = self.callee.acquire(self)
        except AgentError as error:
            self.end(from_error(error))
            return
        if lease is not None:
            self.granted(lease)
        elif self.stage == QUEUED:
            self.shared.waiting.add(self)

    def _begin(self) -> None:  # no alias: the compiled form knows none
        self._acquire()

    def _hold(self, data: bytes) -> bool:
        """Hold bytes of a body in memory; False when there is no room for them."""
        if self.buffer is None:
            self.buffer = BodyBuffer(self.shared)
        return self.buffer.hold(data)

    def _hold_back(self, data: bytes) -> None:
        """Hold body bytes back until there is a connection for them."""
        if not data:
            return
        if not self._hold(data):
            self._give_up(Failure(FailureKind.NO_CAPACITY, "too many large requests are waiting"))
        elif self.stage != COLLECTING and self.body_bytes > WAITING_BODY_BYTES:
            self.upstream_full()

    def _held_back(self) -> list[bytes]:
        """Return what came of the body so far, and keep none of it."""
        pieces = [self.first] if self.first else []
        self.first = b""
        if self.buffer is not None:
            pieces += self.buffer.take()
        return pieces

    def send_request(self, conn: UpstreamConnection) -> None:
        """Write the head and what there is of the body in one go."""
        call, length = self.call, self.length
        self.conn, self.stage = conn, RUNNING
        data = self.callee.request_head(call, length)
        if conn.instance != call.instance:
            conn.instance = call.instance
            conn.report = CallReport(NO_METERS, None, b"", call.instance)
            if self.lease is not None:
                conn.keeping = self.lease.endpoint.keeping
        conn.begin(self, call.method == b"HEAD" and call.kind == "http")
        if length == 0:
            conn.write(data)
        else:
            self._send_with_body(conn, data)

    def _send_with_body(self, conn: UpstreamConnection, data: bytes) -> None:
        length = self.length
        if self.buffer is None:
            body = self.first
            if not self.request_done or len(body) > SMALL_BYTES:
                self.first = b""
        else:
            body = b"".join(self._held_back())
        if body:
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
                self.end(None)
        elif self.length is not None:
            conn.write(data)
        else:
            if data:
                conn.write(chunk(data))
            if ended:
                conn.write(LAST_CHUNK)

    # -- the connection

    def _connect(self) -> None:
        self.stage = CONNECTING
        self._reused = False
        self.shared.counters.upstream_connects += 1
        _ = spawn(f"connect {self.call.instance}", open_connection(self))

    # -- the end

    def _gone_while_running(self) -> None:
        gone = Failure(FailureKind.CLIENT_CANCELLED)
        policy = self.callee.cancel
        if policy != "keep" or not self.request_done or self._switched or self.conn is None:
            self.end(gone, recycle=policy == "recycle")
        else:
            self.failure = gone
            self.conn.flow.resume()

    def explain(self) -> None:
        """Find out why it broke. What was answered already is broken off at once."""
        self.stage = EXPLAINING
        if self._replied:
            self._break_off()
        _ = spawn(f"explain {self.call.instance}", ask_why(self))

    def _done(self, status: int) -> None:
        """The instance's reply is whole: give back connection and lease."""
        self._leave_connection()
        self._settle(self.failure)
        if self.caller is None:
            status = self._own_status
        self.callee.counters.ended(status, perf_counter() - self.started_at)

    def _leave_connection(self) -> None:
        conn, lease, self.conn = self.conn, self.lease, None
        if conn is None:
            return
        left = not self.request_done or (self.body_bytes > SMALL_BYTES and conn.unsent)
        if lease is None or left:
            conn.drop()
        else:
            conn.rest(lease.endpoint.idle)

    def _give_up(self, failure: Failure) -> None:
        """End it on our side of the target, which must not grant it an instance any more."""
        if self.stage == QUEUED:
            self.callee.target.abandon(self)
        self.end(failure)

    def end(self, failure: Failure | None, *, recycle: bool = False) -> None:
        """End before the reply is whole, and answer with the failure if nothing was answered."""
        conn = self.conn
        if conn is not None:
            self.conn = None
            conn.drop()
        caller = self.caller
        self._settle(failure, recycle=recycle)
        if failure is not None:
            self._answer_failure(failure)
        elif caller is not None:
            caller.more(b"", True)
        self.callee.counters.ended(self._own_status, perf_counter() - self.started_at)

    def _settle(self, failure: Failure | None, *, recycle: bool = False) -> None:
        """Leave every list and release the lease. The only place that releases."""
        self.stage = DONE
        self.deadlines.pop(self, None)
        if self.shared.waiting:
            self.shared.waiting.discard(self)
        if self.buffer is not None:
            self.buffer.let_go()
        if failure is not None:
            self.failure = failure
            self.callee.counters.failed(failure.kind.value)
        lease = self.lease
        if lease is not None:
            self.lease = None
            self.released = lease
            if lease.cold_start is not None:
                self.callee.counters.cold_starts += 1
            self.callee.release(lease, self.call, failure, recycle=recycle)

    def _break_off(self) -> None:
        caller, self.caller = self.caller, None
        if caller is not None:
            caller.abort()

    def _answer_failure(self, failure: Failure) -> None:
        """Tell the caller, or break off what was told; afterwards nobody waits any more."""
        if self._replied:
            self._break_off()
        elif self.caller is not None:
            caller, self.caller = self.caller, None
            call = self.call
            self._deliver(caller, failure_reply(self.callee.contract, failure, call, self.report))

    def _deliver(self, caller: Caller, reply: Reply) -> None:
        """Give a whole reply of the contract to the caller."""
        headers = list(reply.headers)
        self._mark(headers, self.report)
        self._own_status = reply.status
        caller.reply(reply.status, headers, len(reply.body), reply.body, True)

    def _mark(self, headers: Headers, report: CallReport | None) -> None:
        cold = report.cold_start if report is not None else None
        mark(headers, self.call.request_id, cold)
        if self.traced:
            headers.append(server_timing(self.started_at, self._granted_at, cold))
