"""Warm calls through a real agent against nginx and others, all before the very same containers.

The proxy (the worker's threads, or a peer) is pinned to CPU 0; the functions and wrk to CPU 1. The
peers and their wrk run inside the agent's detached network namespace, because only from there can
anybody reach a container: all proxies then have wrk on their loopback before them and the
container's veth behind. Slices of a second alternate: all see the machine in the same mood.
`bench.warm_gateway` is the same for the gateway alone, with a backend of its own.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from agent.rootless import cgroup
from bench import node, proxies, traffic, warm
from bench.options import Options
from bench.report import Report
from bench.traffic import LARGE, SMALL, Traffic
from bench.warm import EVENT_FUNCTION, FUNCTIONS, LOAD_CPU, PROXY_CPU, Measured, Way
from bench.warm_report import Measurements, report
from tests.integration.running import RunningAgent

NEEDS = ("crun", *proxies.NEEDS)
CONTRACTS = ("fc", "scf-web", "vercel")
TITLE = (
    f"warm calls through a real agent: proxy on CPU {PROXY_CPU}, function and wrk on CPU {LOAD_CPU}"
)


def run(options: Options) -> Report:
    """Measure every traffic with one contract, the usual one with the others."""
    rounds = options.count(quick=2 if options.whole else 6, whole=5, alone=20)
    some = (traffic.USUAL, traffic.OTHERS[0])
    every = (traffic.USUAL, traffic.EVENT, *traffic.OTHERS)
    found: Measurements = {}
    with node.running() as kindling:
        for contract in CONTRACTS:
            taken = (some if options.quick else every) if contract == "fc" else (traffic.BRIEF,)
            functions = deploy(kindling, contract)
            found[contract] = measure(options, kindling, taken, rounds)
            for name in functions:
                kindling.remove(name)
            if options.stopped.is_set():
                break
    return report(TITLE, "kindling", found)


def deploy(kindling: node.Node, contract: str) -> list[str]:
    """Deploy the static server once for each size of its reply; return the functions' names."""
    kinds = {FUNCTIONS[SMALL]: ("http", SMALL), FUNCTIONS[LARGE]: ("http", LARGE)}
    if contract == "fc":
        kinds[EVENT_FUNCTION] = ("event", SMALL)
    for name, (kind, size) in kinds.items():
        kindling.deploy(
            name,
            wait=True,
            contract=contract,
            kind=kind,
            env={"REPLY_BYTES": str(size)},
            **({"concurrency": 100} if kind == "http" else {}),
            cpu_millis=2000,
            # The other proxies reach it past the agent, which would not thaw it for them.
            scaling={"min": 1, "max": 1, "freeze_after_ms": -1},
        )
    return list(kinds)


def measure(
    options: Options, kindling: node.Node, traffics: Sequence[Traffic], rounds: int
) -> dict[str, Measured]:
    """Measure every proxy in front of the same instances."""
    agent = kindling.agent
    within = inside_network(agent)
    instances = {instance.rpartition("-")[0]: instance for instance in kindling.states()}
    at = {name: address_of(agent, instance) for name, instance in instances.items()}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        backends = (at[FUNCTIONS[SMALL]], at[FUNCTIONS[LARGE]])
        ways = stack.enter_context(proxies.opened(folder, *backends, within))
        pin(agent.tree(), PROXY_CPU)
        for instance in instances.values():
            pin(processes_of(instance), LOAD_CPU)
        address, _, port = backends[0].rpartition(":")
        ways["kindling"] = Way(kindling.port, agent.pids["worker"])
        ways[warm.DIRECT] = Way(int(port), host=address, within=within)
        return warm.measure(options, ways, traffics, folder, rounds)


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
