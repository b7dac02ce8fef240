"""One daemon the supervisor keeps alive: where it is between starts, as a small pure state.

Times are monotonic seconds and are passed in. It starts nothing and kills nothing; `supervise` does
what it says is due.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.rootless.child import Backoff


@dataclass(slots=True)
class Daemon:
    """A daemon is due, waiting to become ready, ready, or given up and about to end."""

    name: str
    ready_within_s: float
    pid: int = 0
    was_ready: bool = False
    backoff: Backoff = field(default_factory=Backoff)
    _start_at: float = 0.0
    _started_at: float = 0.0
    _ready_at: float | None = None
    _ready_by: float | None = None

    @property
    def ready(self) -> bool:
        """It runs and has said that it works."""
        return bool(self.pid) and self._ready_at is not None

    @property
    def waiting(self) -> bool:
        """It runs and has not said yet that it works."""
        return bool(self.pid) and self._ready_at is None and self._ready_by is not None

    def due(self, now: float) -> bool:
        """Return whether it should be started now."""
        return not self.pid and now >= self._start_at

    def late(self, now: float) -> bool:
        """Return whether it took longer to become ready than it may."""
        return self._ready_by is not None and now >= self._ready_by

    def timers(self) -> list[float]:
        """Return the times at which something about it is due."""
        if not self.pid:
            return [self._start_at]
        return [self._ready_by] if self._ready_by is not None else []

    def age_ms(self, now: float) -> int:
        """Return the milliseconds since it was started."""
        return round((now - self._started_at) * 1000)

    def started(self, pid: int, now: float) -> None:
        """Note that it was started."""
        self.pid = pid
        self._started_at = now
        self._ready_at = None
        self._ready_by = now + self.ready_within_s

    def became_ready(self, now: float) -> None:
        """Note that it works."""
        self._ready_at = now
        self._ready_by = None
        self.was_ready = True

    def give_up_waiting(self) -> None:
        """Note that it was killed for being late; its end is still to come."""
        self._ready_by = None

    def rested(self) -> None:
        """Note that it ended as it was to: it is due as soon as it is wanted again."""
        self.pid = 0
        self._ready_at = self._ready_by = None
        self._start_at = 0.0

    def ended(self, now: float) -> float:
        """Note that it ended; return the seconds until it is due again."""
        lived_s = now - self._ready_at if self._ready_at is not None else 0.0
        delay_s = self.backoff.delay_s(lived_s)
        self.pid = 0
        self._ready_at = None
        self._ready_by = None
        self._start_at = now + delay_s
        return delay_s
