"""What the figures were taken on: cores, kernel, memory, load, the versions that ran.

Absolute figures mean little without these, and little even with them: benches quote ratios.
"""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

VERSIONS = Path("/usr/lib/kindling/versions")
REPOSITORY = Path(__file__).resolve().parents[1]


def facts() -> dict[str, Any]:
    """Return the machine's facts as plain values."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _cpu(),
        "kernel": platform.release(),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        "python": platform.python_version(),
        "load": load(),
        "commit": _commit(),
        "versions": _versions(),
    }


def load() -> list[float]:
    """Return the load averages of 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def sentence(found: dict[str, Any]) -> str:
    """Return the facts on one line."""
    return (
        f"{found['cores']} cores ({found['cpu']}), Linux {found['kernel']}, "
        f"{found['memory_mb'] >> 10} GB, load {' '.join(map(str, found['load']))}, "
        f"commit {found['commit']}"
    )


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    done = subprocess.run(
        ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


def _versions() -> dict[str, str]:
    if not VERSIONS.exists():
        return {}
    lines = [line.split() for line in VERSIONS.read_text().splitlines()]
    return {fields[0]: fields[1] for fields in lines if len(fields) > 1}
