"""`kindling reload`: to the installed code, to releases and configurations that do not work.

A release is an environment below /usr/lib/kindling/agents, and installed by the link beside it, as
setup/install.sh does. Broken ones are copies of the real one with one module changed.
"""

from __future__ import annotations

import base64
import http.client
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.integration.functions import Functions
from tests.integration.running import LIB, Done, RunningAgent, is_alive
from tests.integration.test_recovery import Caller, kill_worker, pids_of, states

HELD = (Path(__file__).parents[1] / "inside" / "held_server.py").read_text()
LINK = LIB / "venv"
STOP_TIMEOUT_S = 2
RELOADS = 3
WAIT_S = 60.0

Change = Callable[[Path], None]


class Releases:
    """Broken copies of the installed release; removed at the end, when nothing runs from them."""

    def __init__(self) -> None:
        self._good = os.readlink(LINK)
        self._made: list[Path] = []

    @contextmanager
    def broken(self, change: Change) -> Iterator[Path]:
        """Install a copy of the release with something in its package `agent` changed."""
        copy = LIB / "agents" / f"broken-{os.getpid()}-{len(self._made)}"
        self._made.append(copy)
        shutil.copytree(LIB / self._good, copy, symlinks=True)
        (package,) = copy.glob("lib/python*/site-packages/agent")
        change(package)
        self._turn_over(f"agents/{copy.name}")
        try:
            yield copy
        finally:
            self._turn_over(self._good)

    def _turn_over(self, target: str) -> None:
        fresh = LINK.with_name("venv.new")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target)
        fresh.replace(LINK)

    def remove(self) -> None:
        for made in self._made:
            shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def releases(installed: None) -> Iterator[Releases]:
    found = Releases()
    yield found
    found.remove()


@pytest.fixture
def node(make_agent: Callable[..., RunningAgent], releases: Releases) -> Iterator[RunningAgent]:
    """An agent of its own; what is in flight would be cut off 0.8 s after TERM."""
    agent = make_agent(
        node="reload",
        sections={"storage": {"writable": "tmpfs"}, "limits": {"stop_timeout_s": STOP_TIMEOUT_S}},
    )
    agent.start()
    yield agent
    agent.close()


def reload(agent: RunningAgent) -> None:
    """Reload, and see that another worker serves."""
    before = agent.pids["worker"]
    assert agent.cli("reload").out.startswith("reloaded in ")
    assert agent.pids["worker"] not in (0, before), agent.log()


def refused(agent: RunningAgent) -> Done:
    """Try a reload that fails: nothing has changed, and verb, status and log say why."""
    before, mark = agent.pids, len(agent.log())
    done = agent.cli("reload", check=False)
    assert (done.status, done.out) == (1, ""), agent.log()
    assert agent.pids == before
    assert is_alive(before["worker"])
    reason = done.err.strip().removeprefix("kindling reload: ")
    assert reason.endswith("; the agent goes on as it was")
    assert f"last reload failed: {reason}\n" in agent.cli("status").out
    told = agent.cli("status", "--json").json()["node"]["reload"]
    assert (told["state"], told["reason"]) == ("failed", reason)
    said = agent.log()[mark:]
    assert "the agent goes on as it was" in said
    assert reason.partition("; ")[0].removeprefix("kindling run: ") in said
    return done


def test_a_reload_replaces_the_worker_while_functions_serve(node):
    with Functions(node, same_worker=False) as functions:
        functions.deploy("web", scaling={"min": 1}, concurrency=10)
        before, pids, old = states(functions), pids_of(node), node.pids
        assert node.cli("status", "--json").json()["node"]["reload"] is None
        with Caller(node, "/http/web/echo") as caller:
            reload(node)
            caller.wait_for_more(node, 20)
        assert (caller.refused, caller.broken, set(caller.statuses)) == (0, 0, {200})
        functions.reconnect()
        assert (states(functions), pids_of(node)) == (before, pids)
        assert node.pids == old | {"worker": node.pids["worker"]}
        node.wait_until(lambda: not is_alive(old["worker"]), 30, "the end of the old worker")
        told = node.cli("status", "--json").json()["node"]["reload"]
        assert told == {"number": 1, "state": "done", "reason": ""}


# Releases that do not work


def appended(module: str, text: str) -> Change:
    def change(package: Path) -> None:
        with (package / module).open("a") as file:
            file.write(f"\n{text}\n")

    return change


def without(module: str) -> Change:
    def change(package: Path) -> None:
        for form in package.glob(f"{module}.*"):  # the source, and what was compiled of it
            form.unlink()

    return change


BROKEN: dict[str, tuple[Change, str]] = {
    "raises when the worker is imported": (
        appended("app.py", "raise RuntimeError('this release is broken')"),
        "the new worker: RuntimeError: this release is broken",
    ),
    "lacks a module": (
        without("gateway/doors/server"),
        "No module named 'agent.gateway.doors.server'",
    ),
    "is no Python where the worker begins": (
        appended("cli/worker.py", "("),
        "the new worker ended with exit status 1: its last words are in the log",
    ),
    "fails while it prepares": (
        appended(
            "app.py",
            "async def _broken(self): raise ValueError('nothing fits')\nApp._prepare = _broken",
        ),
        "the new worker: ValueError('nothing fits')",
    ),
    "refuses while it prepares": (
        appended(
            "app.py",
            "async def _broken(self): raise AgentError('the host is too old')\n"
            "App._prepare = _broken",
        ),
        "the new worker: the host is too old",
    ),
    "ends at once": (
        appended("app.py", "os._exit(3)"),
        "the new worker ended with exit status 3",
    ),
    "has a supervisor that does not start": (
        appended(
            "rootless/settings.py",
            "import sys\nif '--trial' in sys.argv: raise SystemExit(9)",
        ),
        "the installed supervisor does not start: exit status 9",
    ),
    "has a command line that does not start": (
        appended("rootless/parent.py", "raise RuntimeError('this release is broken')"),
        "RuntimeError: this release is broken",
    ),
}  # fmt: skip


def test_a_release_that_cannot_start_changes_nothing_and_says_why(node, releases):
    with Functions(node, same_worker=False) as functions:
        functions.deploy("web", scaling={"min": 1}, concurrency=10)
        before, pids = states(functions), pids_of(node)
        with Caller(node, "/http/web/echo") as caller:
            for case, (change, reason) in BROKEN.items():
                with releases.broken(change):
                    done = refused(node)
                assert reason in done.err, f"{case}: {done.err}"
                caller.wait_for_more(node, 5)
            reload(node)
            caller.wait_for_more(node, 5)
        assert (caller.refused, caller.broken, set(caller.statuses)) == (0, 0, {200})
        assert "last reload" not in node.cli("status").out
        functions.reconnect()
        assert (states(functions), pids_of(node)) == (before, pids)
        good = str(LINK.resolve())
        for name in ("run", "supervise", "worker"):
            words = Path(f"/proc/{node.pids[name]}/cmdline").read_bytes().split(b"\0")
            assert words[0].decode() == f"{good}/bin/python", name


# Configurations that do not work


def test_a_configuration_that_does_not_work_changes_nothing_and_is_named(node):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        listen = node.sections["admin"]["listen"]
        for wrong, right, name in (
            ({"invoke": {"max_connections": 0}}, {"invoke": {"max_connections": 1000}},
             "invoke.max_connections"),
            ({"node": {"name": "other"}}, {"node": {"name": node.node}}, "[node] name"),
            ({"admin": {"listen": address}}, {"admin": {"listen": listen}}, address),
            ({"runtime": {"binary": "not-there"}}, {"runtime": {"binary": "auto"}},
             "runtime.binary"),
        ):  # fmt: skip
            node.configure(wrong)
            assert name in refused(node).err
            node.configure(right)
    reload(node)


# Orders


def restart(agent: RunningAgent) -> None:
    assert agent.stop() == 0
    agent.start()


@pytest.mark.parametrize("order", ["drain", "undrain"])
def test_what_an_operator_ordered_outlives_reload_worker_and_agent(node, order):
    wanted = 503 if order == "drain" else 200
    with Functions(node, same_worker=False) as functions:
        functions.deploy("web")
        if order == "undrain":
            node.cli("drain")
            reload(node)
        node.cli(order)
        for renew in (reload, kill_worker, restart):
            renew(node)
            told = node.cli("status", "--json").json()["node"]
            assert told["draining"] is (order == "drain"), renew.__name__
            assert node.http("GET", "/http/web/echo").status == wanted, renew.__name__
        functions.reconnect()


# Calls


class Socket:
    """A WebSocket to a function that echoes (RFC 6455; every message in one short frame)."""

    def __init__(self, port: int, path: str) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port), WAIT_S)
        key = base64.b64encode(os.urandom(16)).decode()
        self._sock.sendall(
            f"GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        self._file = self._sock.makefile("rb")
        assert b" 101 " in self._file.readline()
        while self._file.readline().strip():
            pass

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._sock.close()

    def echo(self, text: bytes) -> bytes:
        """Send a message and return the one that comes back."""
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[n % 4] for n, byte in enumerate(text))
        self._sock.sendall(bytes([0x81, 0x80 | len(text)]) + mask + masked)
        _, size = self._file.read(2)
        return self._file.read(size)


class Stream:
    """A reply that is read in a thread, line by line."""

    def __init__(self, port: int, path: str) -> None:
        self.lines: list[bytes] = []
        self.broken = ""
        self._port, self._path = port, path
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _read(self) -> None:
        client = http.client.HTTPConnection("127.0.0.1", self._port, timeout=WAIT_S)
        try:
            with closing(client):
                client.request("GET", self._path)
                reply = client.getresponse()
                assert reply.status == 200, reply.status
                for line in reply:
                    self.lines.append(line)
        except (AssertionError, OSError, http.client.HTTPException) as error:
            self.broken = repr(error)


def test_a_call_a_stream_and_a_websocket_last_across_reloads(node):
    with Functions(node, same_worker=False) as functions:
        held = ["/usr/bin/python3", "-c", HELD]
        functions.deploy("held", command=held, concurrency=10, timeout_s=120)
        port = node.invoke_port
        assert node.http("GET", "/http/held/hello").body == b"hello"
        call, stream = Stream(port, "/http/held/held"), Stream(port, "/http/held/stream")
        with Socket(port, "/http/held/socket") as web:
            assert web.echo(b"first") == b"first"
            node.wait_until(lambda: functions.capacity()["inflight"] == 3, 10, "three calls")
            workers = [node.pids["worker"]]
            for number in range(RELOADS):
                reload(node)
                workers.append(node.pids["worker"])
                assert web.echo(b"after %d" % number) == b"after %d" % number
                read = len(stream.lines)
                node.wait_until(lambda read=read: len(stream.lines) > read + 5, 20, "lines")
            assert is_alive(workers[0]), "the worker of the calls has gone"
            assert call.lines == []
            assert node.http("GET", "/http/held/release").body == b"release"
            for reader in (call, stream):
                reader.thread.join(WAIT_S)
            assert web.echo(b"last") == b"last"
        assert (call.lines, call.broken) == ([b"held"], "")
        count = len(stream.lines) - 1
        whole = [b"%d\n" % n for n in range(count)] + [b"end\n"]
        assert (stream.lines, stream.broken) == (whole, "")
        node.wait_until(
            lambda: not any(map(is_alive, workers[:-1])), 30, "the end of the workers before"
        )
        functions.reconnect()
