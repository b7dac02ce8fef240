"""Rootless podman as a peer: pull and run, as the user kindling, with a store of its own."""

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

from bench import probe
from bench.house import PeerFailed
from tests.integration.running import as_kindling, own

WITHIN_S = 300.0


class Podman:
    """Podman over one store; `certificates` is a directory of authorities."""

    def __init__(self, home: Path, certificates: Path) -> None:
        self._home = home
        self._certificates = certificates

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

    def _run(self, *words: str) -> None:
        command = [
            *as_kindling(),
            *("podman", "--root", str(self._home / "root"), "--runroot", str(self._home / "run")),
            *("--cgroup-manager=cgroupfs", "--events-backend=none", "--runtime=runc", *words),
        ]
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self._home),
            "XDG_RUNTIME_DIR": str(self._home),
        }
        done = subprocess.run(
            command, env=environment, cwd="/", capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise PeerFailed(f"podman {words[0]}: {done.stderr[-2000:]}")


def is_here() -> bool:
    """Say whether this host has podman."""
    return shutil.which("podman") is not None


@contextmanager
def store(certificates: Path, parent: Path) -> Iterator[Podman]:
    """Give a podman with an empty store below `parent`."""
    home = Path(tempfile.mkdtemp(prefix="kd-podman-", dir=parent))
    own(home)
    try:
        yield Podman(home, certificates)
    finally:
        _end_pause(home)
        # Its files belong to subordinate ids: root removes them.
        shutil.rmtree(home, ignore_errors=True)


def _end_pause(home: Path) -> None:
    """End the process that keeps podman's user namespace from one command to the next."""
    with suppress(FileNotFoundError, ProcessLookupError):
        pid = int((home / "libpod" / "tmp" / "pause.pid").read_text())
        os.kill(pid, signal.SIGKILL)
