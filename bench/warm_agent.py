"""Warm calls through a real agent against nginx, both in front of the very same container.

The proxy (the worker's threads, or nginx) is pinned to CPU 0; the function and wrk to CPU 1. nginx
and its wrk run inside the agent's detached network namespace, because only from there can anybody
reach a container: both proxies then have wrk on their loopback before them and the container's veth
behind. Runs alternate; `bench.warm` is the same for the gateway alone, with a backend of its own.
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


def run(options: Options) -> Report:
    """Measure each contract in turn."""
    rounds = options.rounds or (3 if options.quick else 7)
    seconds = 2 if options.quick else 4  # wrk knows whole seconds only
    samples: dict[str, tuple[Samples, Samples]] = {}
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
            samples[contract] = measure(kindling, contract, rounds, seconds)
            kindling.remove(NAME)
    return report(samples)


def measure(
    kindling: node.Node, contract: str, rounds: int, seconds: int
) -> tuple[Samples, Samples]:
    """Return requests per second at 32 connections and p50 in microseconds at one, by proxy."""
    agent = kindling.agent
    (instance,) = kindling.states()
    within = inside_network(agent)
    backend, port = address_of(agent, instance), free_port()
    rps: Samples = defaultdict(list)
    p50: Samples = defaultdict(list)
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
        for way in ways.values():
            wrk(seconds=1, **way)
        for _ in range(rounds):
            for name, way in ways.items():
                rps[name].append(wrk(seconds=seconds, **way)["rps"])
                p50[name].append(wrk(seconds=max(1, seconds // 2), connections=1, **way)["p50_us"])
    return rps, p50


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


def report(samples: dict[str, tuple[Samples, Samples]]) -> Report:
    """Put the figures of a run together."""
    lines: list[str] = []
    ratios: dict[str, Ratio] = {}
    goals: list[Goal] = []
    kept: dict[str, list[float]] = {}
    for contract, (rps, p50) in samples.items():
        lines += [
            "",
            f"contract {contract}, wrk {CONNECTIONS} connections:",
            *table(rps, "requests per second"),
            "one connection, p50:",
            *table(p50, "us"),
        ]
        one = ratio(rps["kindling"], rps["nginx"])
        medians = {name: summary(found).median for name, found in p50.items()}
        added = {name: medians[name] - medians["direct"] for name in ("nginx", "kindling")}
        lines.append(f"added: nginx {added['nginx']:.0f} us, kindling {added['kindling']:.0f} us")
        ratios[f"{contract}: kindling / nginx, req/s"] = one
        goals += [
            Goal(f"L5 {contract} req/s / nginx (this issue)", one.of_medians, 0.5, at_most=False),
            Goal(f"L5 {contract} req/s / nginx (final)", one.of_medians, 0.8, at_most=False),
        ]
        if added["nginx"] > 0:
            more = added["kindling"] / added["nginx"]
            goals.append(Goal(f"L5 {contract} added p50 / nginx (final)", more, 1.5))
        for name in rps:
            kept |= {f"{contract} {name} rps": rps[name], f"{contract} {name} p50_us": p50[name]}
    return Report(
        title=f"warm calls through a real agent: proxy on CPU {PROXY_CPU}, function and wrk on "
        f"CPU {LOAD_CPU}",
        lines=lines[1:],
        figures={name: summary(found) for name, found in kept.items()},
        ratios=ratios,
        goals=goals,
        samples=kept,
    )
