"""The gateway alone against nginx and other proxies: the data path, nothing behind it.

Beside `bench.warm_agent`, the same through a whole agent, this tells what pool, ledger, meters and
log lines add to the path.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from bench import proxies, traffic, warm
from bench.options import Options
from bench.report import Report
from bench.traffic import Traffic
from bench.warm import LOAD_CPU, PROXY_CPU, Measured, Way, free_port, nginx_program, pinned
from bench.warm_report import Measurements, report

NEEDS = proxies.NEEDS
CONTRACTS = ("scf-web", "vercel")  # beside fc, which has every traffic
TITLE = f"the gateway alone: proxy on CPU {PROXY_CPU}, backend and wrk on CPU {LOAD_CPU}"


def run(options: Options) -> Report:
    """Measure every traffic with one contract, the usual one with the others."""
    rounds = options.count(quick=3, whole=12)
    some = (traffic.USUAL, traffic.OTHERS[0])
    every = (traffic.USUAL, traffic.EVENT, *traffic.OTHERS)
    found: Measurements = {}
    for contract in ("fc", *CONTRACTS):
        taken = (some if options.quick else every) if contract == "fc" else (traffic.BRIEF,)
        if not options.stopped.is_set():
            found[contract] = measure(options, rounds, contract, taken)
    return report(TITLE, "gateway", found)


def measure(
    options: Options, rounds: int, contract: str, traffics: Sequence[Traffic]
) -> dict[str, Measured]:
    """Measure the gateway and its peers in turn; returns what was found by traffic."""
    small, large, port = free_port(), free_port(), free_port()
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
        serve = (sys.executable, "-m", "bench.warm", "--serve", str(port))
        process = stack.enter_context(pinned(PROXY_CPU, *serve, str(small), str(large), contract))
        warm.wait_for(port)
        at = (f"127.0.0.1:{small}", f"127.0.0.1:{large}")
        ways = stack.enter_context(proxies.opened(folder, *at))
        ways |= {"gateway": Way(port, process.pid), warm.DIRECT: Way(small)}
        return warm.measure(options, ways, traffics, folder, rounds)
