"""What the instances of all versions share, as one value; each part is a module of this room.

Built once by the composition root, in the order of the fields. Decides and does nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agent.core.mode import NodeMode
from agent.instances.admission import Admission
from agent.instances.eviction import Eviction
from agent.instances.freezing import Freezing
from agent.instances.permits import StartPermits
from agent.instances.standby_share import StandbyShare
from agent.instances.timer import Timer


@dataclass(frozen=True, slots=True)
class Fleet:
    """The parts. `permits` bounds how many starts the runtime works on at once."""

    now: Callable[[], float]
    mode: NodeMode
    admission: Admission
    eviction: Eviction
    timer: Timer
    freezing: Freezing
    permits: StartPermits
    standby: StandbyShare
