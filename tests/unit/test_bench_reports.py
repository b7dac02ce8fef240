"""What benches make of their samples: ratios, goals and pictures of made-up rounds."""

from __future__ import annotations

from collections import defaultdict
from xml.etree import ElementTree

import pytest

from bench import cold, density, functions, traffic, warm_report
from bench.report import Report
from bench.warm import BESIDE, DIRECT, Measured, is_taken

PEERS = ("nginx", "HAProxy", "Caddy", "Go ReverseProxy", "aiohttp")


def well_drawn(report: Report) -> dict[str, str]:
    for picture in report.pictures:
        ElementTree.fromstring(picture.svg)
    return {picture.name: picture.svg for picture in report.pictures}


def cold_samples() -> dict[str, list[float]]:
    found = {"kindling": [20.0, 22.0], "kindling, image new": [30.0, 33.0]}
    found |= {"crun run": [5.0, 5.5], "runc run": [15.0, 16.0], "ctr run": [80.0, 88.0]}
    found |= {"podman run": [100.0, 110.0], "ctr run, image new": [90.0, 91.0]}
    found |= {"crun --version": [2.0, 2.0], "runc --version": [3.0, 3.0]}
    found |= {"ctr --version": [16.0, 24.0], "podman --version": [20.0, 20.0]}
    found |= {"delete, kindling": [15.0, 15.0], "delete, plain containerd": [30.0, 30.0]}
    for prefix in (cold.PHASE, cold.NEW_PHASE):
        found |= {f"{prefix}{name}": [2.0, 2.0] for name in cold.PHASES}
    return found | {f"{cold.NEW_PHASE}deploy": [10.0, 10.0]}


def test_cold_starts_stand_beside_every_peer_with_and_without_its_client() -> None:
    report = cold.report(cold_samples())
    ratios = {name: one.of_medians for name, one in report.ratios.items()}
    assert ratios["L1 / crun run"] == pytest.approx(4)
    assert ratios["L1 / ctr run"] == pytest.approx(0.25)
    assert ratios["L1 / ctr run less its client's start"] == pytest.approx(21 / 64)
    assert ratios["delete / plain containerd"] == 0.5
    assert [goal.held for goal in report.goals] == [False, True, False, False]
    drawn = well_drawn(report)
    assert list(drawn) == ["waterfall", "cdf"]
    for name in ("create", "deploy", "its command", "ctr run, image new", "21 ms"):
        assert name in drawn["waterfall"]


def test_functions_are_drawn_by_phases_beside_their_peer() -> None:
    samples: dict[str, list[float]] = {}
    for one in functions.FUNCTIONS:
        samples |= {f"{one.name}, phase {name}": [5.0] for name in cold.PHASES}
        samples |= {f"{one.name}, kindling": [40.0], f"{one.name}, ctr run": [80.0]}
    report = functions.report(samples)
    assert [one.of_medians for one in report.ratios.values()] == [0.5] * len(functions.FUNCTIONS)
    assert all(one.name in well_drawn(report)["waterfall"] for one in functions.FUNCTIONS)


def slices(one: traffic.Traffic, rps: dict[str, float]) -> Measured:
    found = Measured()
    for name, value in rps.items():
        if is_taken(name, one):
            found.rps[name] = [value, value]
            found.p50_us[name] = [1e6 / value] * 2
            found.p99_us[name] = [2e6 / value] * 2
            if name != DIRECT:
                found.cpu_us[name] = [1e6 / value] * 2
    return found


def test_warm_calls_are_held_to_their_goals_and_drawn_over_connections() -> None:
    rps = {name: 1000.0 * (number + 1) for number, name in enumerate(PEERS)}
    rps |= {"kindling": 800.0, DIRECT: 10_000.0}
    every = (traffic.USUAL, traffic.EVENT, *traffic.OTHERS)
    measured = {one.name: slices(one, rps) for one in every}
    report = warm_report.report("t", "kindling", {"fc": measured, "vercel": measured})
    goals = {goal.text: goal for goal in report.goals}
    assert goals["fc, GET, unique heads / nginx (final)"].held
    assert not goals["fc, GET, unique heads / Go ReverseProxy (final)"].held
    assert not goals["fc, GET, repeating heads / nginx (final)"].held
    added = goals["fc, GET, unique heads, 1 connection, added p50 / nginx's (final)"]
    assert added.value == pytest.approx((1250 - 100) / (1000 - 100))
    drawn = well_drawn(report)
    assert list(drawn) == ["connections", "cpu"]
    assert DIRECT not in drawn["connections"]
    assert drawn["connections"].count("<polyline") == len(PEERS) + 1


def test_a_short_warm_run_is_a_report_too() -> None:
    rps = {"nginx": 1000.0, "kindling": 800.0}
    measured = {traffic.BRIEF.name: slices(traffic.BRIEF, rps)}
    report = warm_report.report("t", "kindling", {"scf-web": measured})
    assert report.pictures == []
    assert [goal.text for goal in report.goals] == ["scf-web, GET, unique heads / nginx (final)"]


@pytest.mark.parametrize("name", [*PEERS, "kindling", DIRECT])
def test_all_peers_get_what_everybody_gets_and_few_the_rest(name: str) -> None:
    one_connection = next(one for one in traffic.OTHERS if one.connections == 1)
    assert is_taken(name, one_connection)
    assert is_taken(name, traffic.USUAL) is (name != DIRECT)
    assert is_taken(name, traffic.EVENT) is (name in BESIDE)


def test_density_weighs_what_is_beyond_the_functions() -> None:
    before = {"worker": 1024, "shims": 1024}
    now = defaultdict(int, {"worker": 2048, "shims": 1024, "function": 9999, "init": 512})
    assert density.beyond(now, before) == 1.5
    assert density.beyond(before, before) == 0
