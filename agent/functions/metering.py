"""What calls cost on one instance: readings of its control group, shared by calls that overlap.

A call that is alone reads the figures when it begins and when it ends, so that its own are exact.
Calls that overlap share their instance's CPU time anyway; they also share the readings, at most one
in SAMPLE_S. The arithmetic is `agent/core/billing.py`'s, the files are `agent/cgroups`'.
"""

from __future__ import annotations

from typing import Protocol

from agent.core.billing import CpuShares, Sharer

SAMPLE_S = 0.001
"""How old the figures may be that overlapping calls are told."""


class Figures(Protocol):
    """An instance's control group; each answer is one read of a kept file, 0 once it is gone."""

    def cpu_ns(self) -> int:
        """Return the CPU time used so far."""

    def peak_bytes(self) -> int:
        """Return the memory peak so far."""


class InstanceMeter:
    """Counts the calls of one instance and reads what they use. `figures` come with its container.

    Before that, and after its end, everything reads as nothing.
    """

    __slots__ = ("_due", "_shares", "figures", "peak_bytes")

    def __init__(self) -> None:
        self.figures: Figures | None = None
        self.peak_bytes = 0
        """The memory peak at the last reading, bytes."""
        self._shares = CpuShares()
        self._due = 0.0

    def begin(self, call: Sharer, now: float) -> None:
        """A call begins at `now`, in the seconds of any steady clock."""
        shares = self._shares
        if not shares.running:
            if self.figures is not None:
                shares.read(self.figures.cpu_ns() // 1000)
        elif now >= self._due:
            self._read(now)
        shares.begin(call)

    def end(self, call: Sharer, now: float) -> int:
        """A call ends and knows its CPU time; return the memory peak in bytes."""
        shares = self._shares
        if now >= self._due or shares.running == 1:
            self._read(now)
        shares.end(call)
        return self.peak_bytes

    def _read(self, now: float) -> None:
        self._due = now + SAMPLE_S
        if self.figures is not None:
            self._shares.read(self.figures.cpu_ns() // 1000)
            self.peak_bytes = self.figures.peak_bytes()
