"""A second agent for tests: its own directories, ports and node, run as the user kindling.

Starts the INSTALLED package below /usr/lib/kindling, as users get it. Nothing is faked; a test may
name another worker program to look at the house alone. `make_agent` and `agent` in conftest hand
these out.
"""

from __future__ import annotations

import http.client
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from agent.rootless import cgroup
from agent.rootless.preflight import USER
from agent.rootless.settings import CGROUP_NAME, PIDS_NAME
from agent.rootless.supervise import WORKER_VARIABLE
from agent.rootless.sweep import sweep
from tests.leak import command_of, is_own_group, leaks, members

LIB = Path("/usr/lib/kindling")
KINDLING = LIB / "venv" / "bin" / "kindling"
TEST_SLOTS = Path("/var/lib/kindling-test/slots")
# An emulated machine is that many times slower than hardware, and is waited for as much longer.
SLOWER = float(os.environ.get("KINDLING_TEST_SLOWER", "1"))
READY_S = 60.0
STOP_S = 60.0 * SLOWER
READY_LINE = "kindling is ready"

Sections = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Reply:
    """An HTTP reply, its body read to the end. Header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Done:
    """A finished command."""

    status: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


class RunningAgent:
    """One agent of a test. `sections` are merged over the test's configuration, table by table."""

    def __init__(
        self,
        *,
        node: str = "test",
        sections: Sections | None = None,
        worker: list[str] | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.node = node
        self.environment = environment or {}
        self.home = Path(tempfile.mkdtemp(prefix="kd-", dir="/tmp"))
        self.home.chmod(0o755)
        self.run = self.home / "run"
        self.data = self.home / "data"
        self.invoke_port, self.admin_port = free_ports(2)
        self.config = self.home / "kindling.toml"
        self.log_path = self.home / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self._worker = worker
        own(self.home)
        self.sections: Sections = {
            "paths": {"run": str(self.run), "data": str(self.data), "slots": str(TEST_SLOTS)},
            "node": {"name": node},
            "invoke": {"listen": f"127.0.0.1:{self.invoke_port}"},
            "admin": {"listen": f"127.0.0.1:{self.admin_port}"},
            # Tests count what they have started; those of standbys ask for them.
            "standby": {"auto": False},
        }
        self.configure(sections or {})

    # Starting and stopping

    def configure(self, sections: Sections) -> None:
        """Merge tables into the configuration file; takes effect at the next start or reload."""
        for name, table in sections.items():
            self.sections.setdefault(name, {}).update(table)
        lines = []
        for name, table in self.sections.items():
            lines.append(f"[{name}]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
        self.config.write_text("\n".join(lines) + "\n")

    def start(self, *, wait: bool = True) -> RunningAgent:
        """Start it as the user kindling and wait until it says that it is ready."""
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            "KINDLING_TEST_RUN": str(self.run),
            "NOTIFY_SOCKET": os.environ.get("NOTIFY_SOCKET", ""),
            **self.environment,
        }
        if self._worker:
            environment[WORKER_VARIABLE] = json.dumps(self._worker)
        began_at = len(self.log())
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*as_kindling(), str(KINDLING), "run", "--config", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=environment,
                # Like a shell's foreground job: Ctrl-C goes to the whole group.
                process_group=0,
            )
        if wait:
            self.wait_for(READY_LINE, READY_S, after=began_at)
        return self

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop it in order and return its exit status."""
        assert self.process is not None, "it was never started"
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait until `kindling run` has ended."""
        assert self.process is not None, "it was never started"
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._kill(self.tree())
            raise AssertionError(f"did not stop in {STOP_S:g} s:\n{self.log()}") from None

    def kill_everything(self, *, spare: Collection[int] = ()) -> None:
        """kill -9 the whole process tree at once, shims too; instances' own groups are left out.

        Fails if supervisor, containerd or, under the real worker, shims are not among them.
        """
        pids = [pid for pid in self.tree() if pid not in spare]
        named = self.pids
        assert {named["supervise"], named["containerd"]} <= set(pids), (named, pids)
        assert self._worker or self.shims(), f"no shim to kill:\n{self.log()}"
        self._kill(pids)

    def _kill(self, pids: list[int]) -> None:
        if self.process is not None and self.process.poll() is None:
            pids = [*pids, self.process.pid]
        # Stop first: nobody may start or end anything while the others die.
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in pids:
                signal_pid(pid, number)
        if self.process is not None:
            self.process.wait(STOP_S)
        self.process = None
        self.wait_until(lambda: not any(map(is_alive, pids)), what="the end of all")

    def close(self) -> None:
        """Stop it if it runs, fail if anything of it is left, remove its directories."""
        try:
            if self.process is not None and self.process.poll() is None:
                self.stop()
            left = leaks(self.run, self.node, within_s=5, apart=True)
            assert not left, f"left behind: {json.dumps(left, indent=1)}\n{self.log()}"
        finally:
            sweep(self.layout.node_directories(self.node), within_s=5)
            shutil.rmtree(self.home, ignore_errors=True)

    # What it is

    @property
    def pids(self) -> dict[str, int]:
        """Pids by name: run, supervise, containerd, worker (0 while one is being restarted)."""
        found = {"run": self.process.pid if self.process else 0}
        path = self.run / PIDS_NAME
        return found | (json.loads(path.read_text()) if path.exists() else {})

    def tree(self) -> list[int]:
        """Return every process in the node's own group: rootlesskit and all below, shims too.

        Killed ones that nobody has collected yet are still listed by the kernel, but not here.
        """
        found = cgroup.processes(self.layout.agent_directory(self.node))
        return [pid for pid in found if is_alive(pid)]

    def shims(self) -> list[int]:
        """Return the shims of its containers."""
        return [pid for pid in self.tree() if "containerd-shim" in command_of(pid)]

    def instance_pids(self) -> set[int]:
        """Return the processes of its instances: those in groups of the node but its own."""
        groups = self.layout.agent_directory(self.node).parent.glob("*/")
        return members(group for group in groups if not is_own_group(group.name))

    def group(self, controller: str, instance: str) -> Path:
        """Return an instance's group; on v2 every controller's is the same."""
        return self.layout.directory(controller, self.node) / instance

    @property
    def layout(self) -> cgroup.CgroupLayout:
        """Where its cgroups are: as it found them itself, or as it would."""
        with suppress(FileNotFoundError):
            return cgroup.load(self.run / CGROUP_NAME)
        found = cgroup.detect()
        assert found is not None, "this host has no cgroups"
        return found

    @property
    def socket(self) -> Path:
        """The admin gRPC socket, for KINDLING_SOCKET."""
        return self.run / "kindling.sock"

    def log(self) -> str:
        """Return all that it printed so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def leaks(self, within_s: float = 5.0) -> dict[str, list[str]]:
        """Return what instances left behind, see tests/leak.py."""
        return leaks(self.run, self.node, within_s=within_s, apart=True)

    def wait_for(self, text: str, within_s: float = 10.0, *, after: int = 0) -> None:
        """Wait until it has printed `text` past the first `after` characters of its log."""
        self.wait_until(lambda: text in self.log()[after:], within_s, f"{text!r} in the log")

    def wait_until(self, holds: Callable[[], bool], within_s: float = 10.0, what: str = "") -> None:
        """Wait until a condition holds; fails with the log if it does not in time."""
        deadline = time.monotonic() + within_s * SLOWER
        while not holds():
            ended = self.process is not None and self.process.poll() is not None
            if ended and not holds():
                raise AssertionError(f"ended while waiting for {what}:\n{self.log()}")
            if time.monotonic() >= deadline:
                raise AssertionError(f"no {what or 'success'} in {within_s:g} s:\n{self.log()}")
            time.sleep(0.01 * SLOWER)

    # Using it

    def cli(
        self,
        *arguments: str | Path,
        check: bool = True,
        timeout_s: float = 60.0,
        stdin: str = "",
    ) -> Done:
        """Run `kindling …` against it, as root; fails on a non-zero exit unless told not to."""
        done = subprocess.run(
            [str(KINDLING), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=timeout_s * SLOWER,
            env=os.environ | {"KINDLING_SOCKET": str(self.socket)},
            input=stdin,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"kindling {' '.join(map(str, arguments))} ended with {done.returncode}:\n"
                f"{done.stdout}{done.stderr}\n{self.log()}"
            )
        return Done(done.returncode, done.stdout, done.stderr)

    def http(
        self,
        method: str,
        path: str,
        body: bytes | str = b"",
        headers: dict[str, str] | None = None,
        *,
        port: int = 0,
        timeout_s: float = 60.0,
    ) -> Reply:
        """Send one request to the invoke endpoint (or another port) and return the reply."""
        client = http.client.HTTPConnection(
            "127.0.0.1", port or self.invoke_port, timeout=timeout_s * SLOWER
        )
        with closing(client):
            client.request(method, path, body=body or None, headers=headers or {})
            reply = client.getresponse()
            names = {name.lower(): value for name, value in reply.getheaders()}
            return Reply(reply.status, names, reply.read())


def open_lock(path: Path) -> TextIO:
    """Open a lock file in a directory where others may put links: none is followed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    return open(os.open(path, flags, 0o644), "w", encoding="utf-8")


def free_ports(count: int) -> list[int]:
    """Return TCP ports of the loopback that are free now, all different."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


def as_kindling() -> list[str]:
    """Return the beginning of a command that runs as the user kindling."""
    return ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups"]


def own(path: Path) -> None:
    user = pwd.getpwnam(USER)
    os.chown(path, user.pw_uid, user.pw_gid)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that waits for its parent to collect it does not."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rpartition(")")[2].split()[0] not in ("Z", "X")


def signal_pid(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def install(repository: Path) -> None:
    """Bring the installed package up to this working tree; fails with setup's own last lines."""
    done = subprocess.run(
        ["bash", str(repository / "setup" / "install.sh")],
        capture_output=True,
        text=True,
        timeout=600 * SLOWER,
        check=False,
    )
    if done.returncode != 0:
        sys.stderr.write(done.stdout)
        raise AssertionError(f"setup/install.sh: {done.stderr.strip()}")
