"""What the calls of one instance use: its CPU time, shared by those that overlap, and its peak.

A call that is alone reads the figures when it begins and when it ends, so that its own are exact.
Calls that overlap share CPU time anyway; they also share the readings, at most one in SAMPLE_S.
Between two readings the CPU time is split evenly among the calls in flight; what an idle instance
burns is nobody's. The figures themselves are `agent/cgroups`'.
"""

from __future__ import annotations

from typing import Final, Protocol

SAMPLE_S: Final = 0.001
"""How old the figures may be that overlapping calls are told."""


class Figures(Protocol):
    """An instance's control group; each answer is one read of a kept file, 0 once it is gone."""

    def cpu_ns(self) -> int:
        """Return the CPU time used so far."""

    def peak_bytes(self) -> int:
        """Return the memory peak so far."""


class Metered(Protocol):
    """What a call carries; `InstanceMeter` alone writes it.

    When the call has ended, `cpu_ns` is its CPU time, `alone` says that it is exact, and
    `peak_bytes` is the most memory its instance had held by then.
    """

    cpu_ns: float
    joins: int
    alone: bool
    peak_bytes: int


class InstanceMeter:
    """The meter of one instance. `figures` come with its container; before, all reads as nothing.

    `begin` and `end` are on the warm path; `now` is in the seconds of any steady clock.
    """

    __slots__ = ("_due", "_joins", "_last_ns", "_peak_bytes", "_share_ns", "figures", "running")

    def __init__(self, figures: Figures | None = None) -> None:
        self.figures = figures
        self.running = 0
        """How many calls are in flight."""
        self._joins = 0
        self._last_ns = 0
        self._share_ns = 0.0
        self._peak_bytes = 0
        self._due = 0.0

    def begin(self, call: Metered, now: float) -> None:
        """Count a call that begins."""
        running = self.running
        if running:
            if now >= self._due:
                self._read(now)
            self._joins += 1
            call.alone = False
        else:
            self._read_cpu()
            call.alone = True
        self.running = running + 1
        call.joins = self._joins
        call.cpu_ns = self._share_ns

    def end(self, call: Metered, now: float) -> None:
        """Count a call that ends, once, and tell it what it used."""
        running = self.running
        if running == 1 or now >= self._due:
            self._read(now)
        self.running = running - 1
        call.cpu_ns = self._share_ns - call.cpu_ns
        call.peak_bytes = self._peak_bytes
        if call.joins != self._joins:
            call.alone = False

    def _read(self, now: float) -> None:
        self._due = now + SAMPLE_S
        self._read_cpu()
        if self.figures is not None:
            # A group that is gone reads as 0; the peak was what it was.
            self._peak_bytes = max(self._peak_bytes, self.figures.peak_bytes())

    def _read_cpu(self) -> None:
        if self.figures is None:
            return
        used_ns = self.figures.cpu_ns() - self._last_ns
        if used_ns > 0:
            self._last_ns += used_ns
            if self.running:
                self._share_ns += used_ns / self.running
