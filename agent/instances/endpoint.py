"""An instance as something to connect to, and what that needs from whoever speaks HTTP.

Connections to instances are made by the composition root's `Connector`, so that neither this room
nor `calls` needs HTTP.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from typing import Protocol

from agent.contracts.base import Headers
from agent.instances.keeping import Keeping


class Connection(Protocol):
    """A keep-alive HTTP/1.1 connection to one instance, idle or in a call."""

    @property
    def usable(self) -> bool:
        """False once either side has closed it."""

    def close(self) -> None:
        """Close it; safe to call twice."""

    async def roundtrip(
        self, head: bytes, body: bytes, deadline: float
    ) -> tuple[int, Headers, bytes]:
        """Send one request and return status, headers and the whole body (bounded).

        Used for hooks. `deadline` is absolute loop time. Raises FunctionFailed(BAD_RESPONSE) when
        the connection breaks or the answer is no HTTP, TimeoutError past the deadline.
        """


class Connector(Protocol):
    """Makes connections out of sockets that live in the functions' network."""

    async def adopt(self, sock: socket.socket) -> Connection:
        """Take over a connected, non-blocking socket."""


@dataclass(slots=True)
class Endpoint:
    """Where an instance listens. `idle` holds its idle connections, newest last."""

    id: str
    address: str
    port: int
    idle: list[Connection] = field(default_factory=list)
    keeping: Keeping = field(default_factory=Keeping)
