"""What the kernel says the CPU can: the flags of /proc/cpuinfo. What they mean is decided above."""

from __future__ import annotations

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def flags(text: str | None = None) -> frozenset[str]:
    """Return the flags that every CPU of this host has; raises OSError.

    Hybrid CPUs may differ from core to core, and nobody says where a process runs.
    """
    lines = (CPUINFO.read_text() if text is None else text).splitlines()
    each = [frozenset(line.partition(":")[2].split()) for line in lines if line.startswith("flags")]
    return frozenset.intersection(*each) if each else frozenset()
