"""What the figures were taken on: cores, clock, kernel, memory, load, the versions that ran.

Absolute figures mean little without these, and little even with them: benches quote ratios.
"""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

VERSIONS = Path("/usr/lib/kindling/versions")
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
PEERS = ("podman", "nginx-light", "nginx", "haproxy", "caddy", "golang-go", "wrk")
REPOSITORY = Path(__file__).resolve().parents[1]


def facts() -> dict[str, Any]:
    """Return the machine's facts as plain values."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _cpu(),
        "governor": _governor(),
        "kernel": platform.release(),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        "python": platform.python_version(),
        "load": load(),
        "commit": _commit(),
        "versions": _versions() | _packages(),
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


def _governor() -> str:
    """Return who sets the clock of the first core; virtual machines do not tell."""
    return GOVERNOR.read_text().strip() if GOVERNOR.exists() else "not visible"


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


def _packages() -> dict[str, str]:
    """Return the versions of those peers that are this host's own packages."""
    shown = "${Package} ${Version}\\n"
    done = subprocess.run(
        ["dpkg-query", "--show", f"--showformat={shown}", *PEERS],
        capture_output=True,
        text=True,
        check=False,  # it fails when one of them is not there, and shows the others
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    return {fields[0]: fields[1] for fields in lines if len(fields) > 1}
