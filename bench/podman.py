"""Rootless podman as a peer: pull and run, as the user kindling, with a store of its own.

Its containers share the host's network, which spares podman what it takes longest for, and run by
runc, for Debian 12's crun refuses hosts with both kinds of cgroups.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from bench import probe
from bench.house import PeerFailed
from tests.integration.running import as_kindling, own

WITHIN_S = 300.0


class Podman:
    """Podman over one store; `certificates` is a directory of authorities."""

    def __init__(self, home: Path, certificates: Path) -> None:
        self._home = home
        self._certificates = certificates

    def load(self, archive: Path) -> None:
        """Load an image from an archive."""
        with archive.open("rb") as file:  # which its user may not be able to open
            self._run("load", "-q", stdin=file)

    def start(self, ref: str, name: str, port: int) -> float:
        """Return milliseconds from the start of `podman run` to the first reply."""
        listen = f"FC_CUSTOM_LISTEN_PORT={port}"
        words = ("run", "--rm", "-q", "--network=host", f"--name={name}", "-e", listen, ref)
        mark = time.perf_counter()
        with subprocess.Popen(self._command(*words), **self._surroundings()) as process:
            try:
                took_ms, _ = probe.call_when_up(port, mark, WITHIN_S)
            finally:
                self._run("rm", "-f", "-t", "0", name)
                process.wait(WITHIN_S)
        return took_ms

    def client(self) -> float:
        """Return milliseconds that a command of podman takes which does nothing."""
        mark = time.perf_counter()
        self._run("--version")
        return (time.perf_counter() - mark) * 1000

    def pull_and_run(self, ref: str, port: int) -> float:
        """Return milliseconds from the start of the pull to the first reply."""
        mark = time.perf_counter()
        try:
            self._run("pull", "-q", "--cert-dir", str(self._certificates), ref)
            listen = f"FC_CUSTOM_LISTEN_PORT={port}"
            self._run(*("run", "-d", "-q", "--network=host"), "-e", listen, ref)
            took_ms, _ = probe.call_when_up(port, mark, WITHIN_S)
        finally:
            self._run("rm", "-f", "-a", "-t", "0")
            self._run("rmi", "-f", "-a")
        return took_ms

    def _run(self, *words: str, stdin: BinaryIO | None = None) -> None:
        streams = {"stderr": subprocess.PIPE} | ({"stdin": stdin} if stdin else {})
        surroundings = self._surroundings() | streams
        done = subprocess.run(self._command(*words), **surroundings, check=False)
        if done.returncode != 0:
            raise PeerFailed(f"podman {words[0]}: {done.stderr.decode()[-2000:]}")

    def _command(self, *words: str) -> list[str]:
        return [
            *as_kindling(),
            *("podman", "--root", str(self._home / "root"), "--runroot", str(self._home / "run")),
            *("--cgroup-manager=cgroupfs", "--events-backend=none", "--runtime=runc", *words),
        ]

    def _surroundings(self) -> dict[str, Any]:
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self._home),
            "XDG_RUNTIME_DIR": str(self._home),
        }
        nowhere = subprocess.DEVNULL
        streams = {"stdin": nowhere, "stdout": nowhere, "stderr": nowhere}
        return {"env": environment, "cwd": "/", **streams}


def is_here() -> bool:
    """Say whether this host has podman."""
    return shutil.which("podman") is not None


@contextmanager
def store(certificates: Path | None = None, parent: Path = Path("/var/tmp")) -> Iterator[Podman]:
    """Give a podman with an empty store below `parent`."""
    home = Path(tempfile.mkdtemp(prefix="kd-podman-", dir=parent))
    own(home)
    try:
        yield Podman(home, certificates or home)
    finally:
        _end_pause(home)
        # Its files belong to subordinate ids: root removes them.
        shutil.rmtree(home, ignore_errors=True)


def _end_pause(home: Path) -> None:
    """End the process that keeps podman's user namespace from one command to the next."""
    with suppress(FileNotFoundError, ProcessLookupError):
        pid = int((home / "libpod" / "tmp" / "pause.pid").read_text())
        os.kill(pid, signal.SIGKILL)
