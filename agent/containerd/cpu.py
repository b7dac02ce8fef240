"""This host's level of x86-64, found once: which variants of an image run here."""

from __future__ import annotations

from functools import cache

from agent.core import platform
from agent.linux import cpuinfo


@cache
def level() -> int:
    """Return it; the baseline where /proc does not tell."""
    try:
        return platform.level_of(cpuinfo.flags())
    except OSError:
        return platform.BASELINE
