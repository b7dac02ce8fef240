"""Which connection at rest carries the next call, and whether a call may be made once more.

Only what is not used every few milliseconds is asked here; the warm path passes by. What is known
of an instance is `instances/keeping.py`'s, what the kernel knows `wire/unread.py`'s.
"""

from __future__ import annotations

from typing import Final, Protocol

from agent.contracts.base import Call
from agent.gateway.exchanges.shared import Callee
from agent.gateway.wire.http1 import LAST_CHUNK, chunk
from agent.gateway.wire.upstream import UpstreamConnection
from agent.instances.keeping import Keeping

SMALL_BYTES: Final = 16384
"""A body up to here is kept while its call runs, for sending it once more if it was not read; and
it fits into the kernel's empty buffer (tcp_wmem, tcp(7)), so that none of it waits here."""


class SentCall(Protocol):
    """A call as far as it matters here."""

    callee: Callee
    call: Call
    length: int | None
    first: bytes
    body_bytes: int
    request_done: bool

    @property
    def safe(self) -> bool:
        """True if making the request twice is as good as once."""


def rested(
    call: SentCall,
    conn: UpstreamConnection | None,
    idle: list[UpstreamConnection],
    keeping: Keeping,
    now: float,
) -> UpstreamConnection | None:
    """Return `conn` or the freshest of `idle` that may carry a call, or None for a new one.

    A safe call goes over any that is open: it is made again if that was wrong. Another goes only
    where the instance surely waits; what it does not take is closed, as a server that serves one
    connection at a time would wait on it. `now` is loop time.
    """
    keeping.announced(call.callee.keeps_s)
    while conn is not None:
        if not conn.closed:
            rested_s = now - conn.rested_at
            used = conn.keeping is keeping  # else it waits for its first request, by other limits
            if conn.found_open():
                # What rested on a frozen instance could not be closed: that proves nothing.
                if used and conn.rested_at >= keeping.thawed_at:
                    keeping.kept(rested_s)
                if call.safe or (used and keeping.trusts(rested_s)):
                    return conn
                conn.close()
                return None
            if used:
                keeping.closed(rested_s)
            conn.close()
        conn = idle.pop() if idle else None
    return None


def repeatable(call: SentCall, conn: UpstreamConnection, now: float) -> bool:
    """Say whether a request that got no answer on a connection from rest may go out once more."""
    if conn.keeping is not None:
        conn.keeping.closed(now - conn.rested_at)
    if call.safe:
        return True
    body, length = call.first, call.length
    if not call.request_done or len(body) != call.body_bytes:
        return False  # it is not here any more
    size = len(call.callee.request_head(call.call, length)) + len(body)
    if length is None:
        size += len(chunk(body)) - len(body) if body else 0
        size += len(LAST_CHUNK)
    return conn.has_not_read(size)
