"""The orphan sweep: end everything an earlier run of this node left behind.

Runs in the host's namespaces, before rootlesskit and again after it: only there may the owner still
signal processes of its subordinate ids (a fresh user namespace of the same uid may not). It looks
at nothing but the node's own cgroup directories, so a second agent on the host is never touched.
Whether an agent is alive is decided by `lock`, before this is called.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agent.linux import process
from agent.linux.process import ancestors, is_zombie
from agent.linux.process import descendants as descendants  # for `ending`
from agent.rootless import cgroup

# Between two looks at the tree: long enough for the kernel to end what was killed.
_PAUSE_S = 0.01


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep did: pids that ended, pids that would not, directories that stayed."""

    ended: tuple[int, ...]
    alive: tuple[int, ...]
    stayed: tuple[Path, ...]

    def sentence(self) -> str:
        """Say it in one sentence for the log."""
        if not (self.ended or self.alive or self.stayed):
            return "nothing was left of an earlier run"
        text = f"ended {len(self.ended)} processes of an earlier run"
        if self.alive:
            text += f"; {len(self.alive)} would not end: {_some(self.alive)}"
        if self.stayed:
            text += f"; {len(self.stayed)} cgroups stayed: {_some(self.stayed)}"
        return text


def sweep(
    roots: Sequence[Path], *, within_s: float, spare: Iterable[int] = (), keep_roots: bool = False
) -> Swept:
    """Thaw and kill every process at and below the cgroups `roots`, then remove those cgroups.

    This process, its ancestors and `spare` are left alone; so are the empty `roots` if asked.
    Takes at most about `within_s` seconds; what would not go in that time is in the result. Raises
    nothing for what vanishes meanwhile.
    """
    deadline = time.monotonic() + within_s
    spared = {*ancestors(os.getpid()), *spare}
    ended: set[int] = set()
    alive = _living(roots, spared)
    while alive:
        _thaw(roots)
        _kill(roots, alive)
        ended |= alive
        if time.monotonic() >= deadline:
            break
        time.sleep(_PAUSE_S)
        alive = _living(roots, spared)
    stayed = _remove(roots, deadline, set(roots) if keep_roots else set())
    return Swept(tuple(sorted(ended - alive)), tuple(sorted(alive)), tuple(stayed))


def _living(roots: Sequence[Path], spared: set[int]) -> set[int]:
    # v2 lists zombies too; they wait for their parent, not for us.
    return {pid for pid in _members(roots) - spared if not is_zombie(pid)}


def _members(roots: Sequence[Path]) -> set[int]:
    return {pid for group in cgroup.subtree(roots) for pid in cgroup.processes(group)}


def _kill(roots: Sequence[Path], pids: set[int]) -> None:
    """Kill those of `pids` that are still in a group at or below `roots`."""
    process.kill_members(lambda: pids & _members(roots))


def _thaw(roots: Sequence[Path]) -> None:
    # v1: a frozen process does not take its SIGKILL. v2 kills frozen ones, thawing does no harm.
    for group in cgroup.subtree(roots):
        for name, value in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
            with suppress(OSError):
                if (group / name).exists():
                    (group / name).write_text(value)


def _remove(roots: Sequence[Path], deadline: float, kept: set[Path]) -> list[Path]:
    while True:
        groups = [group for group in cgroup.subtree(roots) if group not in kept]
        stayed = [group for group in groups if not _rmdir(group)]
        if not stayed or time.monotonic() >= deadline:
            return stayed
        time.sleep(_PAUSE_S)


def _rmdir(group: Path) -> bool:
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _some(things: Sequence[object]) -> str:
    return ", ".join(map(str, things[:5])) + (", …" if len(things) > 5 else "")
