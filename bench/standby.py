"""Starts of standbys (L3): containers created before and not started, against `crun start`.

The clock runs as in `bench.cold`: from the moment the request is sent, or the peer's command is
started, to the first byte of the same server's reply. Each round takes both once, in changing
order, after a pause; before it the function has one standby and nothing that serves.
"""

from __future__ import annotations

import time
from functools import partial

from bench import house, node, rounds
from bench.cold import AS_SHIPPED, PAUSE_S, PHASE, PHASES, phases_of
from bench.figures import Goal, ratio, summary, table
from bench.options import Options
from bench.report import Report
from tests.integration.running import free_ports

READY_S = 30.0
LOOK_S = 0.02
NEEDS = ("crun", "runc")
OURS, PEER = "kindling, standby", "crun start"


def run(options: Options) -> Report:
    """Measure both, interleaved."""
    count = options.count(quick=15, whole=15, alone=50)
    with (
        node.running(options.sections(storage=AS_SHIPPED)) as kindling,
        house.opened() as peers,
    ):
        contenders = {OURS: partial(ours, kindling, peers), PEER: partial(theirs, peers)}
        return report(rounds.take(options, count, contenders))


def ours(kindling: node.Node, peers: house.House, number: int) -> rounds.Found:
    """Measure the first call of a function that has a standby, and the phases of the start."""
    name = f"standby{number}"
    kindling.deploy(name, scaling={"min": 0, "standby": 1})
    until = time.monotonic() + READY_S
    while "STANDBY" not in kindling.states().values():
        if time.monotonic() >= until:
            raise TimeoutError(f"no standby of {name}: {kindling.states()}")
        time.sleep(LOOK_S)
    time.sleep(PAUSE_S)
    answer = peers.ask("http", port=kindling.port, path=f"/http/{name}/")
    kindling.remove(name)
    return phases_of(answer["phases"], PHASE) | {OURS: answer["ms"]}


def theirs(peers: house.House, number: int) -> rounds.Found:
    """Measure the start of a created container."""
    time.sleep(PAUSE_S)
    return {PEER: peers.ask("crun_start", id=f"st{number}", port=free_ports(1)[0])["ms"]}


def report(samples: dict[str, list[float]]) -> Report:
    """Put the figures of a run together."""
    starts = {name: samples[name] for name in (OURS, PEER)}
    phases = {name: samples[f"{PHASE}{name}"] for name in PHASES}
    ratios = {f"kindling / {PEER}": ratio(samples[OURS], samples[PEER])}
    median = summary(samples[OURS]).median
    goals = [
        Goal("L3 p50, ms (final)", median, 3.0),
        Goal("L3 / crun start (final)", ratios[f"kindling / {PEER}"].of_medians, 1.0),
    ]
    return Report(
        title="start of a standby (L3)",
        lines=[
            *table(starts, "ms to the first byte"),
            "",
            "kindling's own phases (medians):",
            *table(phases, "ms"),
        ],
        figures={name: summary(found) for name, found in samples.items()},
        ratios=ratios,
        goals=goals,
        samples=samples,
    )
