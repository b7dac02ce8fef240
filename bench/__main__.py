"""`python -m bench [NAME …] [--quick] [--rounds N] [--without LEVER,…]`: measure, print, draw.

Without a name all of WHOLE run, in a quarter of an hour; with --quick in three minutes. Ctrl-C ends
the run and keeps what was found, the whole rounds of the bench under way as well. `python -m bench
compare A B NAME` is `bench.compare`. Needs root and a host set up by `setup/host.sh --bench`;
installs the working tree first, so that what is measured is what stands here. Writes
bench/out/<name>.json, pictures beside it, and bench/out/report.html with all of them. Ends with 1
when a bench failed or a goal of this release (not a final one) is missed, with 2 on wrong use,
with 130 when it was cut short.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

from bench import compare, machine, needs, page, turn
from bench.options import AT_INSTALL, LEVERS, Options
from bench.report import Report
from tests.integration.running import install

HERE = Path(__file__).resolve().parent
OUT = HERE / "out"
IMAGES = HERE.parent / "images"
MOST_ROUNDS = 1000

# A bench is a module with `run(options) -> Report`; it may name the host's programs that it needs
# in NEEDS and the archives of images/ beyond the samples in SOFTWARE. A row here adds one, a word
# in WHOLE takes it into the whole run: what matters most comes first, for a run may be cut short.
# The others run by name alone: with them a quick whole run would take longer than it says.
NAMES = {
    "bursts": "bench.bursts",
    "cold": "bench.cold",
    "control": "bench.control",
    "density": "bench.density",
    "frozen": "bench.frozen",
    "functions": "bench.functions",
    "gateway": "bench.warm_gateway",
    "pull": "bench.pull",
    "standby": "bench.standby",
    "warm": "bench.warm_agent",
}
WHOLE = ("cold", "density", "warm", "functions", "pull")


def parsed(arguments: Sequence[str]) -> tuple[list[str], Options, bool]:
    """Return the benches to run, their options, and whether to install; ends on wrong use."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--quick", action="store_true", help="the smallest useful run")
    parser.add_argument("--rounds", type=int, help="how often each contender is taken")
    parser.add_argument(
        *("--without",), default="", metavar="LEVER,…", help=f"switch off {', '.join(LEVERS)}"
    )
    parser.add_argument("--no-install", action="store_true", help="measure what is installed")
    given = parser.parse_args(arguments)
    unknown = [name for name in given.names if name not in NAMES]
    if unknown:
        parser.error(f"no bench {', '.join(unknown)}: there are {', '.join(NAMES)}, and compare")
    if given.rounds is not None and not 1 <= given.rounds <= MOST_ROUNDS:
        parser.error(f"--rounds wants a number from 1 to {MOST_ROUNDS}, not {given.rounds}")
    without = tuple(dict.fromkeys(filter(None, given.without.split(","))))
    if foreign := [lever for lever in without if lever not in LEVERS]:
        parser.error(f"no lever {', '.join(foreign)}: there are {', '.join(LEVERS)}")
    if given.no_install and (built := [lever for lever in without if lever in AT_INSTALL]):
        parser.error(f"--without {','.join(built)} is done by installing: leave out --no-install")
    options = Options(given.quick, given.rounds or 0, not given.names, without)
    names = list(dict.fromkeys(given.names or WHOLE))
    return names, options, not given.no_install


def main(arguments: Sequence[str]) -> int:
    """Run what was asked for; returns the exit status."""
    if arguments[:1] == ["compare"]:
        return compare.main(arguments[1:], NAMES)
    names, options, installs = parsed(arguments)
    modules = {name: importlib.import_module(NAMES[name]) for name in names}
    if refusal := unready(modules.values()):
        print(f"python -m bench: {refusal}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # cleans up as Ctrl-C does
    with turn.taken():
        build(modules.values())
        if installs:
            os.environ.update(options.environment())
            install(HERE.parent)
        return run(modules, options)


def unready(modules: Iterable[ModuleType]) -> str:
    """Return why benches cannot run here and the way out, empty when they can."""
    if os.geteuid() != 0:
        return "needs root, to start agents as the user kindling: run it by 'sudo'"
    wanted = [name for module in modules for name in getattr(module, "NEEDS", ())]
    lacking = needs.missing(wanted)
    return needs.sentence(lacking) if lacking else ""


def build(modules: Iterable[ModuleType]) -> None:
    """Build the images that benches start, if they are not there as they should be."""
    software = [name for module in modules for name in getattr(module, "SOFTWARE", ())]
    python = needs.program("python3") or sys.executable
    wanted = {"build.py": ["static", "hello-http"], "software.py": software}
    for script, images in wanted.items():
        if images:
            command = [python, str(IMAGES / script), "--json", *dict.fromkeys(images)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def run(modules: dict[str, ModuleType], options: Options) -> int:
    """Run benches one after another; each leaves its result before the next one begins."""
    missed, began, shown = 0, time.monotonic(), OUT
    for name, module in modules.items():
        report = one(name, module, options)
        if report is None and not options.stopped.is_set():
            missed += 1
        if report is not None:
            missed += sum(not goal.held and "(final)" not in goal.text for goal in report.goals)
        shown = page.write(OUT, list(NAMES))
        if options.stopped.is_set():
            break
    print(f"{time.monotonic() - began:.0f} s in all; everything found so far: {shown}", flush=True)
    if options.stopped.is_set():
        print("cut short by Ctrl-C", flush=True)
        return 130
    return 1 if missed else 0


def one(name: str, module: ModuleType, options: Options) -> Report | None:
    """Run one bench, print and write what it found; returns None when that is nothing."""
    facts = machine.facts()
    print(f"-- {name}\n{machine.sentence(facts)}", flush=True)
    began = time.monotonic()
    report: Report
    try:
        report = module.run(options)
    except KeyboardInterrupt:
        options.stopped.set()
        return None
    except (Exception, SystemExit):  # one bench that fails takes no other one's results along
        traceback.print_exc()
        print(f"{name} failed\n", flush=True)
        return None
    facts |= {
        "load_after": machine.load(),
        "took_s": round(time.monotonic() - began, 1),
        "cut_short": options.stopped.is_set(),
    }
    report.write(OUT / f"{name}.json", facts)
    print(report.text())
    print(f"took {facts['took_s']} s, load {facts['load_after'][0]} at the end\n", flush=True)
    return report


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
