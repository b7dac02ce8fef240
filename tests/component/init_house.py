"""The init alone, as the first process of a pid namespace of its own, with real programs below it.

Built as setup builds it. A program of a test says "told …" when it is asked to stop, and ends only
once the test lets it (`Town.let_go`): who is killed before cannot say "bye".
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "init" / "kindling-init.c"
TCC = ("tcc", "-nostdlib", "-static", "-Wall", "-Werror")
LIMIT_S = 20

# argv: the FIFO to wait for, then the signals that are handled.
APP = """
import os, signal, sys
def say(text):
    os.write(1, (text + chr(10)).encode())
def bye(number, frame):
    say("told " + signal.Signals(number).name)
    os.read(os.open(sys.argv[1], os.O_RDONLY), 1)
    say("bye")
    os._exit(7)
for name in sys.argv[2:]:
    signal.signal(getattr(signal, name), bye)
say("up")
while True:
    signal.pause()
"""


def build(folder: Path) -> Path:
    """Build the init and return its path."""
    out = folder / "kindling-init"
    subprocess.run([*TCC, "-o", str(out), str(SOURCE)], check=True)
    return out


def apart() -> list[str]:
    """Return the command that runs another one as the first process of a namespace."""
    mapped = [] if os.geteuid() == 0 else ["--map-root-user"]
    return ["unshare", *mapped, "--pid", "--fork", "--kill-child", "--mount-proc"]


class Town:
    """One namespace: its init's pid, and what its programs say."""

    def __init__(self, process: subprocess.Popen[str], fifo: int) -> None:
        self._process = process
        self._fifo = fifo
        self.said: list[str] = []

    @property
    def init(self) -> int:
        """The pid of the init on this host."""
        pid = self._process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    def hear(self, line: str, times: int = 1) -> None:
        """Wait until a line has been said; fails when all have ended without it."""
        assert self._process.stdout is not None
        while self.said.count(line) < times:
            got = self._process.stdout.readline()
            assert got, f"{line!r} was never said, only {self.said}"
            self.said.append(got.rstrip("\n"))

    def send(self, number: int) -> None:
        """Send the init a signal."""
        os.kill(self.init, number)

    def let_go(self, count: int = 1) -> None:
        """Let as many end as wait for it: each reads a byte."""
        os.write(self._fifo, b"x" * count)

    def ended(self) -> int:
        """Wait for the end and return the init's status; what was said last is in `said`."""
        out, _ = self._process.communicate(timeout=LIMIT_S)
        self.said += out.splitlines()
        return self._process.returncode


@contextmanager
def town(
    init: Path,
    folder: Path,
    argv: Sequence[str],
    stop: int = 15,
    before: Sequence[str] = (),
) -> Iterator[Town]:
    """Run a command below the init, which `before` executes.

    `APP` and `FIFO` in its words are the app and what it reads.
    """
    fifo, app = folder / "fifo", folder / "app.py"
    if not fifo.exists():
        os.mkfifo(fifo)
        app.write_text(APP)
    command = f"{sys.executable} -S {app} {fifo}"
    words = [word.replace("APP", command).replace("FIFO", str(fifo)) for word in argv]
    with subprocess.Popen(
        [*apart(), *before, str(init), str(int(stop)), *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        # A line that never comes is the end of all, not of the test run's patience.
        limit = threading.Timer(LIMIT_S, process.kill)
        limit.start()
        held = os.open(fifo, os.O_RDWR)
        try:
            yield Town(process, held)
        finally:
            limit.cancel()
            process.kill()
            os.close(held)
