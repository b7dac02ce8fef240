"""What an exchange knows: the fields of one call, and the stages it goes through.

Stages: NEW → (COLLECTING) → QUEUED → (CONNECTING) → RUNNING → (EXPLAINING) → DONE; jobs go from
COLLECTING to JOB to DONE. What happens in them is `exchange.py`'s and `event.py`'s.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Final

from agent.contracts.base import Call, CallReport
from agent.model.failure import Failure

if TYPE_CHECKING:
    from agent.calls.ports import Lease
    from agent.gateway.caller import Caller
    from agent.gateway.desk import Desk, Line, View
    from agent.gateway.head import RequestHead
    from agent.gateway.upstream import UpstreamConnection

REPEATABLE: Final = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE"))
"""Methods sent again when a pooled connection was dead (CONTRACTS, Replies and errors)."""

NEW, COLLECTING, QUEUED, CONNECTING, RUNNING, EXPLAINING, JOB, DONE = range(8)


class State:
    """The fields. Those that are mostly as below are written only when they change."""

    # the request
    head: RequestHead | None = None
    """The caller's head, when there is one on the wire."""
    pieces: list[bytes] | None = None
    body_bytes = 0
    traced = False
    waited_s = 0.0
    """How long it has waited in another worker, which passed it on."""
    # where it stands
    stage = NEW
    deadline = 0.0
    lease: Lease | None = None
    conn: UpstreamConnection | None = None
    failure: Failure | None = None
    settled: Lease | None = None
    """The lease once it is released; `report` is made of it."""
    job_report: CallReport | None = None
    _granted_at = 0.0
    _held_bytes = 0
    _reused = False
    _retried = False
    # the reply
    _replied = False
    _reply_bytes = 0
    _switched = False
    _status = 0
    """The instance's, of a reply that was begun."""
    _told = 0
    """What a reply of the contract's own said; 0 without one."""

    def __init__(
        self, desk: Desk, view: View, call: Call, caller: Caller, length: int | None
    ) -> None:
        self.desk = desk
        self.view = view
        self.call = call
        self.request_id = call.request_id
        self.identity = call.request_id.encode()
        self.caller: Caller | None = caller
        """None once nobody waits for the answer any more."""
        self.length = length
        self.request_done = length == 0
        self.line: Line = view.line
        """The line of equal time limits in which it stands; see `desk.py`."""
        self._started_at = perf_counter()

    @property
    def limited(self) -> bool:
        """True from the lease on: the call's time limit runs."""
        return self.deadline > 0

    @property
    def report(self) -> CallReport | None:
        """What the call has cost, once it has; None for one that reached no instance."""
        if self.settled is not None:
            return self.view.target.report(self.settled)
        return self.job_report

    @property
    def repeatable(self) -> bool:
        """True if the request may go out once more after its pooled connection was dead."""
        return (
            self._reused
            and not self._retried
            and self.length == 0
            and not (self.head is not None and self.head.upgrade)
            and self.call.kind == "http"
            and self.call.method in REPEATABLE
            and self.caller is not None
        )

    def provide(self, data: bytes, done: bool) -> None:
        """Give what is known of the body before `start`."""
        self.request_done = done
        if data:
            self.pieces = [data]
            self.body_bytes = len(data)

    def __repr__(self) -> str:
        where = self.lease.endpoint.id if self.lease is not None else "no lease"
        name = self.view.target.version.name
        return f"<{type(self).__name__} {self.call.request_id} {name} stage={self.stage} {where}>"
