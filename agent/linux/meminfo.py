"""What the kernel says of the host's memory: /proc/meminfo (proc(5))."""

from __future__ import annotations

from pathlib import Path

_FILE = Path("/proc/meminfo")


def available_share() -> float:
    """Return which share of the host's memory could still be given out; 1 if that is not told."""
    found: dict[str, int] = {}
    for line in _FILE.read_text("ascii").splitlines():
        name, _, rest = line.partition(":")
        if name in ("MemTotal", "MemAvailable"):
            found[name] = int(rest.split()[0])
    if "MemAvailable" not in found or not found.get("MemTotal"):
        return 1.0
    return found["MemAvailable"] / found["MemTotal"]
