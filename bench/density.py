"""Many idle instances at once: what they cost in memory, how fast they start, how fast they return.

Starts N static instances, weighs every process of the node by its proportional set size as they
grow more, then kills
the worker with SIGKILL under a client that never stops calling, and reads from the supervisor's log
when the next one served. The peer is plain containerd with a shim per container: its shims are
weighed the same way, and its starts run as many at a time. Layers are tmpfs, so that N is not
bounded by the slots of this host; the function's own processes are weighed apart.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.core.anchor import ANCHOR_PREFIX
from agent.rootless import cgroup
from bench import drawing, house, node, probe
from bench.figures import Goal, number, table
from bench.options import Options
from bench.report import Report
from tests.integration.running import free_ports

QUICK, FULL = 100, 300
PEERS = 24
WIDTH = 8  # starts at a time, as runtime.parallel_starts has it
SETTLE_S = 3.0
ENOUGH_MB = 1 << 20  # admission counts memory limits, which idle instances do not use
NEEDS = ("crun", "runc")
READY = re.compile(r"worker is ready after (\d+) ms")
NAME = "many"
STEPS = 6  # functions that the instances are of, and points in the picture


def run(options: Options) -> Report:
    """Start, weigh, kill the worker, and do what can be done of it with plain containerd."""
    count = options.count(quick=QUICK, whole=FULL)
    with node.running({"limits": {"memory_mb": ENOUGH_MB}}) as kindling:
        before, free_before = weigh(node.NODE), available_kb()
        names = [f"{NAME}{step}" for step in range(STEPS)]
        start_s, points = fill(kindling, names, count, before)
        ready = Counter(kindling.states().values())["READY"]
        time.sleep(SETTLE_S)
        after, free_after = weigh(node.NODE), available_kb()
        rss_kb = status_kb(kindling.agent.pids["worker"], "VmRSS")
        comeback = kill_worker(kindling, ready)
        mark = time.perf_counter()
        for name in names:
            kindling.remove(name)
        remove_s = time.perf_counter() - mark
    plain = plain_containerd()
    return report(
        {
            "instances": ready,
            "start_s": start_s,
            "starts_per_s": ready / start_s,
            "remove_s": remove_s,
            "worker_rss_mb": rss_kb / 1024,
            "kb_per_instance": {
                kind: (after[kind] - before[kind]) / ready for kind in sorted({*after, *before})
            },
            "all_kb_per_instance": (free_before - free_after) / ready,
            "mb_over_instances": points,
            **comeback,
            **plain,
        }
    )


def fill(
    kindling: node.Node, names: Sequence[str], count: int, before: Mapping[str, int]
) -> tuple[float, list[tuple[float, float]]]:
    """Start `count` instances, as many of each function, and weigh after each.

    Returns the seconds that the starts took and (instances, MB beyond them) points.
    """
    took_s, started = 0.0, 0
    points = [(0.0, 0.0)]
    for step, name in enumerate(names):
        each = count * (step + 1) // len(names) - started
        mark = time.perf_counter()
        scaling = {"min": each, "max": each, "freeze_after_ms": -1}
        kindling.deploy(name, wait=True, memory_mb=128, concurrency=100, scaling=scaling)
        took_s += time.perf_counter() - mark
        started += each
        points.append((float(started), beyond(weigh(node.NODE), before)))
    return took_s, points


def beyond(now: Mapping[str, int], before: Mapping[str, int]) -> float:
    """Return the MB that came since `before` beside the functions' own processes."""
    kinds = ({*now} | {*before}) - {"function"}
    return sum(now.get(kind, 0) - before.get(kind, 0) for kind in kinds) / 1024


def weigh(name: str) -> dict[str, int]:
    """Return the proportional set size of a node's processes in kB, by what they are."""
    layout = cgroup.detect()
    assert layout is not None
    found: dict[str, int] = defaultdict(int)
    controller = "" if layout.version == 2 else "pids"
    for group in layout.directory(controller, name).iterdir():
        if group.is_dir():
            for pid in cgroup.processes(group):
                found[kind_of(group.name, command_of(pid))] += pss_kb(pid)
    return found


def kind_of(group: str, command: str) -> str:
    """Return what a process is, by its group and command line."""
    if group == cgroup.AGENT_GROUP:
        for kind, sign in (
            ("shims", "containerd-shim"),
            ("worker", " worker"),
            ("containerd", "containerd "),
        ):
            if sign in f"{command} ":
                return kind
        return "house"
    if group.startswith(ANCHOR_PREFIX):
        return "anchors"
    return "init" if command.startswith("/dev/init") else "function"


def command_of(pid: int) -> str:
    """Return a process's command line, empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def pss_kb(pid: int) -> int:
    """Return a process's proportional set size, 0 when it is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")), 0)


def status_kb(pid: int, name: str) -> int:
    """Return one of a process's figures from proc(5) status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def available_kb() -> int:
    """Return the memory the kernel could still give out."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))


class Caller(threading.Thread):
    """Calls again and again over new connections; counts how it went, and the longest wait."""

    def __init__(self, port: int, path: str) -> None:
        super().__init__(daemon=True)
        self.outcomes: Counter[str] = Counter()
        self.longest_ms = 0.0
        self._port, self._path = port, path
        self._done = threading.Event()

    def run(self) -> None:
        """Call until told to end."""
        while not self._done.is_set():
            mark = time.perf_counter()
            self.outcomes[self._once()] += 1
            self.longest_ms = max(self.longest_ms, (time.perf_counter() - mark) * 1000)
            time.sleep(0.002)

    def _once(self) -> str:
        try:
            with socket.create_connection(("127.0.0.1", self._port), 30) as sock:
                sock.sendall(probe.request(self._path))
                reply = sock.recv(4096)
        except ConnectionRefusedError:
            return "refused"
        except OSError:
            return "cut"
        if not reply:
            return "cut"
        return "answered" if reply.startswith(b"HTTP/1.1 200") else "error"

    def end(self) -> None:
        """Stop after the call under way."""
        self._done.set()
        self.join(60)


def kill_worker(kindling: node.Node, ready: int) -> dict[str, Any]:
    """Kill the worker with SIGKILL under load; return how the next one took over."""
    agent = kindling.agent
    first = READY.findall(agent.log())
    caller = Caller(kindling.port, f"/http/{NAME}0/")
    caller.start()
    time.sleep(0.5)
    os.kill(agent.pids["worker"], signal.SIGKILL)
    agent.wait_until(lambda: len(READY.findall(agent.log())) > len(first), 60, "the next worker")
    time.sleep(0.5)
    caller.end()
    return {
        "first_worker_ready_ms": int(first[0]),
        "next_worker_ready_ms": int(READY.findall(agent.log())[-1]),
        "adopted": Counter(kindling.states().values())["READY"],
        "not_adopted": ready - Counter(kindling.states().values())["READY"],
        "calls": dict(caller.outcomes),
        "longest_call_ms": caller.longest_ms,
    }


def plain_containerd() -> dict[str, Any]:
    """Weigh and time containers of a plain containerd, a shim each."""
    with house.opened() as peers:
        before = after = weigh(house.NODE)
        ids = [f"plain{number}" for number in range(PEERS)]
        took_ms, points = 0.0, [(0.0, 0.0)]
        for first in range(0, PEERS, PEERS // 2):
            some = ids[first : first + PEERS // 2]
            took = peers.ask("plain_burst", ids=some, ports=free_ports(len(some)), width=WIDTH)
            took_ms += took["ms"]
            time.sleep(SETTLE_S / 2)
            after = weigh(house.NODE)
            points.append((float(first + len(some)), beyond(after, before)))
        for id in ids:
            peers.ask("plain_end", id=id)
    return {
        "plain_starts_per_s": PEERS / took_ms * 1000,
        "plain_mb_over_instances": points,
        "plain_shim_kb_per_container": (after["shims"] - before["shims"]) / PEERS,
    }


def report(found: dict[str, Any]) -> Report:
    """Put the figures of a run together."""
    each = found["kb_per_instance"]
    ours_mb = sum(kb for kind, kb in each.items() if kind != "function") / 1024
    plain_mb = found["plain_shim_kb_per_container"] / 1024
    faster = found["starts_per_s"] / found["plain_starts_per_s"]
    refused = found["calls"].get("refused", 0)
    goals = [
        Goal("refused connections across a kill -9", refused, 0),
        Goal("instances not adopted", found["not_adopted"], 0),
        Goal("longest call across a kill -9, s", found["longest_call_ms"] / 1000, 2),
        Goal("next worker serves, s (final)", found["next_worker_ready_ms"] / 1000, 1),
        Goal("worker RSS, MB (final)", found["worker_rss_mb"], 95),
        Goal("MB per idle instance beyond the function (final)", ours_mb, 0.3),
        Goal("T starts per second / parallel ctr run (final)", faster, 4, at_most=False),
    ]
    calls = ", ".join(f"{n} {how}" for how, n in sorted(found["calls"].items()))
    lines = [
        f"{found['instances']} instances ready in {found['start_s']:.1f} s "
        f"({number(found['starts_per_s'])} a second; {WIDTH} parallel ctr run: "
        f"{number(found['plain_starts_per_s'])}), removed in {found['remove_s']:.1f} s",
        f"worker RSS {found['worker_rss_mb']:.0f} MB",
        "",
        "memory per instance, proportional set size:",
        *table({kind: [kb] for kind, kb in each.items()}, "kB"),
        f"beyond the function {ours_mb:.2f} MB; plain containerd's shim alone {plain_mb:.2f} MB",
        f"all that the kernel gave out, function and kernel memory too: "
        f"{found['all_kb_per_instance'] / 1024:.2f} MB",
        "",
        f"kill -9 of the worker: the next one served {found['next_worker_ready_ms']} ms after its "
        f"start with {found['adopted']} adopted (the first one, with none: "
        f"{found['first_worker_ready_ms']} ms)",
        f"calls meanwhile: {calls}; the longest took {found['longest_call_ms']:.0f} ms",
    ]
    title = f"density: {found['instances']} idle instances"
    lines_drawn = {
        "Kindling": found["mb_over_instances"],
        "plain containerd": found["plain_mb_over_instances"],
    }
    shown = "Memory of the node beyond the functions themselves, proportional set size"
    x, y = drawing.Axis("idle instances"), drawing.Axis("MB")
    picture = drawing.curves("memory", shown, lines_drawn, x, y)
    figures = found | {"mb_per_instance": ours_mb}
    return Report(title, lines, figures, {}, goals, pictures=[picture])
