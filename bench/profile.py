"""Where the warm path spends its time: the gateway alone under cProfile while wrk loads it.

`make profile` runs it, without root and without containerd. Writes bench/out/warm.pstats, for any
viewer of such files, and prints the functions that took most, alone and with what they call.
cProfile makes small Python functions look dearer than they are: it says where to look, `bench`
says what was gained.
"""

from __future__ import annotations

import argparse
import os
import pstats
import shutil
import sys
import tempfile
from pathlib import Path

from bench.traffic import USUAL
from bench.warm import (
    BACKEND,
    LOAD_CPU,
    PIECE,
    PROXY_CPU,
    free_port,
    nginx_program,
    pinned,
    wait_for,
    wrk,
)

OUT = Path(__file__).resolve().parent / "out" / "warm.pstats"
SHOWN = 30
ORDERS = ("tottime", "cumtime")


def record(seconds: int, contract: str, out: Path) -> float:
    """Load the gateway under the profiler; returns how many calls it served."""
    port, small, large = free_port(), free_port(), free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = folder / "backend.conf"
        config.write_text(BACKEND.format(dir=folder, piece=PIECE, small=small, large=large))
        with pinned(LOAD_CPU, nginx_program(), "-c", str(config), "-p", str(folder)):
            wait_for(small)
            os.environ["KINDLING_PROFILE"] = str(out)
            serve = (sys.executable, "-m", "bench.warm", "--serve")
            with pinned(PROXY_CPU, *serve, str(port), str(small), str(large), contract):
                wait_for(port)
                script = USUAL.write(folder, "f")
                return wrk(port, script, USUAL.connections, seconds=seconds)["requests"]


def main() -> int:
    """Record, write, print."""
    parser = argparse.ArgumentParser(prog="python -m bench.profile", description=__doc__)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--contract", default="fc")
    given = parser.parse_args()
    for tool in ("wrk", "taskset"):
        if shutil.which(tool) is None:
            parser.error(f"{tool} is missing: run 'setup/host.sh --dev'")
    OUT.parent.mkdir(exist_ok=True)
    OUT.unlink(missing_ok=True)
    calls = record(given.seconds, given.contract, OUT)
    if not OUT.exists():
        raise SystemExit("the gateway left no profile: it was killed before it could write one")
    stats = pstats.Stats(str(OUT)).strip_dirs()
    for order in ORDERS:
        stats.sort_stats(order).print_stats(SHOWN)
    print(f"{calls:.0f} calls, contract {given.contract}; the whole profile: {OUT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
