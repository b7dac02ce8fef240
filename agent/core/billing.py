"""What calls cost: rounding, and memory times time.

Times are float seconds and milliseconds as the names say. Which rounding a platform uses is
`agent/contracts`' choice; whose CPU time it was is `agent/core/metering.py`'s.
"""

from __future__ import annotations

import math

from agent.model.records import ColdStart, Meters

MB_PER_GB = 1024


def billed_ms(wall_ms: float, step_ms: float = 1.0) -> float:
    """Round a duration up to whole steps, at least one.

    Readings carry float noise in the last digits; a billionth of a step more is not a step more.
    """
    return max(1, math.ceil(wall_ms / step_ms - 1e-9)) * step_ms


def gb_s(memory_mb: int, seconds: float) -> float:
    """Return memory size times time, in GB-seconds (1 GB = 1024 MB)."""
    return memory_mb / MB_PER_GB * max(0.0, seconds)


def add_pull(meters: Meters, cold: ColdStart, memory_mb: int) -> None:
    """Bill the wait for the image to the call that caused the start; nothing when it was here."""
    meters.pull_s = cold.pull_ms / 1000
    meters.pull_gb_s = gb_s(memory_mb, meters.pull_s)
