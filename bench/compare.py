"""`python -m bench compare A B [NAME] [--pairs N]`: does a bench find two revisions different?

Each revision gets a work tree of its own (`.` is this one as it stands), is installed from there,
and runs the bench of that tree with --quick: A B, B A, A B …, so that what the machine does in
between falls on both. A run gives one value for each of Kindling's figures, the median of its
rounds; two neighbours are a pair. What is said of the pairs is `bench.paired`'s. Ctrl-C keeps the
pairs there are. Afterwards this tree is the installed one again and the work trees are gone.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import machine, turn
from bench.figures import number
from bench.paired import LEAST_PAIRS, Compared, compared
from tests.integration.running import install

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
OUT = HERE / "out" / "compare.json"
OURS = ("kindling", "gateway")
MOST_PAIRS = 100
SAID = 3000  # of the last output of a run that failed

Values = dict[str, list[float]]


class RunFailed(Exception):
    """A bench of one of both found nothing; the text ends with what it said."""


def parsed(arguments: Sequence[str], names: Collection[str]) -> argparse.Namespace:
    """Return what was asked for, `names` being the benches there are; ends on wrong use."""
    parser = argparse.ArgumentParser(
        prog="python -m bench compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("a", metavar="A", help="a revision of git, or . for this tree")
    parser.add_argument("b", metavar="B", help="another one")
    parser.add_argument("name", metavar="NAME", nargs="?", default="cold", help="a bench (cold)")
    parser.add_argument("--pairs", type=int, default=10, help="how many runs of each (10)")
    parser.add_argument("--figure", default="", metavar="TEXT", help="only those with it in a name")
    parser.add_argument("--rounds", type=int, help="rounds of each run, where the bench has them")
    given = parser.parse_args(arguments)
    if given.name not in names:
        parser.error(f"no bench {given.name}: there are {', '.join(names)}")
    if not LEAST_PAIRS <= given.pairs <= MOST_PAIRS:
        parser.error(
            f"--pairs wants {LEAST_PAIRS} to {MOST_PAIRS}, not {given.pairs}: fewer tell nothing"
        )
    for revision in (given.a, given.b):
        if revision != "." and not _git("rev-parse", "--verify", "-q", f"{revision}^{{commit}}"):
            parser.error(f"'{revision}' is no revision of this repository: look at 'git log'")
    if os.geteuid() != 0:
        parser.error("needs root, as every bench: run it by 'sudo'")
    return given


def main(arguments: Sequence[str], names: Collection[str]) -> int:
    """Compare; returns 0 whatever is found, 1 when a run failed, 130 when cut short."""
    given = parsed(arguments, names)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # cleans up as Ctrl-C does
    revisions = (given.a, given.b)
    if _differs(revisions, "bench"):
        print("note: bench/ itself is not the same in both; each is measured by its own")
    more = ["--rounds", str(given.rounds)] if given.rounds else []
    a: Values = defaultdict(list)
    b: Values = defaultdict(list)
    status = 0
    try:
        with _tree(given.a) as first, _tree(given.b) as second, _turn(first, second):
            try:
                for pair in range(given.pairs):
                    sides = [(first, a), (second, b)]
                    take(sides if pair % 2 == 0 else sides[::-1], given.name, more)
                    print(f"pair {pair + 1} of {given.pairs}", flush=True)
            finally:
                with turn.taken():
                    install(REPOSITORY)
    except KeyboardInterrupt:
        status = 130
    except RunFailed as error:
        print(f"python -m bench compare: {error}", file=sys.stderr)
        status = 1
    tell(given, compared(*(chosen(values, given.figure) for values in (a, b))))
    return status


def chosen(values: Values, text: str) -> Values:
    """Return the figures that are asked about: the fewer, the smaller a difference is found."""
    return {name: found for name, found in values.items() if text in name}


def take(sides: Sequence[tuple[Path, Values]], name: str, more: Sequence[str]) -> None:
    """Run both sides in this order; keep the figures that both have."""
    found = [(values, measured(tree, name, more)) for tree, values in sides]
    for figure in sorted(found[0][1].keys() & found[1][1].keys()):
        for values, figures in found:
            values[figure].append(figures[figure])


def measured(tree: Path, name: str, more: Sequence[str]) -> dict[str, float]:
    """Run a bench from a tree and return its figures; raises RunFailed, KeyboardInterrupt."""
    result = tree / "bench" / "out" / f"{name}.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, "-m", "bench", name, "--quick", *more]
    # A session of its own: Ctrl-C reaches it through us, once, and it is given time to clean up.
    process = subprocess.Popen(
        command,
        cwd=tree,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        process.communicate()
        raise
    if process.returncode == 130:
        raise KeyboardInterrupt
    if not result.exists():
        raise RunFailed(f"the bench {name} in {tree} found nothing, it says:\n{said[-SAID:]}")
    return figures_of(json.loads(result.read_text()))


def figures_of(data: dict[str, Any]) -> dict[str, float]:
    """Return the medians of Kindling's own samples; of a bench without any, its plain numbers.

    Phases are parts of a figure and are left out.
    """
    samples: dict[str, list[float]] = data["samples"]
    if samples:
        return {
            name: statistics.median(values)
            for name, values in samples.items()
            if values and "phase" not in name and any(ours in name for ours in OURS)
        }
    return {
        name: float(value)
        for name, value in data["figures"].items()
        if isinstance(value, int | float) and not name.startswith("plain")
    }


def tell(given: argparse.Namespace, found: dict[str, Compared]) -> None:
    """Print what was found, and write it."""
    print(f"\nA is {given.a}, B is {given.b}; bench {given.name}")
    width = max(map(len, found), default=0)
    for name, one in found.items():
        print(f"{name:{width}} {number(one.a):>8} {number(one.b):>8}  {one.sentence()}")
    if not found:
        print("no whole pair: nothing can be said")
    elif not any(one.differs for one in found.values()):
        print("no difference beyond noise in any of them")
    OUT.parent.mkdir(parents=True, exist_ok=True)
    what = {"a": given.a, "b": given.b, "bench": given.name, "machine": machine.facts()}
    figures = {name: asdict(one) | {"differs": one.differs} for name, one in found.items()}
    OUT.write_text(json.dumps(what | {"figures": figures}, indent=1) + "\n")


@contextmanager
def _tree(revision: str) -> Iterator[Path]:
    """Check a revision out beside this one, with the images that are built here."""
    if revision == ".":
        yield REPOSITORY
        return
    with tempfile.TemporaryDirectory(prefix="kd-compare-", dir="/var/tmp") as place:
        Path(place).chmod(0o755)
        tree = Path(place) / "tree"
        commit = _git("rev-parse", f"{revision}^{{commit}}")
        subprocess.run(
            ["git", "-C", str(REPOSITORY), "worktree", "add", "-q", "--detach", str(tree), commit],
            check=True,
        )
        try:
            kept = REPOSITORY / "images" / ".cache"
            kept.mkdir(exist_ok=True)
            (tree / "images" / ".cache").symlink_to(kept)
            yield tree
        finally:
            subprocess.run(
                ["git", "-C", str(REPOSITORY), "worktree", "remove", "--force", str(tree)],
                check=True,
            )


@contextmanager
def _turn(*trees: Path) -> Iterator[None]:
    """Hold the lock for all runs, unless a tree is older than that: its runs take it one by one."""
    if all((tree / "bench" / "turn.py").exists() for tree in trees):
        with turn.taken():
            yield
    else:
        yield


def _differs(revisions: Sequence[str], path: str) -> bool:
    """Whether a path is not the same in two revisions."""
    given = [one for one in revisions if one != "."]
    if not given:
        return False
    command = ["git", "-C", str(REPOSITORY), "diff", "--quiet", *given, "--", path]
    return subprocess.run(command, check=False).returncode != 0


def _git(*words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(REPOSITORY), *words], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()
