"""Warm calls through a real agent against nginx, both in front of the very same container.

The proxy (the worker's threads, or nginx) is pinned to CPU 0; the function and wrk to CPU 1. nginx
and its wrk run inside the agent's detached network namespace, because only from there can anybody
reach a container: both proxies then have wrk on their loopback before them and the container's veth
behind. Slices of a second alternate, so that both see the machine in the same mood; CPU time per
call is told beside, because neighbours on a shared machine take time but not CPU time.
`bench.warm` is the same for the gateway alone, with a backend of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.rootless import cgroup
from bench import node
from bench.figures import Goal, Ratio, ratio, summary, table
from bench.options import Options
from bench.report import Report
from bench.warm import CONNECTIONS, LOAD_CPU, PROXY_CPU, free_port, pinned, wrk
from tests.integration.running import RunningAgent

CONTRACTS = ("fc", "vercel")
NAME = "f"  # wrk asks for /http/f/
NGINX = """
worker_processes 1; daemon off; pid {dir}/nginx.pid; error_log {dir}/nginx.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 100000000;
  upstream f {{ server {backend}; keepalive 64; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port};
    location /http/f/ {{
      proxy_pass http://f/; proxy_http_version 1.1; proxy_set_header Connection "";
    }}
  }}
}}
"""

Samples = dict[str, list[float]]
TICK_US = 1e6 / os.sysconf("SC_CLK_TCK")
PROXIES = ("nginx", "kindling")
SECONDS = 1  # wrk knows whole seconds only
RARELY = 4  # how many rounds share one look at everything but requests per second


@dataclass(slots=True)
class Measured:
    """Samples by proxy: requests per second at 32 connections with the CPU time each call took,
    and p50 in microseconds at one connection."""

    rps: Samples = field(default_factory=lambda: defaultdict(list))
    cpu_us: Samples = field(default_factory=lambda: defaultdict(list))
    p50: Samples = field(default_factory=lambda: defaultdict(list))


def run(options: Options) -> Report:
    """Measure each contract in turn."""
    rounds = options.rounds or (8 if options.quick else 28)
    samples: dict[str, Measured] = {}
    with node.running() as kindling:
        for contract in CONTRACTS:
            kindling.deploy(
                NAME,
                wait=True,
                contract=contract,
                concurrency=100,
                cpu_millis=2000,
                scaling={"min": 1, "max": 1},
            )
            samples[contract] = measure(kindling, contract, rounds)
            kindling.remove(NAME)
    return report(samples)


def measure(kindling: node.Node, contract: str, rounds: int) -> Measured:
    """Measure both proxies, and the function without any, in front of one instance."""
    agent = kindling.agent
    (instance,) = kindling.states()
    within = inside_network(agent)
    backend, port = address_of(agent, instance), free_port()
    found = Measured()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        config = folder / "nginx.conf"
        config.write_text(NGINX.format(dir=folder, backend=backend, port=port))
        nginx = shutil.which("nginx") or "/usr/sbin/nginx"
        stack.enter_context(pinned(PROXY_CPU, *within, nginx, "-c", str(config), "-p", str(folder)))
        pin(agent.tree(), PROXY_CPU)
        pin(processes_of(instance), LOAD_CPU)
        host, _, container_port = backend.partition(":")
        ways: dict[str, dict[str, Any]] = {
            "nginx": {"port": port, "within": within},
            "kindling": {"port": kindling.port},
            "direct": {"port": int(container_port), "host": host, "within": within},
        }
        wait_for_file(folder / "nginx.pid")
        pids = {"nginx": nginx_worker(folder), "kindling": agent.pids["worker"]}
        for way in ways.values():
            wrk(seconds=SECONDS, **way)
        for number in range(rounds):
            for name in PROXIES if number % 2 else reversed(PROXIES):
                before = cpu_us(pids[name])
                rps = wrk(seconds=SECONDS, **ways[name])["rps"]
                found.rps[name].append(rps)
                found.cpu_us[name].append((cpu_us(pids[name]) - before) / (rps * SECONDS))
            if number % RARELY == 0:
                found.rps["direct"].append(wrk(seconds=SECONDS, **ways["direct"])["rps"])
                for name, way in ways.items():
                    found.p50[name].append(wrk(seconds=SECONDS, connections=1, **way)["p50_us"])
    return found


def cpu_us(pid: int) -> float:
    """Return the CPU time a process has used, all threads, in microseconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_US


def nginx_worker(folder: Path) -> int:
    """Return the pid of nginx's one worker."""
    master = (folder / "nginx.pid").read_text().strip()
    (worker,) = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    return int(worker)


def wait_for_file(path: Path) -> None:
    """Wait for the pid file that nginx writes once it listens."""
    deadline = time.monotonic() + 10
    while not path.exists():
        if time.monotonic() >= deadline:
            raise SystemExit(f"nginx did not start: {path.with_suffix('.log').read_text()}")
        time.sleep(0.02)


def inside_network(agent: RunningAgent) -> list[str]:
    """Return the beginning of a command that runs in the agent's detached network namespace."""
    seen_by_worker = Path(f"/proc/{agent.pids['worker']}/root")
    netns = seen_by_worker / agent.run.relative_to("/") / "rootlesskit" / "netns"
    return ["nsenter", f"--net={netns}"]


def address_of(agent: RunningAgent, instance: str) -> str:
    """Return address and port of an instance, from its record."""
    record = json.loads((agent.run / "instances" / f"{instance}.json").read_text())
    return f"{record['address']}:{record['port']}"


def processes_of(instance: str) -> list[int]:
    """Return the pids in an instance's group."""
    layout = cgroup.detect()
    assert layout is not None
    controller = "" if layout.version == 2 else "pids"
    return cgroup.processes(layout.directory(controller, node.NODE) / instance)


def pin(pids: Sequence[int], cpu: int) -> None:
    """Pin every thread of some processes to one CPU."""
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), {cpu})


def report(samples: dict[str, Measured]) -> Report:
    """Put the figures of a run together."""
    lines: list[str] = []
    ratios: dict[str, Ratio] = {}
    goals: list[Goal] = []
    kept: dict[str, list[float]] = {}
    for contract, found in samples.items():
        rps, p50 = found.rps, found.p50
        lines += [
            "",
            f"contract {contract}, wrk {CONNECTIONS} connections:",
            *table(rps, "requests per second"),
            "CPU time of the proxy per call:",
            *table(found.cpu_us, "us"),
            "one connection, p50:",
            *table(p50, "us"),
        ]
        one = ratio(rps["kindling"], rps["nginx"])
        medians = {name: summary(times).median for name, times in p50.items()}
        added = {name: medians[name] - medians["direct"] for name in ("nginx", "kindling")}
        lines.append(f"added: nginx {added['nginx']:.0f} us, kindling {added['kindling']:.0f} us")
        ratios[f"{contract}: kindling / nginx, req/s"] = one
        ratios[f"{contract}: kindling / nginx, calls per CPU second"] = ratio(
            found.cpu_us["nginx"], found.cpu_us["kindling"]
        )
        goals += [
            Goal(f"L5 {contract} req/s / nginx (this issue)", one.of_medians, 0.5, at_most=False),
            Goal(f"L5 {contract} req/s / nginx (final)", one.of_medians, 0.8, at_most=False),
        ]
        if added["nginx"] > 0:
            more = added["kindling"] / added["nginx"]
            goals.append(Goal(f"L5 {contract} added p50 / nginx (final)", more, 1.5))
        for what, by_name in (("rps", rps), ("p50_us", p50), ("cpu_us", found.cpu_us)):
            kept |= {f"{contract} {name} {what}": values for name, values in by_name.items()}
    return Report(
        title=f"warm calls through a real agent: proxy on CPU {PROXY_CPU}, function and wrk on "
        f"CPU {LOAD_CPU}",
        lines=lines[1:],
        figures={name: summary(found) for name, found in kept.items()},
        ratios=ratios,
        goals=goals,
        samples=kept,
    )
