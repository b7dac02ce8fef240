"""How the command line ends: exit status, Ctrl-C, closed pipes, no agent, wrong use."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from agent.cli.group import kindling
from agent.cli.outcome import status_of
from agent.control.node import InvokeResult, LogEntry
from agent.errors import RuntimeUnavailable
from agent.telemetry.logs import LogLine
from tests.component.cli_agent import Agent, running
from tests.component.control_fake import AT_NS, spec, version
from tests.schemas import faults

MIB = 1 << 20
COMMAND = [sys.executable, "-m", "agent.cli.main"]


@pytest.fixture
def agent() -> Iterator[Agent]:
    with running() as one:
        one.node.deployed["hello"] = [version(spec())]
        yield one


def start(agent: Agent, *arguments: str) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    return subprocess.Popen([*COMMAND, *arguments], stdout=pipe, stderr=pipe, env=agent.env)


def log_line(text: str) -> LogEntry:
    return LogEntry(LogLine(AT_NS, "stdout", "i1", 1, text))


def test_ctrl_c_ends_a_followed_log_without_a_traceback(agent: Agent) -> None:
    process = start(agent, "logs", "hello", "-f")
    assert process.stdout is not None
    agent.put(agent.node.lines, log_line(""))
    assert b"stderr caf\xe9\n" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err.strip() in (b"", b"(4 lines were dropped: too slow a reader)")


@pytest.mark.parametrize("error", [RuntimeUnavailable("cancelled"), RuntimeError("lost")])
def test_what_a_library_makes_of_ctrl_c_is_ctrl_c(error: Exception) -> None:
    def run() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise error from None

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert status_of(run, []) == 130
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_a_call_that_hangs(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    came = threading.Event()

    async def hang(_call: object) -> InvokeResult:
        came.set()
        nothing: asyncio.Future[InvokeResult] = asyncio.get_running_loop().create_future()
        return await nothing

    monkeypatch.setattr(agent.node, "invoke", hang)
    process = start(agent, "invoke", "hello")
    assert came.wait(20)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err.strip()) == (130, b"", b"")


def test_a_reader_that_goes_away_ends_it_quietly(agent: Agent) -> None:
    agent.node.result = InvokeResult("1-a", 200, [], b"x" * MIB)
    process = start(agent, "invoke", "hello")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait(20) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.parametrize("missing", [0, 1, 2])
@pytest.mark.parametrize(
    "arguments",
    [
        ("status",),
        ("status", "--json"),
        ("logs", "hello"),
        ("invoke", "hello", "--data", "@-"),
        ("remove", "hello"),
        ("deploy", "-"),
        ("image", "import", "-"),
        ("drain", "--timeout", "1"),
        ("check",),
    ],
)
def test_a_standard_stream_that_is_closed_breaks_nothing(
    agent: Agent, arguments: tuple[str, ...], missing: int
) -> None:
    closing = f"import os, sys; os.close({missing}); os.execv(sys.argv[1], sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", closing, *COMMAND, *arguments],
        input=b"",
        capture_output=True,
        env=agent.env,
        timeout=60,
        check=False,
    )
    assert done.returncode in (0, 1)
    assert b"Traceback" not in done.stderr


def test_a_time_that_is_no_number_is_wrong_use(agent: Agent) -> None:
    done = agent.cli("drain", "--timeout", "nan")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("kindling drain: Invalid value for '--timeout'")
    assert agent.node.seen == []


def test_a_full_disk_is_one_line(agent: Agent) -> None:
    agent.node.result = InvokeResult("1-a", 200, [], b"x" * MIB)
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*COMMAND, "invoke", "hello"], stdout=full, stderr=subprocess.PIPE, env=agent.env,
            check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.decode() == "kindling invoke: [Errno 28] No space left on device\n"


def test_32_mb_come_through_whole_both_ways(agent: Agent, tmp_path: Path) -> None:
    body = os.urandom(MIB) * 32
    agent.node.result = InvokeResult("1-a", 200, [], body)
    event = tmp_path / "event"
    event.write_bytes(body)
    done = subprocess.run(
        [*COMMAND, "invoke", "hello", "--data", f"@{event}"],
        capture_output=True,
        env=agent.env,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(body).digest()
    assert agent.node.seen[-1][1].body == body


def test_on_a_terminal_logs_cannot_drive_it_and_a_trace_has_bars(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def logs(_name: str, _query: object) -> object:
        yield log_line("\x1b[2Jwiped\ttab \x9b31m")

    monkeypatch.setattr(agent.node, "logs", logs)
    shown = on_terminal(agent, "logs", "hello")
    assert b"\\x1b[2Jwiped\ttab \\x9b31m" in shown
    shown = on_terminal(agent, "invoke", "hello", "--trace")
    assert b"create    10.00 ms" in shown
    assert "█".encode() in shown


def slow_removal(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Have the node's removals wait until somebody asks for the instances; tell when one began."""
    began = threading.Event()

    async def remove(name: str, *, force: bool) -> None:
        agent.node.seen.append(("remove", name, force))
        began.set()
        while ("instances", "") not in agent.node.seen:  # noqa: ASYNC110 - set by two threads
            await asyncio.sleep(0.01)

    monkeypatch.setattr(agent.node, "remove", remove)
    return began


def test_on_a_terminal_a_removal_that_takes_long_says_what_it_waits_for(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_removal(agent, monkeypatch)
    shown = on_terminal(agent, "remove", "hello").decode().splitlines()
    assert shown[0] == (
        "hello takes no more calls; waiting for hello-0badcafe to end, 60 s at most"
    )
    assert shown[1].startswith("'kindling remove hello --force' ends them now")
    assert shown[2:] == ["removed hello"]


def test_a_removal_that_is_quick_or_read_by_a_script_explains_nothing(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert on_terminal(agent, "remove", "hello") == b"removed hello\r\n"
    began = slow_removal(agent, monkeypatch)
    process = start(agent, "remove", "hello")
    assert began.wait(20)
    agent.node.seen.append(("instances", ""))
    assert process.communicate(timeout=20) == (b"removed hello\n", b"")


def test_ctrl_c_at_a_removal_that_takes_long_ends_the_waiting(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = slow_removal(agent, monkeypatch)
    process = start(agent, "remove", "hello")
    assert began.wait(20)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[0] == b""
    assert process.returncode == 130


def on_terminal(agent: Agent, *arguments: str) -> bytes:
    ours, theirs = pty.openpty()
    process = subprocess.Popen([*COMMAND, *arguments], stdout=theirs, stderr=theirs, env=agent.env)
    os.close(theirs)
    shown = b""
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        try:
            while block := terminal.read(4096):
                shown += block
        except OSError:
            pass  # EIO: the other side has closed
    assert process.wait(20) == 0
    return shown


@pytest.mark.parametrize(
    "verb",
    [
        ("status",),
        ("deploy", "--name", "a", "--image", "a:1", "--contract", "fc"),
        ("remove", "a"),
        ("invoke", "a"),
        ("logs", "a"),
        ("image", "ls"),
        ("image", "pull", "a:1"),
        ("image", "import", "-"),
        ("image", "rm", "a:1"),
        ("drain",),
        ("undrain",),
    ],
)
def test_without_an_agent_every_verb_says_so_in_one_line(
    verb: tuple[str, ...], tmp_path: Path
) -> None:
    env = {"KINDLING_SOCKET": str(tmp_path / "no.sock")}
    done = CliRunner(env=env).invoke(kindling, verb)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert f"no agent runs at {tmp_path}/no.sock: start it with" in done.stderr
    done = CliRunner(env=env).invoke(kindling, [*verb, "--json"])
    value = json.loads(done.stderr)
    assert faults("error", value) == []
    assert value["error"]["code"] == "NoAgent"


def test_an_agent_that_died_left_its_socket_and_is_told_as_such(tmp_path: Path) -> None:
    path = tmp_path / "old.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    done = CliRunner(env={"KINDLING_SOCKET": f"unix:{path}"}).invoke(kindling, ["status"])
    assert done.exit_code == 1
    assert f"no agent runs at {path}" in done.stderr


def test_something_else_at_the_socket_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "other.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()

        def answer() -> None:
            for _ in range(2):
                link, _peer = other.accept()
                with link, suppress(OSError):  # the first one only knocks
                    link.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        done = CliRunner(env={"KINDLING_SOCKET": str(path)}).invoke(kindling, ["status"])
        thread.join(20)
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert str(path) in done.stderr


def test_a_socket_that_may_not_be_opened_names_the_group(tmp_path: Path) -> None:
    shut = tmp_path / "shut"
    shut.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as held:
        held.bind(str(shut / "a.sock"))
        held.listen()
        run = (
            "import os, sys\n"
            "import agent.cli.group\n"
            "sys.argv = ['kindling', 'status']\n"
            "wanted = os.environ['KINDLING_SOCKET']\n"
            "os.environ['KINDLING_SOCKET'] = '/nonexistent/a.sock'\n"
            "try:\n"  # loads what the verb needs: nobody may be unable to read this checkout
            "    agent.cli.group.kindling()\n"
            "except SystemExit:\n"
            "    os.environ['KINDLING_SOCKET'] = wanted\n"
            "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
            "agent.cli.group.kindling()\n"
        )
        if os.geteuid() != 0:
            run = run.replace("os.setgroups([]); os.setgid(65534); os.setuid(65534)\n", "")
            shut.chmod(0o000)
        done = subprocess.run(
            [sys.executable, "-c", run],
            capture_output=True,
            env={**os.environ, "KINDLING_SOCKET": str(shut / "a.sock")},
            check=False,
        )
        shut.chmod(0o700)
    assert done.returncode == 1
    assert b"usermod -aG kindling" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["frobnicate"], "No such command"),
        (["deploy"], "give a FILE"),
        (["deploy", "/no/such/file.toml"], "does not exist"),
        (["invoke"], "Missing argument"),
        (["invoke", "a", "--data", "@/no/such/file"], "No such file"),
        (["invoke", "a", "--header", "nonsense"], "is not 'Name: value'"),
        (["invoke", "a", "--async", "--wait"], "choose one"),
        (["invoke", "a", "--nope"], "No such option"),
        (["logs", "a", "--tail", "many"], "not a valid integer"),
        (["drain", "--timeout", "-1"], "not in the range"),
        (["image", "import", "/no/such.tar"], "No such file"),
    ],
)
def test_wrong_use_ends_with_2_and_says_what_is_wrong_first(
    arguments: list[str], said: str
) -> None:
    done = CliRunner().invoke(kindling, arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr.splitlines()[0]
    done = CliRunner().invoke(kindling, [*arguments, "--json"])
    assert done.exit_code == 2
    value = json.loads(done.stderr)
    assert faults("error", value) == []
    assert value["error"]["code"] == "WrongUse"


def test_check_prints_what_its_schema_says() -> None:
    # Whatever this host lacks: the exit status says so, the answer is whole.
    done = subprocess.run([*COMMAND, "check", "--json"], capture_output=True, check=False)
    value = json.loads(done.stdout)
    assert faults("check", value) == []
    assert done.returncode == (0 if value["ok"] else 1)


def test_help_and_version_end_with_0() -> None:
    for arguments in (["--help"], ["--version"], ["deploy", "-h"], ["image", "pull", "--help"]):
        done = CliRunner().invoke(kindling, arguments)
        assert (done.exit_code, done.stderr) == (0, "")
        assert done.stdout


def test_help_loads_neither_grpc_nor_pydantic_nor_rich() -> None:
    code = (
        "import sys\nfrom agent.cli.group import kindling\n"
        "try:\n    kindling(['--help'])\nexcept SystemExit:\n    pass\n"
        "found = {'grpc', 'pydantic', 'rich', 'google.protobuf'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_who_is_not_the_agents_user_is_told_whom_a_check_is_about(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pwd.getpwnam", lambda _name: SimpleNamespace(pw_uid=os.geteuid() + 1))
    monkeypatch.setattr("agent.rootless.probe.checks", lambda *_, **__: [])
    monkeypatch.setattr("os.geteuid", lambda: 4321)
    done = CliRunner().invoke(kindling, ["check"])
    assert "the rest is about uid 4321, who asks: see 'sudo kindling check'" in done.stdout
