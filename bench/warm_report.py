"""What the warm benches found, as one report: a proxy of ours beside others, traffic by traffic."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from bench import drawing, traffic
from bench.figures import Goal, Ratio, ratio, summary, table
from bench.report import Report
from bench.warm import DIRECT, PURE, Measured

Measurements = dict[str, dict[str, Measured]]
"""By contract and name of the traffic."""

# What is to be reached (SPECIFICATION 7.4). At 32 connections: requests per second of nginx's, by
# how heads differ, and of Go's proxy; at one: what is added to the median of a call.
UNIQUE, REPEATING, OF_GO, ADDED = 0.65, 0.85, 2.5, 1.5
NGINX, GO = "nginx", "Go ReverseProxy"
ONE = next(one.name for one in traffic.OTHERS if one.connections == 1)


def report(title: str, ours: str, found: Measurements) -> Report:
    """Put the figures of a run together; `ours` is the name of what stands beside the others."""
    lines: list[str] = []
    ratios: dict[str, Ratio] = {}
    goals: list[Goal] = []
    samples: dict[str, list[float]] = {}
    for what, one in named(found):
        lines += ["", f"{what}:", *table(one.rps, "requests per second")]
        lines += table(one.cpu_us, "us of the proxy's CPU per call")
        lines += table(one.p50_us, "us p50")
        ratios |= ratios_of(what, ours, one)
        goals += goals_of(what, ours, one, ratios)
        kinds = {"rps": one.rps, "cpu_us": one.cpu_us, "p50_us": one.p50_us, "p99_us": one.p99_us}
        for kind, by_name in kinds.items():
            samples |= {f"{what} {who} {kind}": values for who, values in by_name.items()}
    figures = {name: summary(values) for name, values in samples.items()}
    return Report(title, lines[1:], figures, ratios, goals, samples, pictures(found))


def named(found: Measurements) -> Iterator[tuple[str, Measured]]:
    """Return what was measured, by contract and traffic as one name."""
    for contract, measured in found.items():
        for name, one in measured.items():
            yield f"{contract}, {name}", one


def ratios_of(what: str, ours: str, one: Measured) -> dict[str, Ratio]:
    """Return ours to each peer: requests per second, and calls per CPU second."""
    found = {}
    for peer in one.cpu_us:
        if peer not in (ours, PURE):
            found[f"{what}: req/s of {peer}'s"] = ratio(one.rps[ours], one.rps[peer])
    # Neighbours on a shared machine take time, but no CPU time.
    found[f"{what}: calls per CPU second of nginx's"] = ratio(one.cpu_us[NGINX], one.cpu_us[ours])
    if PURE in one.cpu_us:
        found[f"{what}: CPU of a call, compiled of pure"] = ratio(
            one.cpu_us[ours], one.cpu_us[PURE]
        )
    if DIRECT in one.p50_us:
        found[f"{what}: added p50 of nginx's"] = ratio(added(one, ours), added(one, NGINX))
    return found


def added(one: Measured, name: str) -> list[float]:
    """Return what a proxy adds to the median latency of its round's calls without a proxy."""
    base = statistics.median(one.p50_us[DIRECT])
    return [max(took - base, 0.1) for took in one.p50_us[name]]


def goals_of(what: str, ours: str, one: Measured, ratios: dict[str, Ratio]) -> list[Goal]:
    """Return what a traffic's figures have to be."""
    name = what.partition(", ")[2]
    of_nginx = ratios[f"{what}: req/s of nginx's"].of_medians
    if name == traffic.USUAL.name:
        found = [Goal(f"{what} / nginx (final)", of_nginx, UNIQUE, at_most=False)]
        if GO in one.rps:
            of_go = ratios[f"{what}: req/s of {GO}'s"].of_medians
            found.append(Goal(f"{what} / {GO} (final)", of_go, OF_GO, at_most=False))
        return found
    if name == traffic.OTHERS[0].name:
        return [Goal(f"{what} / nginx (final)", of_nginx, REPEATING, at_most=False)]
    if name == ONE:
        of_added = ratios[f"{what}: added p50 of nginx's"].of_medians
        return [Goal(f"{what}, added p50 / nginx's (final)", of_added, ADDED)]
    return []


def pictures(found: Measurements) -> list[drawing.Picture]:
    """Draw throughput over connections, and what one call costs, as far as it was measured."""
    measured = found.get("fc", {})
    by_connections = {
        one.connections: measured[one.name]
        for one in (traffic.USUAL, *traffic.OTHERS)
        if one.name in measured and one.everybody and one.unique
    }
    drawn = []
    if len(by_connections) > 1:
        names = [name for name in by_connections[32].rps if name != DIRECT]
        lines = {
            name: [
                (float(count), statistics.median(by_connections[count].rps[name]))
                for count in sorted(by_connections)
            ]
            for name in names
        }
        title = "Warm calls with heads that differ, fc: requests per second, proxy on one core"
        across = drawing.Axis("connections", log=True)
        drawn.append(drawing.curves("connections", title, lines, across, drawing.Axis("req/s")))
    if usual := measured.get(traffic.USUAL.name):
        rows = {name: {"": statistics.median(took)} for name, took in usual.cpu_us.items()}
        title = "CPU of the proxy for a call with a head of its own, 32 connections"
        drawn.append(drawing.waterfall("cpu", title, rows, "us"))
    return drawn
