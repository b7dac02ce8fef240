"""What every containerd probe shares: a spec, a way to run scenarios, their results as JSON.

A probe runs inside rootlesskit beside its own containerd. Scenarios return plain facts; the test
outside judges them. One that raises is reported as {"error": …} and the others still run.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from agent.containerd.client import Containerd
from agent.containerd.containers import RuntimeOptions

NAMESPACES = ("pid", "mount", "ipc", "uts", "network", "cgroup")


@dataclass(frozen=True)
class Place:
    """Where this probe may write, and its cgroup."""

    dir: Path
    cgroup: str

    @property
    def options(self) -> RuntimeOptions:
        return RuntimeOptions(binary="crun", root=self.dir / "crun")

    @property
    def crun_state(self) -> Path:
        return self.dir / "crun" / "kindling"


Scenario = Callable[[Containerd, Place], Awaitable[Any]]


def soon(seconds: float = 30.0) -> float:
    return asyncio.get_running_loop().time() + seconds


def spec(
    place: Place,
    id: str,
    rootfs: Path,
    args: Sequence[str],
    *,
    mounts: Sequence[Mapping[str, Any]] = (),
    namespaces: Sequence[str] = NAMESPACES,
    memory_bytes: int = 0,
) -> bytes:
    """A small OCI spec for tests; the agent's own is made in agent/core/oci.py."""
    document: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": list(args),
            "env": ["PATH=/bin"],
            "cwd": "/",
            "noNewPrivileges": True,
        },
        "root": {"path": str(rootfs), "readonly": False},
        "mounts": list(mounts),
        "linux": {
            "namespaces": [{"type": name} for name in namespaces],
            "cgroupsPath": f"{place.cgroup}/{id}",
        },
    }
    if memory_bytes:
        document["linux"]["resources"] = {"memory": {"limit": memory_bytes, "swap": memory_bytes}}
    return json.dumps(document).encode()


async def settle(done: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Wait until `done()` holds, at most `seconds`; tells whether it does."""
    until = time.monotonic() + seconds
    while not done() and time.monotonic() < until:  # noqa: ASYNC110 - a process tells nobody
        await asyncio.sleep(0.05)
    return done()


def pid_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def shims() -> list[int]:
    """Pids of all shims that this containerd's children are."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        socket = os.environ["PROBE_DIR"].encode() + b"/containerd.sock"
        if words[0].endswith(b"containerd-shim-runc-v2") and socket in words:
            found.append(int(entry.name))
    return sorted(found)


def main(*scenarios: Scenario) -> None:
    """Run the scenarios named on the command line (by default all) and print their results."""
    place = Place(Path(os.environ["PROBE_DIR"]), os.environ["PROBE_CGROUP"])
    wanted = [each for each in scenarios if not sys.argv[1:] or each.__name__ in sys.argv[1:]]
    print(json.dumps(uvloop.run(_run(place, wanted))))


async def _run(place: Place, scenarios: Sequence[Scenario]) -> dict[str, Any]:
    containerd = Containerd(place.dir / "containerd.sock")
    version = await containerd.ready(soon())
    results: dict[str, Any] = {"version": version}
    for scenario in scenarios:
        try:
            async with asyncio.timeout(120):
                results[scenario.__name__] = await scenario(containerd, place)
        except Exception:
            results[scenario.__name__] = {"error": traceback.format_exc()}
    await containerd.close()
    return results
