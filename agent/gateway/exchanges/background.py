"""The two things a call has to wait for outside: a new connection, and why its exchange broke.

Background tasks, made only then; a warm call makes none. What follows is decided in `exchange.py`.
"""

from __future__ import annotations

import logging
from time import perf_counter
from typing import Final, Protocol

from agent.calls.ports import Lease
from agent.gateway.exchanges.shared import Callee, SharedState
from agent.gateway.exchanges.stage import CONNECTING, DONE, EXPLAINING, RUNNING
from agent.gateway.wire.ports import Caller
from agent.gateway.wire.upstream import UpstreamConnection
from agent.model.failure import Failure, FailureKind

log = logging.getLogger(__name__)

CONNECT_S: Final = 5.0
"""A connect inside this host's own bridge that takes longer will not come."""
UNBLOCK_S: Final = 1.0
"""How long a new connection may stay without an answer before idle ones beside it are closed."""


class LeasedCall(Protocol):
    """A call that has an instance. `deadline` is absolute loop time."""

    shared: SharedState
    callee: Callee
    caller: Caller | None
    stage: int
    deadline: float
    started_at: float
    lease: Lease | None
    conn: UpstreamConnection | None
    failure: Failure | None

    def send_request(self, conn: UpstreamConnection) -> None:
        """Use the connection."""

    def explain(self) -> None:
        """Ask why there is none."""

    def end(self, failure: Failure | None, *, recycle: bool = False) -> None:
        """End without the instance's reply."""


async def open_connection(call: LeasedCall) -> None:
    """Open a connection and use it, unless the call has ended meanwhile."""
    lease = call.lease
    if lease is None or call.stage != CONNECTING:
        return
    endpoint = lease.endpoint
    deadline = min(call.deadline, call.shared.time() + CONNECT_S)
    try:
        conn = await call.shared.connector.open(endpoint.address, endpoint.port, deadline)
        if call.stage != CONNECTING:
            conn.close()
        elif call.caller is None:
            conn.rest(endpoint.idle)
            call.end(Failure(FailureKind.CLIENT_CANCELLED))
        else:
            call.send_request(conn)
            call.shared.loop.call_later(UNBLOCK_S, _unblock, call)
    except OSError:  # TimeoutError is one
        if call.stage == CONNECTING:
            call.explain()
    except Exception:  # the top of a task: a call that it left alone would wait for its limit
        log.exception("%r", call)
        if call.stage != DONE:
            call.end(Failure(FailureKind.INTERNAL))


def _unblock(call: LeasedCall) -> None:
    """Free a server that serves one connection only and waits on one of our idle ones."""
    lease, conn = call.lease, call.conn
    if call.stage != RUNNING or lease is None or conn is None or not conn.silent:
        return
    for idle in lease.endpoint.idle[:]:
        idle.close()
    call.shared.loop.call_later(UNBLOCK_S, _unblock, call)


async def ask_why(call: LeasedCall) -> None:
    """Ask the target why the exchange broke, and end the call with the answer."""
    lease = call.lease
    if lease is None or call.stage != EXPLAINING:
        return
    failure = Failure(FailureKind.INTERNAL)
    try:
        failure = await call.callee.target.explain(lease, perf_counter() - call.started_at)
    finally:
        if call.stage == EXPLAINING:
            call.end(call.failure or failure, recycle=call.callee.single)
