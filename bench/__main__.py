"""`python -m bench [NAME …] [--quick] [--rounds N] [--without=LEVER]`: print tables, write JSON.

Needs root and a host set up with `setup/host.sh --dev`; installs the working tree first, so that
what is measured is what stands here. Writes bench/out/<name>.json. Ends with 1 when a goal of this
release (not a final one) is missed.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib
import os
import sys
import time
from pathlib import Path

from bench import machine
from bench.options import LEVERS, Options
from tests.integration.running import install, open_lock

HERE = Path(__file__).resolve().parent
OUT = HERE / "out"
ALONE = Path("/run/lock/kindling-tests.lock")  # no test session beside a bench, nor another bench
NAMES = {
    "bursts": "bench.bursts",
    "cold": "bench.cold",
    "control": "bench.control",
    "density": "bench.density",
    "frozen": "bench.frozen",
    "gateway": "bench.warm_gateway",
    "pull": "bench.pull",
    "standby": "bench.standby",
    "warm": "bench.warm_agent",
}


def main() -> int:
    """Run what was asked for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--quick", action="store_true", help="the smallest useful run")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument(
        "--without", default="", metavar="LEVER,…", help=f"cold: switch off {', '.join(LEVERS)}"
    )
    parser.add_argument("--no-install", action="store_true", help="measure what is installed")
    parser.add_argument(
        "--without", choices=("compiled",), help="install without it, to show what it brings"
    )
    given = parser.parse_args()
    unknown = [name for name in given.names if name not in NAMES]
    if unknown:
        parser.error(f"no bench {', '.join(unknown)}: there are {', '.join(NAMES)}")
    without = tuple(filter(None, given.without.split(",")))
    if foreign := [lever for lever in without if lever not in LEVERS]:
        parser.error(f"no lever {', '.join(foreign)}: there are {', '.join(LEVERS)}")
    if os.geteuid() != 0:
        parser.error("needs root: it starts agents as the user kindling and pins processes")
    options = Options(quick=given.quick, rounds=given.rounds, without=without)
    with open_lock(ALONE) as alone:
        fcntl.flock(alone, fcntl.LOCK_EX)
        if given.without == "compiled":
            os.environ["KINDLING_COMPILED"] = "0"
        if not given.no_install:
            install(HERE.parent)
        return run(given.names or list(NAMES), options)


def run(names: list[str], options: Options) -> int:
    """Run benches one after another; returns 1 when a goal of this release is missed."""
    missed = 0
    for name in names:
        facts = machine.facts()
        print(machine.sentence(facts), flush=True)
        began = time.monotonic()
        report = importlib.import_module(NAMES[name]).run(options)
        facts |= {"load_after": machine.load(), "took_s": round(time.monotonic() - began, 1)}
        report.write(OUT / f"{name}.json", facts)
        print(report.text())
        print(f"took {facts['took_s']} s, load {facts['load_after'][0]} at the end\n", flush=True)
        missed += sum(not goal.held and "(final)" not in goal.text for goal in report.goals)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
