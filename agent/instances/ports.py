"""What an instance needs from the rooms below and above: the same for all; from `agent/app.py`."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from agent.core.instance import State
from agent.core.mode import NodeMode
from agent.instances.endpoint import Connector
from agent.model.records import InstanceRecord
from agent.sandbox.builder import Builder
from agent.store.ledger import Row


@dataclass(frozen=True, slots=True)
class InstancePorts:
    """Builder, connections, records, the in-flight ledger, and who watches."""

    builder: Builder
    connector: Connector
    open_socket: Callable[[], Awaitable[socket.socket]]
    save: Callable[[InstanceRecord], None]
    forget: Callable[[str], None]
    worker: int
    """Our generation: who starts and ends what records name."""
    row: Callable[[int], Row]
    """Gives the count of calls in the in-flight ledger of a network slot's number."""
    mode: NodeMode
    """Says whether what serves is still ours; else the next worker is to have it."""
    observe: Callable[[State, float], None]
    """Told the state that was left and the seconds spent in it."""
