"""Cold starts from a local image with nothing prepared (L1), against `crun run` and `ctr run`.

Kindling's clock runs from the moment the request is sent to the first byte of the function's reply;
a peer's from the start of its command to the first byte of the same server's reply. Each round
takes every one of them once, in changing order, after a pause: a start right behind another finds
the kernel's cgroup lock warm and would flatter whoever comes second. Deletes are taken on the way.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

from bench import house, node
from bench.figures import Goal, ratio, summary, table
from bench.options import Options
from bench.report import Report
from tests.integration.running import free_ports

PAUSE_S = 0.2
PEERS = ("crun", "ctr")
AS_SHIPPED = {"writable": "slots"}
"""Starts pay for what a node has by default: a quota slot, not a tmpfs."""
PHASES = ("queue", "image", "slots", "create", "start", "listen", "init")


def run(options: Options) -> Report:
    """Measure all of them, interleaved."""
    rounds = options.rounds or (7 if options.quick else 25)
    samples: dict[str, list[float]] = defaultdict(list)
    phases: dict[str, list[float]] = defaultdict(list)
    with node.running(options.sections(storage=AS_SHIPPED)) as kindling, house.opened() as peers:
        # One of each first, uncounted: caches of files and of the agent's own code.
        for number in range(-1, rounds):
            order = ["kindling", *PEERS]
            shift = number % len(order)
            kept = samples if number >= 0 else defaultdict(list)
            for who in order[shift:] + order[:shift]:
                if who == "kindling":
                    found = one_of_kindling(kindling, peers, f"cold{number + 1}", kept)
                    for name in PHASES if number >= 0 else ():
                        phases[name].append(found.get(name, 0.0))
                else:
                    time.sleep(PAUSE_S)
                    answer = peers.ask(who, id=f"{who}{number + 1}", port=free_ports(1)[0])
                    kept[f"{who} run"].append(answer["ms"])
            time.sleep(PAUSE_S)
            peers.ask("plain_start", id=f"gone{number + 1}", port=free_ports(1)[0])
            time.sleep(PAUSE_S)
            answer = peers.ask("plain_end", id=f"gone{number + 1}")
            kept["delete, plain containerd"].append(answer["ms"])
    return report(dict(samples), dict(phases), options.without)


def one_of_kindling(
    kindling: node.Node, peers: house.House, name: str, samples: dict[str, list[float]]
) -> dict[str, float]:
    """Measure one cold call and the end of its instance; return the phases of the start."""
    kindling.deploy(name, scaling={"min": 0})
    time.sleep(PAUSE_S)
    answer = peers.ask("http", port=kindling.port, path=f"/http/{name}/")
    samples["kindling"].append(answer["ms"])
    time.sleep(PAUSE_S)
    mark = time.perf_counter()
    kindling.remove(name)
    samples["delete, kindling"].append((time.perf_counter() - mark) * 1000)
    found: dict[str, float] = answer["phases"]
    return found


def report(
    samples: dict[str, list[float]], phases: dict[str, list[float]], without: tuple[str, ...]
) -> Report:
    """Put the figures of a run together."""
    starts = {name: samples[name] for name in ("kindling", "crun run", "ctr run")}
    deletes = {name: found for name, found in samples.items() if name.startswith("delete")}
    ratios = {
        f"kindling / {peer}": ratio(starts["kindling"], starts[peer])
        for peer in ("crun run", "ctr run")
    }
    ratios["delete / plain containerd"] = ratio(
        samples["delete, kindling"], samples["delete, plain containerd"]
    )
    to_ctr = ratios["kindling / ctr run"].of_medians
    goals = [
        Goal("L1 / ctr run (this issue)", to_ctr, 0.5),
        Goal("L1 / ctr run (final)", to_ctr, 0.25),
        Goal("L1 / crun run (final)", ratios["kindling / crun run"].of_medians, 3.0),
        Goal(
            "D delete / plain containerd (final)",
            ratios["delete / plain containerd"].of_medians,
            0.5,
        ),
    ]
    outside_ms = summary(starts["kindling"]).median - sum(
        summary(found).median for found in phases.values()
    )
    figures: dict[str, Any] = {name: summary(found) for name, found in (starts | deletes).items()}
    return Report(
        title="cold start of a local image, nothing prepared (L1)"
        + "".join(f", without {lever}" for lever in without),
        lines=[
            *table(starts, "ms to the first byte"),
            "",
            "kindling's own phases (medians):",
            *table(phases, "ms"),
            f"outside of them: {outside_ms:.2f} ms (HTTP in, hand-over, the function's reply)",
            "",
            "end of a running instance, killed and wholly removed:",
            *table(deletes, "ms"),
        ],
        figures=figures | {"phases": {name: summary(found) for name, found in phases.items()}},
        ratios=ratios,
        goals=goals,
        samples=samples | {f"phase {name}": found for name, found in phases.items()},
    )
