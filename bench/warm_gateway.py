"""The gateway alone against nginx: the data path, nothing behind it.

Beside `bench.warm_agent`, the same through a whole agent, this tells what pool, ledger, meters and
log lines add to the path.
"""

from __future__ import annotations

from bench import traffic, warm
from bench.options import Options
from bench.report import Report
from bench.warm_report import Measurements, report

CONTRACTS = ("scf-web", "vercel")  # beside fc, which has every traffic
TITLE = f"the gateway alone: proxy on CPU {warm.PROXY_CPU}, backend and wrk on CPU {warm.LOAD_CPU}"


def run(options: Options) -> Report:
    """Measure every traffic with one contract, the usual one with the others."""
    rounds = options.rounds or (4 if options.quick else 12)
    some = (traffic.USUAL, traffic.OTHERS[0])
    every = (traffic.USUAL, traffic.EVENT, *traffic.OTHERS)
    found: Measurements = {"fc": warm.run(rounds, "fc", some if options.quick else every)}
    for contract in CONTRACTS:
        found[contract] = warm.run(rounds, contract, (traffic.USUAL,))
    return report(TITLE, "gateway", found)
