"""The gateway alone against nginx and other proxies: the data path, nothing behind it.

Beside `bench.warm_agent`, the same through a whole agent, this tells what pool, ledger, meters and
log lines add to the path. Where the installed package is compiled, the sources are measured too.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from agent.rootless.installed import HOME, LINK
from bench import proxies, traffic, warm
from bench.options import Options
from bench.report import Report
from bench.traffic import Traffic
from bench.warm import LOAD_CPU, PROXY_CPU, Measured, Way, free_port, nginx_program, pinned
from bench.warm_report import Measurements, report

NEEDS = proxies.NEEDS
CONTRACTS = ("scf-web", "vercel")  # beside fc, which has every traffic
TITLE = f"the gateway alone: proxy on CPU {PROXY_CPU}, backend and wrk on CPU {LOAD_CPU}"
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
    rounds = options.count(quick=3, whole=12)
    some = (traffic.USUAL, traffic.OTHERS[0])
    every = (traffic.USUAL, traffic.EVENT, *traffic.OTHERS)
    ours = forms()
    found: Measurements = {}
    for contract in ("fc", *CONTRACTS):
        taken = (some if options.quick else every) if contract == "fc" else (traffic.BRIEF,)
        if not options.stopped.is_set():
            found[contract] = measure(options, rounds, contract, taken, ours)
    return report(TITLE, "gateway", found)


def measure(
    options: Options,
    rounds: int,
    contract: str,
    traffics: Sequence[Traffic],
    forms: Mapping[str, Path],
) -> dict[str, Measured]:
    """Measure gateways and their peers in turn; returns what was found by traffic.

    `forms` maps a gateway's name to where its package `agent` is imported from.
    """
    small, large = free_port(), free_port()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        config = folder / "backend.conf"
        config.write_text(
            warm.BACKEND.format(dir=folder, piece=warm.PIECE, small=small, large=large)
        )
        backend = (nginx_program(), "-c", str(config), "-p", str(folder))
        stack.enter_context(pinned(LOAD_CPU, *backend))
        for backend_port in (small, large):
            warm.wait_for(backend_port)
        at = (f"127.0.0.1:{small}", f"127.0.0.1:{large}")
        ways = stack.enter_context(proxies.opened(folder, *at))
        for name, place in forms.items():
            port = free_port()
            python = ("env", f"PYTHONPATH={place}:{warm.SOURCES}", sys.executable, "-P")
            behind = (str(small), str(large), contract)
            serve = ("-m", "bench.warm", "--serve", str(port), *behind)
            process = stack.enter_context(pinned(PROXY_CPU, *python, *serve))
            warm.wait_for(port)
            ways[name] = Way(port, process.pid)
        ways[warm.DIRECT] = Way(small)
        return warm.measure(options, ways, traffics, folder, rounds)
