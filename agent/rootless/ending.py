"""Ending what is below the supervisor, and clearing up after it, inside the namespaces.

The order is `supervise`'s; here is how: children are collected, whatever functions and shims are
still there is killed and waited for, then mounts, files and slots are cleared with full rights over
the subordinate ids. Each step is bounded; what would not go is said, and `parent` sweeps again.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

from agent.rootless import cgroup, leftovers, lock, notify, settings, sweep
from agent.rootless.settings import House

# What `supervise` leaves in the run directory when it ends; `run` outside removes the rest.
KEPT_IN_RUN = (
    lock.NAME,
    settings.CONFIG_NAME,
    settings.CGROUP_NAME,
    settings.NOTIFY_NAME,
    "rootlesskit",
)
_SWEEP_S = 10.0
_PAUSE_S = 0.01


def reap() -> list[tuple[int, int]]:
    """Collect every child that has ended, adopted orphans too, as (pid, wait status)."""
    ended: list[tuple[int, int]] = []
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended.append((pid, status))
    return ended


def is_child(pid: int) -> bool:
    """Return whether this child still runs; collects it if it has just ended."""
    with suppress(ChildProcessError):
        return os.waitpid(pid, os.WNOHANG)[0] == 0
    return False


def kill(pid: int, number: int) -> None:
    """Send a signal to a process that may be gone."""
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def end_rest(house: House, layout: cgroup.CgroupLayout) -> None:
    """Kill functions, shims and whatever else is below this process, and wait for them."""
    agent = layout.agent_directory(house.node)
    groups = [
        group
        for directory in layout.node_directories(house.node)
        for group in directory.glob("*/")
        if group.name != agent.name
    ]
    swept = sweep.sweep(groups, within_s=_SWEEP_S)
    deadline = time.monotonic() + _SWEEP_S
    below = sweep.descendants(os.getpid())
    while below and time.monotonic() < deadline:
        for pid in below:
            kill(pid, signal.SIGKILL)
        time.sleep(_PAUSE_S)
        reap()
        below = sweep.descendants(os.getpid())
    reap()
    if swept.ended or swept.alive:
        notify.say("supervise", f"ended {len(swept.ended)} processes of functions")


def clear(house: House) -> None:
    """Take away mounts and files in the run directory and the data on slots."""
    leftovers.unmount_below(house.run, keep=("rootlesskit",))
    stayed = leftovers.clear_directory(house.run, KEPT_IN_RUN)
    dirty = 0
    if house.writable == "slots":
        dirty = leftovers.clear_slots(house.slots, within_s=_SWEEP_S)
    if stayed or dirty:
        names = ", ".join(str(path) for path in stayed[:5])
        notify.say("supervise", f"could not clear {dirty} slots and: {names or 'nothing else'}")
