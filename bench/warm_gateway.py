"""The gateway alone against nginx, as `bench.warm` measures it: the data path, nothing behind it.

Beside `bench.warm_agent`, the same through a whole agent, this tells what pool, ledger, meters and
log lines add to the path.
"""

from __future__ import annotations

from bench import warm
from bench.figures import Goal, Ratio, ratio, summary, table
from bench.options import Options
from bench.report import Report

CONTRACTS = ("fc", "vercel")


def run(options: Options) -> Report:
    """Measure each contract in turn."""
    rounds = options.rounds or (3 if options.quick else 7)
    seconds = 2 if options.quick else 4
    lines: list[str] = []
    ratios: dict[str, Ratio] = {}
    samples: dict[str, list[float]] = {}
    goals: list[Goal] = []
    for contract in CONTRACTS:
        found = warm.run(rounds, seconds, contract)
        rps = {name: [one["rps"] for one in runs] for name, runs in found["runs"].items()}
        added = found["added_p50_us"]
        ratios[f"{contract}: gateway / nginx, req/s"] = one = ratio(rps["gateway"], rps["nginx"])
        goals.append(
            Goal(f"gateway {contract} req/s / nginx (final)", one.of_medians, 0.8, at_most=False)
        )
        lines += [
            "",
            f"contract {contract}, wrk {warm.CONNECTIONS} connections:",
            *table(rps, "requests per second"),
            f"added at one connection, p50: nginx {added['nginx']:.0f} us, "
            f"gateway {added['gateway']:.0f} us",
        ]
        samples |= {f"{contract} {name} rps": values for name, values in rps.items()}
    return Report(
        title=f"the gateway alone: proxy on CPU {warm.PROXY_CPU}, backend and wrk on "
        f"CPU {warm.LOAD_CPU}",
        lines=lines[1:],
        figures={name: summary(values) for name, values in samples.items()},
        ratios=ratios,
        goals=goals,
        samples=samples,
    )
