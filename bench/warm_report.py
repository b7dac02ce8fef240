"""What the warm benches found, as one report: a proxy of ours beside nginx, traffic by traffic."""

from __future__ import annotations

from bench import traffic
from bench.figures import Goal, Ratio, ratio, summary, table
from bench.report import Report
from bench.warm import PURE, Measured

Measurements = dict[str, dict[str, Measured]]
"""By contract and name of the traffic."""

# At 32 connections: what requests per second have to be of nginx's, by how heads differ.
UNIQUE, REPEATING = 0.65, 0.85


def report(title: str, ours: str, found: Measurements) -> Report:
    """Put the figures of a run together; `ours` is the name of what stands beside nginx."""
    lines: list[str] = []
    ratios: dict[str, Ratio] = {}
    goals: list[Goal] = []
    samples: dict[str, list[float]] = {}
    for contract, measured in found.items():
        for name, one in measured.items():
            what = f"{contract}, {name}"
            lines += ["", f"{what}:", *table(one.rps, "requests per second")]
            lines += table(one.cpu_us, "us of the proxy's CPU per call")
            lines += table(one.p50_us, "us p50")
            ratios[f"{what}: req/s of nginx's"] = of = ratio(one.rps[ours], one.rps["nginx"])
            # Neighbours on a shared machine take time, but no CPU time.
            ratios[f"{what}: calls per CPU second of nginx's"] = ratio(
                one.cpu_us["nginx"], one.cpu_us[ours]
            )
            if PURE in one.cpu_us:
                ratios[f"{what}: CPU of a call, compiled of pure"] = ratio(
                    one.cpu_us[ours], one.cpu_us[PURE]
                )
            if name == traffic.USUAL.name:
                goals.append(Goal(f"{what} (final)", of.of_medians, UNIQUE, at_most=False))
            elif name == traffic.OTHERS[0].name:
                goals.append(Goal(f"{what} (final)", of.of_medians, REPEATING, at_most=False))
            kinds = {"rps": one.rps, "cpu_us": one.cpu_us, "p50_us": one.p50_us}
            for kind, by_name in (kinds | {"p99_us": one.p99_us}).items():
                samples |= {f"{what} {who} {kind}": values for who, values in by_name.items()}
    figures = {name: summary(values) for name, values in samples.items()}
    return Report(title, lines[1:], figures, ratios, goals, samples)
