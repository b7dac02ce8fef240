"""Where this node's cgroups lie: detection of v1, hybrid and v2, and the node's own directory.

On v1 and hybrid hosts root gave the user one directory per controller (`/kindling`); on v2 the
systemd unit is delegated, or setup made `/kindling`. Below it every agent has a directory of its
node's name: a group `agent` for its own processes and one group per instance. Sweeping is in
`sweep`; limits, freezing and figures of instances are in the room `cgroups`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from agent.linux import mountinfo

# The directory setup gives to the user below each v1 controller, and on v2 without systemd.
DELEGATED = "/kindling"
# Group of the agent's own processes below the node. Instance ids always contain a hyphen.
AGENT_GROUP = "agent"
# On v2 no process may sit in an inner group: the parent outside the namespace moves in here. Node
# names have no underscore, so this is never one.
RUN_GROUP = "_run"
# What instances need on v1, in the kernel's names; `name=systemd` because the runtimes join it.
_V1 = ("memory", "cpu", "cpuacct", "pids", "freezer", "cpuset", "devices", "blkio", "name=systemd")
REQUIRED_V1 = ("memory", "cpu", "pids", "freezer")
_V2 = ("cpu", "memory", "pids", "io")
REQUIRED_V2 = ("cpu", "memory", "pids")
UNIFIED = "/sys/fs/cgroup/unified"


@dataclass(frozen=True, slots=True)
class CgroupLayout:
    """The host's cgroup hierarchies as far as they are ours.

    `base` is the delegated group's path inside each hierarchy. `mounts` maps a controller to its
    mount point; on v2 the only key is the empty string. `hybrid` says that cgroup2 is mounted
    beside v1 controllers.
    """

    version: Literal[1, 2]
    hybrid: bool
    base: str
    mounts: dict[str, str]

    def node_directories(self, node: str) -> list[Path]:
        """Return the node's directory in every hierarchy, each once."""
        return sorted({Path(mount + self.base) / node for mount in self.mounts.values()})

    def directory(self, controller: str, node: str) -> Path:
        """Return the node's directory for one controller; KeyError if the host lacks it."""
        mount = self.mounts["" if self.version == 2 else controller]
        return Path(mount + self.base) / node

    def agent_directory(self, node: str) -> Path:
        """Return the group of the agent's own processes: the one that finds them after a kill."""
        controller = next((c for c in ("pids", "freezer") if c in self.mounts), "memory")
        return self.directory(controller, node) / AGENT_GROUP

    def oci_prefix(self, node: str) -> str:
        """Return what `linux.cgroupsPath` of every instance begins with, without a last slash."""
        return f"{self.base}/{node}"


def layout_of(mounts: str, own_groups: str, *, delegated: str = DELEGATED) -> CgroupLayout | None:
    """Read the layout out of /proc/self/mountinfo and /proc/self/cgroup; None without cgroups."""
    v1: dict[str, str] = {}
    v2_mount = ""
    for mounted in mountinfo.parse(mounts):
        if mounted.kind == "cgroup":
            for option in mounted.options:
                if option in _V1:
                    v1.setdefault(option, mounted.point)
        elif mounted.kind == "cgroup2" and not v2_mount:
            v2_mount = mounted.point
    if "memory" in v1:
        return CgroupLayout(1, bool(v2_mount), delegated, v1)
    if v2_mount:
        return CgroupLayout(2, False, _v2_base(own_groups, delegated), {"": v2_mount})
    return None


def _v2_base(own_groups: str, delegated: str) -> str:
    """Return the group that is delegated: the one this process started in, or setup's own."""
    for line in own_groups.splitlines():
        if line.startswith("0::"):
            own = line[3:].removesuffix(f"/{RUN_GROUP}")
            return delegated if own in ("", "/") else own
    return delegated


def detect() -> CgroupLayout | None:
    """Return the layout of this host as this process sees it."""
    return layout_of(
        mountinfo.text(),
        Path("/proc/self/cgroup").read_text("utf-8", "surrogateescape"),
    )


def writable_problems(layout: CgroupLayout) -> list[str]:
    """Return the delegated directories this process cannot use; empty when all is well."""
    wanted = ("",) if layout.version == 2 else REQUIRED_V1
    problems = [f"no controller {c}" for c in wanted if c not in layout.mounts]
    bases = {mount + layout.base for mount in layout.mounts.values()}
    problems += [base for base in sorted(bases) if not os.access(base, os.W_OK | os.X_OK)]
    if layout.version == 2 and not problems:
        offered = _words(Path(layout.mounts[""] + layout.base) / "cgroup.controllers")
        problems += [f"controller {c} not delegated" for c in REQUIRED_V2 if c not in offered]
    return problems


def outside(layout: CgroupLayout, own_groups: str) -> bool:
    """Return whether this process may not move into the delegated group by itself (v2 only).

    The kernel asks for write access to the common ancestor (cgroup-v2.rst, delegation containment).
    """
    if layout.version == 1:
        return False
    own = next((line[3:] for line in own_groups.splitlines() if line.startswith("0::")), "/")
    return own != layout.base and not own.startswith(f"{layout.base}/")


def create_node(layout: CgroupLayout, node: str) -> None:
    """Make the node's directories and let controllers reach instances; safe to repeat.

    On v2 this moves the calling process into a leaf of its own first. Raises OSError.
    """
    if layout.version == 2:
        _create_v2(layout, node)
    else:
        _create_v1(layout, node)
    layout.agent_directory(node).mkdir(exist_ok=True)


def _create_v1(layout: CgroupLayout, node: str) -> None:
    for directory in layout.node_directories(node):
        directory.mkdir(exist_ok=True)
    if "cpuset" in layout.mounts:
        directory = layout.directory("cpuset", node)
        # A v1 cpuset starts empty and takes no process until it has both (cpusets.rst).
        for name in ("cpuset.cpus", "cpuset.mems"):
            if not (directory / name).read_text("ascii").strip():
                (directory / name).write_text((directory.parent / name).read_text("ascii"))
        (directory / "cgroup.clone_children").write_text("1")


def _create_v2(layout: CgroupLayout, node: str) -> None:
    base = Path(layout.mounts[""] + layout.base)
    leaf = base / RUN_GROUP
    leaf.mkdir(exist_ok=True)
    join(leaf, os.getpid())
    directory = base / node
    directory.mkdir(exist_ok=True)
    for parent in (base, directory):
        for controller in _words(parent / "cgroup.controllers") & set(_V2):
            (parent / "cgroup.subtree_control").write_text(f"+{controller}")


def join(group: Path, pid: int) -> None:
    """Move a process into a group; raises OSError."""
    (group / "cgroup.procs").write_text(str(pid))


def processes(group: Path) -> list[int]:
    """Return the pids in one group (not below it); empty if the group is gone."""
    with suppress(FileNotFoundError, NotADirectoryError):
        # A pid of a process outside our pid namespace reads as 0.
        return [pid for pid in map(int, (group / "cgroup.procs").read_text().split()) if pid]
    return []


def subtree(roots: Iterable[Path]) -> list[Path]:
    """Return all groups at and below `roots`, deepest first; missing ones are left out."""
    found = [Path(top) for root in roots for top, _, _ in os.walk(root)]
    return sorted(found, key=lambda path: len(path.parts), reverse=True)


def save(layout: CgroupLayout, path: Path) -> None:
    """Write the layout where the worker finds it, whole or not at all."""
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(asdict(layout)))
    fresh.replace(path)


def load(path: Path) -> CgroupLayout:
    """Read a layout written by `save`; raises OSError, or KeyError and ValueError if damaged."""
    data = json.loads(path.read_text("utf-8"))
    return CgroupLayout(data["version"], data["hybrid"], data["base"], data["mounts"])


def _words(path: Path) -> set[str]:
    return set(path.read_text("ascii").split())
