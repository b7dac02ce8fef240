"""Starts of standbys (L3): containers created before and not started, against `crun start`.

The clock runs as in `bench.cold`: from the moment the request is sent, or the peer's command is
started, to the first byte of the same server's reply. Each round takes both once, in changing
order, after a pause; before it the function has one standby and nothing that serves.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

from bench import house, node
from bench.cold import AS_SHIPPED, PAUSE_S, PHASES
from bench.figures import Goal, ratio, summary, table
from bench.options import Options
from bench.report import Report
from tests.integration.running import free_ports

READY_S = 30.0
LOOK_S = 0.02
OURS, PEER = "kindling, standby", "crun start"


def run(options: Options) -> Report:
    """Measure both, interleaved."""
    rounds = options.rounds or (15 if options.quick else 50)
    samples: dict[str, list[float]] = defaultdict(list)
    phases: dict[str, list[float]] = defaultdict(list)
    with (
        node.running(options.sections(storage=AS_SHIPPED)) as kindling,
        house.opened() as peers,
    ):
        for number in range(-1, rounds):  # one of each first, uncounted
            kept = samples if number >= 0 else defaultdict(list)
            for who in (OURS, PEER) if number % 2 else (PEER, OURS):
                if who == OURS:
                    found = one_of_kindling(kindling, peers, f"standby{number + 1}", kept)
                    for name in PHASES if number >= 0 else ():
                        phases[name].append(found.get(name, 0.0))
                else:
                    time.sleep(PAUSE_S)
                    answer = peers.ask("crun_start", id=f"st{number + 1}", port=free_ports(1)[0])
                    kept[PEER].append(answer["ms"])
    return report(dict(samples), dict(phases))


def one_of_kindling(
    kindling: node.Node, peers: house.House, name: str, samples: dict[str, list[float]]
) -> dict[str, float]:
    """Measure the first call of a function that has a standby; return the phases of the start."""
    kindling.deploy(name, scaling={"min": 0, "standby": 1})
    until = time.monotonic() + READY_S
    while "STANDBY" not in kindling.states().values():
        if time.monotonic() >= until:
            raise TimeoutError(f"no standby of {name}: {kindling.states()}")
        time.sleep(LOOK_S)
    time.sleep(PAUSE_S)
    answer = peers.ask("http", port=kindling.port, path=f"/http/{name}/")
    samples[OURS].append(answer["ms"])
    kindling.remove(name)
    found: dict[str, float] = answer["phases"]
    return found


def report(samples: dict[str, list[float]], phases: dict[str, list[float]]) -> Report:
    """Put the figures of a run together."""
    ratios = {f"kindling / {PEER}": ratio(samples[OURS], samples[PEER])}
    median = summary(samples[OURS]).median
    goals = [
        Goal("L3 p50, ms (final)", median, 3.0),
        Goal("L3 / crun start (final)", ratios[f"kindling / {PEER}"].of_medians, 1.0),
    ]
    figures: dict[str, Any] = {name: summary(found) for name, found in samples.items()}
    return Report(
        title="start of a standby (L3)",
        lines=[
            *table(samples, "ms to the first byte"),
            "",
            "kindling's own phases (medians):",
            *table(phases, "ms"),
        ],
        figures=figures | {"phases": {name: summary(found) for name, found in phases.items()}},
        ratios=ratios,
        goals=goals,
        samples=samples | {f"phase {name}": found for name, found in phases.items()},
    )
