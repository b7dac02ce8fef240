"""What of ours is left on this host, as JSON: `{}` and exit 0 when nothing is.

    python -m tests.leak [--run DIR] [--node NAME] [--within SECONDS]

With no agent alive on the run directory everything counts: processes, cgroups, mounts, network
links, loop devices, files, data on slots. While one is alive only what belongs to an instance
counts: its own processes, anchors, and snapshots of imported images do not. What another living
agent on the host has is never counted. Root only: nobody else sees enough. What the agent's user
wrote is only looked at: it chooses no program and nothing that is changed.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.core.anchor import ANCHOR_PREFIX
from agent.linux.process import parent_of
from agent.rootless import cgroup, lock, preflight, settings

DEFAULT_RUN = Path("/run/kindling")
# Not the one of an agent's configuration: who may write that would choose what root executes.
CTR = Path("/usr/lib/kindling/bin/ctr")
AS_USER = (
    "setpriv",
    f"--reuid={preflight.USER}",
    f"--regid={preflight.USER}",
    "--clear-groups",
)
# The second directory is that of setup/host.sh --dev.
SLOTS = (Path("/var/lib/kindling/slots"), Path("/var/lib/kindling-test/slots"))
# Where systemd puts the process of a reload, below a unit that it has delegated.
SYSTEMD_GROUP = ".control"
# Kept by images, not by instances (agent/containerd/snapshots.py; not imported, so that this
# program runs on any Python without packages).
VIEW_PREFIX = "view-"
# Names of links the network room makes; on the host none of them has any business.
LINK = re.compile(r"kd\d+|kdp\d+")
# How many times `network.warm_slots` the pool keeps after a burst (agent/network/slots.py).
KEEP_FACTOR = 4
# Directories below <run> with one entry per instance.
PER_INSTANCE = ("instances", "fifo", "rootfs", "etc")
# What overlayfs leaves in an empty, unmounted work directory.
WORK = {"work", "index"}

# What `ctr` is asked of a living agent's containerd.
LISTS = {
    "containers": ("containers", "ls", "-q"),
    "tasks": ("tasks", "ls", "-q"),
    "snapshots": ("snapshots", "ls"),
    "leases": ("leases", "ls", "-q"),
}

Leaks = dict[str, list[str]]


@dataclass(frozen=True)
class Agent:
    """One agent: where it runs, what its node is called, and its pid if it is alive."""

    run: Path
    node: str
    pid: int | None
    config: dict[str, Any]

    @property
    def alive(self) -> bool:
        return self.pid is not None


def leaks(
    run: Path = DEFAULT_RUN, node: str | None = None, within_s: float = 0.0, *, apart: bool = False
) -> Leaks:
    """Return what is left, by kind; looks again for `within_s` seconds while something is.

    `apart` leaves out processes and cgroups that have nothing to do with this run directory and
    node: for tests on a host where somebody else works as the same user.
    """
    deadline = time.monotonic() + within_s
    found = look(run, node, apart=apart)
    while found and time.monotonic() < deadline:
        time.sleep(0.1)
        found = look(run, node, apart=apart)
    return found


def look(run: Path, node: str | None, *, apart: bool) -> Leaks:
    """Look once."""
    agent = find_agent(run, node)
    layout = find_layout(agent)
    running = our_processes()  # before there is a `ctr` among them
    # One takes far longer to start than to ask: they start side by side.
    with ThreadPoolExecutor(len(LISTS)) as asking:
        asked = {name: asking.submit(ctr, agent, *LISTS[name]) for name in LISTS if agent.alive}
        containers = set(asked["containers"].result()) if agent.alive else set()
        found = {
            "processes": processes(agent, layout, containers, running),
            "cgroups": groups(agent, layout),
            "mounts": mounts(agent),
            "links": links(),
            "loop_devices": loop_devices(),
            "files": files(agent),
            "slots": slots(agent),
        }
        if apart:
            found = {kind: list(only(agent, layout, things)) for kind, things in found.items()}
        if agent.alive:
            found["containers"] = sorted(name for name in containers if not is_anchor(name))
            tasks = asked["tasks"].result()
            found["tasks"] = [name for name in tasks if not is_anchor(name)]
            found["snapshots"] = snapshots(asked["snapshots"].result())
            found["leases"] = asked["leases"].result()
            found["networks"] = networks(agent)
    return {kind: things for kind, things in found.items() if things}


def find_agent(run: Path, node: str | None) -> Agent:
    pid = lock.holder(run)
    config: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        config = json.loads(text_of(run / settings.CONFIG_NAME))
    if node is None:
        node = config["node"]["name"] if config else default_node()
    return Agent(run, node, pid, config if pid is not None else {})


def text_of(path: Path) -> str:
    """Return what a file of the user's holds; raises OSError for a link, and never waits."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(path, flags), encoding="utf-8") as file:
        return file.read()


def find_layout(agent: Agent) -> cgroup.CgroupLayout:
    """Return where agents' cgroups are: as this one found them, or where they would be."""
    with suppress(OSError, ValueError, KeyError):
        return cgroup.load(agent.run / settings.CGROUP_NAME)
    found = cgroup.detect()
    assert found is not None, "this host has no cgroups"
    if found.version == 1:
        return found
    # On v2 `detect` names the group of whoever asks; the agent's is its unit's.
    unit = "/system.slice/kindling.service"
    mount = found.mounts[""]
    base = unit if Path(mount + unit).is_dir() else cgroup.DELEGATED
    return cgroup.CgroupLayout(2, False, base, found.mounts)


def default_node() -> str:
    with suppress(OSError, KeyError, ValueError):
        return str(tomllib.loads(Path("/etc/kindling/kindling.toml").read_text())["node"]["name"])
    return "node"


def only(agent: Agent, layout: cgroup.CgroupLayout, things: list[str]) -> Iterable[str]:
    """Keep what names this agent's run directory or its node's cgroup."""
    group = layout.oci_prefix(agent.node)
    for thing in things:
        known = thing
        pid = thing.split()[0]
        if pid.isdigit():
            with suppress(OSError):
                known += Path(f"/proc/{pid}/environ").read_bytes().decode("utf-8", "replace")
                known += Path(f"/proc/{pid}/cgroup").read_text()
        if str(agent.run) in known or group in known or "slots" in known:
            yield thing


def is_anchor(name: str) -> bool:
    return name.startswith(ANCHOR_PREFIX)


# Processes and cgroups


def node_groups(layout: cgroup.CgroupLayout) -> list[Path]:
    """Return the node directories, in the hierarchy that has the agents' own groups."""
    base = layout.agent_directory("any").parent.parent
    return [entry for entry in base.iterdir() if entry.is_dir()] if base.is_dir() else []


def other_nodes(agent: Agent, layout: cgroup.CgroupLayout) -> set[str]:
    """Return the nodes of other agents that are alive: each locks its group's directory."""
    nodes = {group.name for group in node_groups(layout) if lock.is_held(group)}
    # A living agent of our node's name, but not on our run directory, is another one.
    return nodes - ({agent.node} if agent.alive else set())


def processes(
    agent: Agent,
    layout: cgroup.CgroupLayout,
    containers: set[str],
    running: list[tuple[int, int]],
) -> list[str]:
    excused: set[int] = set()
    for node in other_nodes(agent, layout):
        inside = members([layout.agent_directory(node).parent])
        excused |= inside | parents(inside)
    if agent.alive:
        group = layout.agent_directory(agent.node)
        own = set(cgroup.processes(group))
        anchors = members(group.parent.glob(f"{ANCHOR_PREFIX}*"))
        excused |= own | parents(own) | anchors
        excused -= {pid for pid in own if is_forgotten_shim(command_of(pid), containers)}
    return [
        f"{pid} uid {uid}: {command_of(pid)[:120]}"
        for pid, uid in running
        if pid not in excused and os.path.exists(f"/proc/{pid}")
    ]


def members(groups: Iterable[Path]) -> set[int]:
    return {pid for group in cgroup.subtree(groups) for pid in cgroup.processes(group)}


def parents(inside: set[int]) -> set[int]:
    """Return the `kindling run` of these processes: it stays outside their group."""
    outside = {parent_of(pid) for pid in inside} - inside
    return {pid for pid in outside if "agent.rootless.parent" in command_of(pid)}


def is_forgotten_shim(command: str, containers: set[str]) -> bool:
    words = command.split()
    if not words or not words[0].endswith("containerd-shim-runc-v2") or "-id" not in words:
        return False
    return words[words.index("-id") + 1] not in containers


def our_processes() -> list[tuple[int, int]]:
    spans = our_uids()
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError):
                with open(f"/proc/{name}/status", encoding="utf-8", errors="replace") as file:
                    fields = dict(line.split(":", 1) for line in file if ":" in line)
                uid = int(fields["Uid"].split()[0])
                if any(uid in span for span in spans) and fields["State"].split()[0] != "Z":
                    found.append((int(name), uid))
    return sorted(found)


def our_uids() -> list[range]:
    spans = []
    with suppress(KeyError):
        uid = pwd.getpwnam(preflight.USER).pw_uid
        spans.append(range(uid, uid + 1))
    with suppress(FileNotFoundError):
        for line in Path("/etc/subuid").read_text().splitlines():
            owner, first, size = line.split(":")
            if owner == preflight.USER:
                spans.append(range(int(first), int(first) + int(size)))
    return spans


def command_of(pid: int) -> str:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    return ""


def groups(agent: Agent, layout: cgroup.CgroupLayout) -> list[str]:
    others = other_nodes(agent, layout)
    found = []
    for base in sorted({Path(mount + layout.base) for mount in layout.mounts.values()}):
        for node in sorted(base.glob("*/")):
            if node.name in others or node.name in (cgroup.RUN_GROUP, SYSTEMD_GROUP):
                continue
            if node.name == agent.node and agent.alive:
                found += [str(group) for group in node.glob("*/") if not is_own_group(group.name)]
            else:
                found.append(str(node))
    return found


def is_own_group(name: str) -> bool:
    return name == cgroup.AGENT_GROUP or is_anchor(name)


# Mounts, links, devices


def mounts(agent: Agent) -> list[str]:
    found = [f"host: {point}" for point in mount_points("self") if below(point, agent.run)]
    if agent.alive:
        rootfs = agent.run / "rootfs"
        inside = mount_points(str(pids(agent).get("supervise", "self")))
        found += [f"namespace: {point}" for point in inside if below(point, rootfs)]
    return found


def mount_points(pid: str) -> list[str]:
    text = Path(f"/proc/{pid}/mountinfo").read_text("utf-8", "replace")
    return [line.split()[4] for line in text.splitlines()]


def below(point: str, directory: Path) -> bool:
    return point.startswith(f"{directory}/")


def links() -> list[str]:
    return [name for name in sorted(os.listdir("/sys/class/net")) if LINK.fullmatch(name)]


def loop_devices() -> list[str]:
    """Return loop devices of ours that are not a mounted slot."""
    mounted = {
        line.split(" - ")[1].split()[1]
        for line in Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines()
    }
    found = []
    for backing in sorted(Path("/sys/block").glob("loop*/loop/backing_file")):
        device = f"/dev/{backing.parts[3]}"
        file = backing.read_text().strip()
        slot = any(file.startswith(f"{directory}/") for directory in SLOTS)
        # The kernel's mount table names the image or the device, as mount(8) found it.
        if "kindling" in file and not (slot and mounted & {device, file}):
            found.append(f"{device}: {file}")
    return found


# Files and slots


def files(agent: Agent) -> list[str]:
    if not agent.alive:
        return sorted(str(path) for path in agent.run.glob("*"))
    return sorted(
        str(path)
        for name in PER_INSTANCE
        for path in (agent.run / name).glob("*")
        if not is_anchor(path.name)
    )


def slots(agent: Agent) -> list[str]:
    """Return slots that hold data; those of another living agent are its own matter."""
    directories = [Path(agent.config["paths"]["slots"])] if agent.config else list(SLOTS)
    found = []
    for directory in directories:
        if not agent.alive and lock.is_held(directory / "slots.json"):
            continue
        for slot in sorted(directory.glob("*/*/")):
            upper = list((slot / "upper").glob("*"))
            work = [path for path in (slot / "work").glob("*") if holds_data(path)]
            if upper or work:
                found.append(f"{slot}: {[path.name for path in (*upper, *work)][:5]}")
    return found


def holds_data(path: Path) -> bool:
    return path.name not in WORK or any(path.iterdir())


# What a living agent holds


def pids(agent: Agent) -> dict[str, int]:
    with suppress(OSError, ValueError):
        return dict(json.loads(text_of(agent.run / settings.PIDS_NAME)))
    return {}


def ctr(agent: Agent, *arguments: str) -> list[str]:
    """Return the lines of the private `ctr`, run as the user, against the agent's containerd."""
    address = agent.run / "containerd" / "containerd.sock"
    done = subprocess.run(
        # setpriv, not `user=`: that forks without vfork, and gRPC's fork handlers in a test process
        # may break the child.
        [*AS_USER, CTR, "--address", address, "--namespace", "kindling", *arguments],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"tests.leak: ctr {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.splitlines()


def snapshots(listed: list[str]) -> list[str]:
    """Return snapshots that belong to an instance: neither layers of images nor their views."""
    found = []
    for line in listed[1:]:
        fields = line.split()
        if fields[-1] != "Committed" and not fields[0].startswith((VIEW_PREFIX, ANCHOR_PREFIX)):
            found.append(f"{fields[0]} ({fields[-1]})")
    return found


def networks(agent: Agent) -> list[str]:
    """Return how many network namespaces the worker holds beyond its pool, as one line."""
    worker = pids(agent).get("worker", 0)
    held = set()
    for entry in Path(f"/proc/{worker}/fd").glob("*"):
        # One may be closed meanwhile, or a directory deeper than a path may be long.
        with suppress(OSError):
            target = os.readlink(entry)
            if target.startswith("net:"):
                held.add(target)
    held -= {os.readlink("/proc/self/ns/net")}
    # One more is the detached namespace itself.
    pool = max(agent.config["network"]["warm_slots"] * KEEP_FACTOR, 1) + 1
    if len(held) <= pool:
        return []
    return [f"{len(held)} network namespaces held, the pool has at most {pool}"]


def main() -> int:
    parser = argparse.ArgumentParser(description="What of Kindling is left on this host.")
    parser.add_argument("--run", type=Path, default=DEFAULT_RUN, help="an agent's run directory")
    parser.add_argument("--node", help="its node name, where it is not running")
    parser.add_argument("--within", type=float, default=0.0, help="seconds to wait for nothing")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        print("tests.leak: needs root: run it with sudo", file=sys.stderr)
        return 2
    found = leaks(arguments.run, arguments.node, arguments.within)
    print(json.dumps(found, indent=1))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
