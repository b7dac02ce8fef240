"""How an exchange gets a new connection to its instance, when no idle one is at hand.

The connect is a background task, made only then; its outcome goes back to the exchange, which
decides what follows (`exchange.py`).
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from typing import TYPE_CHECKING, Final

from agent.aio.tasks import spawn
from agent.gateway.state import CONNECTING, DONE, RUNNING, State
from agent.model.failure import Failure, FailureKind

if TYPE_CHECKING:
    from agent.gateway.upstream import UpstreamConnection

log = logging.getLogger(__name__)

CONNECT_S: Final = 5.0
"""A connect inside this host's own bridge that takes longer will not come."""
UNBLOCK_S: Final = 1.0
"""How long a new connection may stay without an answer before idle ones beside it are closed."""


class Connecting(State):
    """The part of an exchange that connects."""

    @abstractmethod
    def _send(self, conn: UpstreamConnection) -> None:
        """Use the connection."""

    @abstractmethod
    def _explain(self) -> None:
        """Find out why there is none."""

    @abstractmethod
    def _end(self, failure: Failure | None, *, recycle: bool = False) -> None:
        """End the exchange."""

    def _connect(self) -> None:
        self.stage = CONNECTING
        self._reused = False
        self.desk.counters.upstream_connects += 1
        _ = spawn(f"connect {self.call.instance}", self._open())

    async def _open(self) -> None:
        lease = self.lease
        if lease is None or self.stage != CONNECTING:
            return
        endpoint = lease.endpoint
        deadline = min(self.deadline, self.desk.time() + CONNECT_S)
        try:
            conn = await self.desk.connector.open(endpoint.address, endpoint.port, deadline)
            if self.stage != CONNECTING:
                conn.close()
            elif self.caller is None:
                conn.rest(endpoint)
                self._end(Failure(FailureKind.CLIENT_CANCELLED))
            else:
                self._send(conn)
                self.desk.loop.call_later(UNBLOCK_S, self._unblock)
        except OSError:  # TimeoutError is one
            if self.stage == CONNECTING:
                self._explain()
        except Exception:  # the top of a task: a call that it left alone would wait for its limit
            log.exception("call %s of %s", self.call.request_id, self.view.target.version.name)
            if self.stage != DONE:
                self._end(Failure(FailureKind.INTERNAL))

    def _unblock(self) -> None:
        """Free a server that serves one connection only and waits on one of our idle ones."""
        lease, conn = self.lease, self.conn
        if self.stage != RUNNING or lease is None or conn is None or not conn.silent:
            return
        for idle in lease.endpoint.idle[:]:
            idle.close()
        self.desk.loop.call_later(UNBLOCK_S, self._unblock)
