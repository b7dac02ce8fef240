"""The gateway alone against nginx: the data path, nothing behind it.

Beside `bench.warm_agent`, the same through a whole agent, this tells what pool, ledger, meters and
log lines add to the path. Where the installed package is compiled, the sources are measured too.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from agent.rootless.installed import HOME, LINK
from bench import traffic, warm
from bench.options import Options
from bench.report import Report
from bench.warm_report import Measurements, report

CONTRACTS = ("scf-web", "vercel")  # beside fc, which has every traffic
TITLE = f"the gateway alone: proxy on CPU {warm.PROXY_CPU}, backend and wrk on CPU {warm.LOAD_CPU}"


ASK = (
    "import agent; from agent.rootless.installed import form; print(agent.__path__[0], form().name)"
)


def forms() -> dict[str, Path]:
    """Return the gateways to measure: what is installed, and the sources if that is compiled."""
    python = HOME / LINK / "bin/python"
    if not python.exists():
        return {"gateway": warm.SOURCES}
    asked = subprocess.run([python, "-I", "-c", ASK], capture_output=True, text=True, check=True)
    package, _, form = asked.stdout.strip().rpartition(" ")
    found = {"gateway": Path(package).parent}
    return found | ({warm.PURE: warm.SOURCES} if form == "compiled" else {})


def run(options: Options) -> Report:
    """Measure every traffic with one contract, the usual one with the others."""
    rounds = options.rounds or (4 if options.quick else 12)
    some = (traffic.USUAL, traffic.OTHERS[0])
    every = (traffic.USUAL, traffic.EVENT, *traffic.OTHERS)
    ours = forms()
    taken = some if options.quick else every
    found: Measurements = {"fc": warm.run(rounds, "fc", taken, ours)}
    for contract in CONTRACTS:
        found[contract] = warm.run(rounds, contract, (traffic.USUAL,), ours)
    return report(TITLE, "gateway", found)
