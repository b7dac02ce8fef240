"""The phases of a reload, as a small pure state: where it stands and until when.

    IDLE → PREPARING    a successor loads what is installed and touches nothing
         → TRYING       the supervisor's own new code is tried; then it execs it
         → HANDING_OVER the worker is asked to make room
         → STARTING     the successor was told to go, and is the worker from now on
         → IDLE

Until HANDING_OVER nothing has changed: a failure ends the successor, and all goes on as it was.
Times are monotonic seconds and are passed in. `supervise` does what follows from a phase.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from agent.rootless.outcome import AS_IT_WAS


class Phase(Enum):
    """Where a reload stands."""

    IDLE = "idle"
    PREPARING = "preparing"
    TRYING = "trying"
    HANDING_OVER = "handing over"
    STARTING = "starting"


# How long each phase may take, seconds. A hand-over waits for slots of starts under way.
LIMITS_S = {
    Phase.PREPARING: 60.0,
    Phase.TRYING: 15.0,
    Phase.HANDING_OVER: 30.0,
    Phase.STARTING: 60.0,
}
_NEXT = {
    Phase.IDLE: Phase.PREPARING,
    Phase.PREPARING: Phase.TRYING,
    Phase.TRYING: Phase.HANDING_OVER,
    Phase.HANDING_OVER: Phase.STARTING,
    Phase.STARTING: Phase.IDLE,
}


@dataclass(slots=True)
class Swap:
    """One reload at a time; `again` notes that another one was asked for meanwhile."""

    phase: Phase = Phase.IDLE
    number: int = 0
    """Of the reload under way, see `outcome`."""
    until: float | None = None
    again: bool = False

    def advance(self, now: float) -> Phase:
        """Go to the next phase and return it."""
        return self._enter(_NEXT[self.phase], now)

    def give_up(self) -> None:
        """End it: nothing of it is under way any more."""
        self._enter(Phase.IDLE, 0.0)

    def resume(self, now: float) -> None:
        """Go on behind TRYING, in the code that was tried."""
        self._enter(Phase.HANDING_OVER, now)

    def late(self, now: float) -> bool:
        """Return whether the present phase takes longer than it may."""
        return self.until is not None and now >= self.until

    @property
    def after_failure(self) -> str:
        """What the agent does when the present phase fails."""
        if self.phase in (Phase.HANDING_OVER, Phase.STARTING):
            return "a worker of the installed code is started again"
        return AS_IT_WAS

    def _enter(self, phase: Phase, now: float) -> Phase:
        self.phase = phase
        limit_s = LIMITS_S.get(phase)
        self.until = None if limit_s is None else now + limit_s
        return phase
