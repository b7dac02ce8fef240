"""Registry credentials in memory: whose go where, which hold, and commands that print some."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
import threading
from pathlib import Path
from typing import cast

import pytest

from agent.aio import tasks
from agent.containerd.credential_command import MAX_BYTES, parse_printed, run_command
from agent.containerd.credentials import HIDDEN, Credentials, conceal
from agent.containerd.docker_config import DockerConfig, HostCredentials
from agent.containerd.engine_credentials import EngineCredentials
from agent.containerd.keyring import FRESH_S, Keyring
from agent.errors import (
    AgentError,
    FailedPrecondition,
    InvalidSpec,
    Overloaded,
    Problem,
    RuntimeUnavailable,
)
from agent.model.spec import RegistrySpec
from tests.component.function_house import turns, until

NOTHING = RegistrySpec()
HOST = "registry.example:5000"
FIRST, SECOND = Credentials("me", "first"), Credentials("me", "second")


class Clock:
    """Wall time that a test moves."""

    def __init__(self):
        self.now_s = 1_000_000.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def ring(clock):
    return Keyring(clock)


async def found(ring, registry=NOTHING, function="f", host=HOST, asked=None):
    return await ring.access(host, registry, function).credentials(asked or host)


async def test_a_deploys_credentials_serve_its_functions_later_pulls_only(ring):
    brought = RegistrySpec(username="me", password="first")
    assert await found(ring, brought) == FIRST
    assert await found(ring) is None  # nothing was deployed: a call's own are not kept
    ring.keep("f", HOST, brought)
    assert await found(ring) == FIRST
    assert await found(ring, function="g") is None
    assert await found(ring, host="other.example") is None
    ring.drop("f")
    assert await found(ring) is None


async def test_what_came_last_counts(ring, clock):
    ring.keep("f", HOST, RegistrySpec(username="me", password="first"))
    clock.now_s += 1
    ring.set(HOST, SECOND)
    assert await found(ring) == SECOND
    assert await found(ring, RegistrySpec(username="me", password="first")) == FIRST
    ring.set(HOST, None)
    assert await found(ring) == FIRST


async def test_expired_credentials_are_not_shown_and_say_how_to_renew(ring, clock):
    ring.set(HOST, FIRST, clock.now_s + 10)
    assert await found(ring) == FIRST
    clock.now_s += 10
    with pytest.raises(FailedPrecondition, match=r"expired at .*SetCredentials") as error:
        await found(ring)
    assert HOST in error.value.message
    ring.set(HOST, SECOND, clock.now_s + 10)
    assert await found(ring) == SECOND


async def test_a_mirror_gets_what_is_meant_for_it_and_nothing_else(ring):
    brought = RegistrySpec(username="me", password="first")
    ring.keep("f", HOST, brought)
    assert await found(ring, brought, asked="mirror.example") is None
    ring.set("mirror.example", SECOND)
    assert await found(ring, brought, asked="mirror.example") == SECOND


@pytest.mark.parametrize("name", ["docker.io", "index.docker.io", "registry-1.docker.io"])
async def test_the_hub_has_several_names(ring, name):
    ring.set(name, FIRST)
    assert await found(ring, host="docker.io") == FIRST


# -- commands


class Command:
    """Stands for a command; counts its runs."""

    def __init__(self, *printed):
        self.printed = list(printed)
        self.runs = []

    async def __call__(self, words, host):
        self.runs.append((words, host))
        printed = self.printed.pop(0)
        if isinstance(printed, AgentError):
            raise printed
        return printed


COMMAND = RegistrySpec(credential_command=("/bin/c", "x"))


async def test_a_command_is_run_again_before_what_it_printed_expires(clock):
    end_s = clock.now_s + 1000
    command = Command((FIRST, end_s), (SECOND, end_s + 1000))
    ring = Keyring(clock, command)
    assert [await found(ring, COMMAND) for _ in range(3)] == [FIRST] * 3
    clock.now_s = end_s - FRESH_S
    assert await found(ring, COMMAND) == SECOND
    assert command.runs == [(("/bin/c", "x"), HOST)] * 2


async def test_what_a_command_prints_without_an_end_is_used_for_a_pull(clock):
    command = Command((FIRST, None), (SECOND, None))
    ring = Keyring(clock, command)
    assert [await found(ring, COMMAND) for _ in range(2)] == [FIRST] * 2
    clock.now_s += 61
    assert await found(ring, COMMAND) == SECOND


async def test_a_command_that_fails_leaves_what_was_set(clock):
    failure = FailedPrecondition("no")
    ring = Keyring(clock, Command(failure, failure))
    with pytest.raises(FailedPrecondition, match="no"):
        await found(ring, COMMAND)
    ring.set(HOST, FIRST)
    assert await found(ring, COMMAND) == FIRST


async def test_a_command_that_prints_expired_credentials_is_named(clock):
    ring = Keyring(clock, Command((FIRST, clock.now_s - 1)))
    with pytest.raises(FailedPrecondition, match="/bin/c prints credentials that have expired"):
        await found(ring, COMMAND)


@pytest.mark.parametrize(
    ("printed", "credentials", "until"),
    [
        ({"username": "me", "password": "first"}, FIRST, None),
        ({"username": "me", "password": "first", "expires_at": 12.5}, FIRST, 12.5),
        (
            {"identity_token": "t", "expires_at": "1970-01-01T00:01:00Z"},
            Credentials(identity_token="t"),
            60.0,
        ),
        ({"ServerURL": "x", "Username": "me", "Secret": "first"}, FIRST, None),
        ({"Username": "<token>", "Secret": "t"}, Credentials(identity_token="t"), None),
    ],
)
def test_both_forms_of_output_are_read(printed, credentials, until):
    assert parse_printed(json.dumps(printed).encode(), "c") == (credentials, until)


@pytest.mark.parametrize(
    "printed",
    [
        b"",
        b"s3cret",
        b"[1]",
        b"\xff",
        b"[" * 100_000,
        b'{"username": "me"}',
        b'{"username": "s3cret", "password": 7}',
        b'{"identity_token": "s3cret", "expires_at": "tomorrow"}',
        b'{"identity_token": "s3cret", "expires_at": true}',
    ],
)
def test_other_output_is_refused_and_not_repeated(printed):
    with pytest.raises(
        FailedPrecondition, match=r"registry\.credential_command: c prints"
    ) as error:
        parse_printed(printed, "c")
    assert "s3cret" not in error.value.message


def python(text):
    return [sys.executable, "-c", text]


async def test_a_command_runs_without_a_shell_input_or_our_environment(monkeypatch):
    monkeypatch.setenv("OUR_SECRET", "x")
    text = (
        "import json, os, sys; assert sys.stdin.read() == ''; assert sys.argv[1] == '$HOME;';"
        "assert 'OUR_SECRET' not in os.environ; host = os.environ['KINDLING_REGISTRY'];"
        "print(json.dumps({'username': host, 'password': os.environ['PATH'][:4]}))"
    )
    credentials, until = await run_command([*python(text), "$HOME;"], HOST)
    assert (credentials, until) == (Credentials(HOST, "/usr"), None)


@pytest.mark.parametrize(
    ("words", "failure", "why"),
    [
        (["/nowhere/c"], FailedPrecondition, "No such file"),
        (["/etc/passwd"], FailedPrecondition, "Permission denied"),
        (
            python("import sys; print('s3cret'); print('s3cret', file=sys.stderr); sys.exit(3)"),
            FailedPrecondition,
            "ended with status 3",
        ),
        (
            python("import os; print('s3cret'); os.kill(os.getpid(), 9)"),
            FailedPrecondition,
            "ended by signal 9",
        ),
        (python(f"print('s3cret' * {MAX_BYTES})"), FailedPrecondition, "prints over"),
    ],
)
async def test_a_command_that_fails_says_so_and_nothing_of_its_output(words, failure, why):
    with pytest.raises(failure, match=why) as error:
        await run_command(words, HOST)
    assert "s3cret" not in error.value.message
    assert error.value.message.startswith("registry.credential_command: ")


async def test_a_command_that_hangs_ends_with_all_that_it_started(tmp_path):
    pid = tmp_path / "pid"
    text = (
        "import os, time; child = os.fork();"
        f"child and open({str(pid)!r}, 'w').write(str(child)); time.sleep(600)"
    )
    with pytest.raises(RuntimeUnavailable, match="took over"):
        await run_command(python(text), HOST, within_s=1.0)
    left = Path("/proc", pid.read_text(), "stat")
    # An orphan of ours is collected by init, in its own time.
    assert not left.exists() or left.read_text().rpartition(")")[2].split()[0] in "ZX"


# -- what is shown


def test_no_form_of_a_secret_stays_in_an_error():
    odd = Credentials("me", "p w/1")
    text = f"a {odd.password} b {odd.basic} c p+w%2F1 d p%20w%2F1"
    clean = conceal(RuntimeUnavailable(text), [odd])
    assert clean.message == f"a {HIDDEN} b Basic {HIDDEN} c {HIDDEN} d {HIDDEN}"
    assert isinstance(clean, RuntimeUnavailable)
    spec = conceal(InvalidSpec([Problem("image", "p w/1")]), [odd])
    assert spec.message == f"image: {HIDDEN}"
    full = conceal(Overloaded("p w/1", reason="disk", retry_after_s=60.0), [odd])
    assert isinstance(full, Overloaded)
    assert (full.message, full.reason, full.retry_after_s) == (HIDDEN, "disk", 60.0)
    error = NotImplementedError()
    assert conceal(other := FailedPrecondition("x"), [odd]) is other
    assert "p w/1" not in repr(odd) + str(odd) + repr(error)


def test_an_engines_file_is_its_owners_alone_and_goes_with_the_last_entry(tmp_path):
    path = tmp_path / "config.json"
    config = DockerConfig(path)
    old = os.umask(0)
    try:
        token = HostCredentials(Credentials(identity_token="t"))
        config.write({"docker.io": HostCredentials(FIRST), HOST: token})
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    auths = json.loads(path.read_text())["auths"]
    assert auths["https://index.docker.io/v1/"] == {"auth": "bWU6Zmlyc3Q="}
    assert auths[HOST]["identitytoken"] == "t"
    config.write({})
    assert list(tmp_path.iterdir()) == []


def shown_in(path):
    auths = json.loads(path.read_text())["auths"] if path.exists() else {}
    return auths.get(HOST, {}).get("auth")


async def password_in(path, wanted, within_s=10.0):
    """Wait until the file shows this password for HOST, or is gone for None."""
    auth = wanted.basic.removeprefix("Basic ") if wanted is not None else None
    async with asyncio.timeout(within_s):
        while shown_in(path) != auth:  # noqa: ASYNC110 - a file tells nobody
            await asyncio.sleep(0.01)


async def test_a_lazy_engines_file_follows_what_is_set_and_what_expires(clock, tmp_path):
    end_s = clock.now_s + 1000
    ring = Keyring(clock, Command((FIRST, end_s), (SECOND, end_s + 1000)))
    path = tmp_path / "config.json"
    engine = EngineCredentials(ring, DockerConfig(path))
    engine.use("f", HOST, "i", COMMAND)
    await engine.refresh()
    await password_in(path, FIRST)
    clock.now_s = end_s - FRESH_S  # before the end
    await engine.refresh()
    await password_in(path, SECOND)
    engine.drop("f")
    await engine.refresh()
    await password_in(path, None)


async def test_what_a_command_printed_is_asked_for_anew_when_it_is_refused(clock):
    command = Command((FIRST, clock.now_s + 1000), (FIRST, None), (SECOND, None))
    ring = Keyring(clock, command)
    access = ring.access(HOST, COMMAND)
    assert not await access.renewed(HOST)  # nothing was shown yet
    assert await access.credentials(HOST) == FIRST
    changes: list[str] = []
    ring.tell(lambda: changes.append("changed"))
    assert not await access.renewed(HOST)  # the same again
    assert changes == []
    assert await access.renewed(HOST)
    assert changes == ["changed"]
    assert await access.credentials(HOST) == SECOND
    assert len(command.runs) == 3


async def test_who_was_refused_gets_what_another_has_renewed(clock):
    command = Command((FIRST, None), (SECOND, None))
    ring = Keyring(clock, command)
    both = [ring.access(HOST, COMMAND), ring.access(HOST, COMMAND)]
    assert [await access.credentials(HOST) for access in both] == [FIRST] * 2
    assert [await access.renewed(HOST) for access in both] == [True] * 2
    assert len(command.runs) == 2


async def test_refused_credentials_give_way_to_those_set_meanwhile(ring, clock):
    ring.keep("f", HOST, RegistrySpec(username="me", password="first"))
    access = ring.access(HOST, NOTHING, "f")
    assert await access.credentials(HOST) == FIRST
    assert not await access.renewed(HOST)
    clock.now_s += 1
    ring.set(HOST, SECOND)
    assert await access.renewed(HOST)


async def test_a_new_worker_takes_up_what_an_engine_still_mounts_with(clock, tmp_path):
    file = DockerConfig(tmp_path / "config.json")
    ring = Keyring(clock)
    engine = EngineCredentials(ring, file)
    ring.set(HOST, FIRST, clock.now_s + 10)
    ring.keep("token", "other.example", RegistrySpec(identity_token="t"))
    engine.use("f", HOST, "i", NOTHING)
    engine.use("token", "other.example", "i", NOTHING)
    engine.use("gone", HOST, "i", NOTHING)
    await engine.refresh()

    after = Keyring(clock)
    engine = EngineCredentials(after, file)
    engine.use("f", HOST, "i", NOTHING)
    engine.use("token", "other.example", "i", NOTHING)
    await engine.take_up()
    assert await found(after) == FIRST
    assert await found(after, function="token", host="other.example") == Credentials(
        identity_token="t"
    )
    assert await found(after, function="gone") is None
    assert await found(after, function="") is None
    await engine.refresh()
    await password_in(tmp_path / "config.json", FIRST)
    # Once set anew, that counts; they end when they were to end.
    clock.now_s += 10
    with pytest.raises(FailedPrecondition, match="expired at"):
        await found(after)
    after.set(HOST, SECOND)
    assert await found(after) == SECOND


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"auths": {}, "kindling": {"h": {}}}'])
def test_a_file_that_is_no_engines_is_nothing(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    assert DockerConfig(path).read() == {}


async def test_a_mount_is_looked_after_once_its_credentials_have_changed(ring, clock, tmp_path):
    looks = asyncio.Event()

    async def reconnect():
        looks.set()

    told: list[tuple[str, str, str]] = []
    engine = EngineCredentials(ring, DockerConfig(tmp_path / "config.json"), reconnect)
    engine.tell = lambda *what: told.append(what)
    ring.set(HOST, FIRST, clock.now_s + 10)
    engine.use("f", HOST, "i", NOTHING)
    running = tasks.spawn("engine", engine.run())
    try:
        await password_in(tmp_path / "config.json", FIRST)
        assert not looks.is_set()
        clock.now_s += 10
        ring.keep("g", "elsewhere.example", RegistrySpec(username="me", password="x"))  # wakes it
        await password_in(tmp_path / "config.json", None)
        async with asyncio.timeout(10):
            await looks.wait()
        assert [what[:2] for what in told] == [("f", HOST)]
        assert "expired at" in told[0][2]
        ring.set(HOST, SECOND)
        await password_in(tmp_path / "config.json", SECOND)
    finally:
        await tasks.stop(running)


async def test_credentials_are_gone_with_the_last_mount_of_an_image(ring, tmp_path):
    engine = EngineCredentials(ring, DockerConfig(tmp_path / "config.json"))
    ring.set(HOST, FIRST)
    engine.use("f", HOST, "one", NOTHING)
    engine.use("f", HOST, "two", NOTHING)
    engine.release("one")
    await engine.refresh()
    await password_in(tmp_path / "config.json", FIRST)
    engine.release("two")
    await engine.refresh()
    await password_in(tmp_path / "config.json", None)


async def test_a_lazy_engines_file_is_written_as_soon_as_credentials_are_set(ring, tmp_path):
    path = tmp_path / "config.json"
    engine = EngineCredentials(ring, DockerConfig(path))
    engine.use("f", HOST, "i", NOTHING)
    running = tasks.spawn("engine", engine.run())
    try:
        for each in (FIRST, SECOND, None):
            ring.set(HOST, each)
            await password_in(path, each)
    finally:
        await tasks.stop(running)


async def test_every_lazy_engine_hears_of_credentials_that_come_while_it_writes(ring):
    """One that is busy then looks again by itself, whatever the other one has taken notice of."""
    files = [SlowFile(), SlowFile()]
    engines = [EngineCredentials(ring, cast(DockerConfig, file)) for file in files]
    for each in engines:
        each.use("f", HOST, "i", NOTHING)
    running = [tasks.spawn("engine", each.run()) for each in engines]
    try:
        files[1].go.set()
        await until(lambda: files[0].writing == 1 and files[1].written == [{}])
        ring.set(HOST, FIRST)
        await until(lambda: files[1].written == [{}, {HOST: FIRST}])
        files[0].go.set()
        await until(lambda: files[0].written == [{}, {HOST: FIRST}])
    finally:
        for file in files:
            file.go.set()
        await tasks.stop(*running)


async def test_a_lazy_engines_file_is_written_by_one_at_a_time_the_newest_last(ring):
    file = SlowFile()
    engine = EngineCredentials(ring, cast(DockerConfig, file))
    engine.use("f", HOST, "i", NOTHING)
    writes = [tasks.spawn("first", engine.refresh())]
    await until(lambda: file.writing == 1)
    ring.set(HOST, FIRST)
    writes.append(tasks.spawn("second", engine.refresh()))
    await turns()
    file.go.set()
    await asyncio.gather(*writes)
    assert (file.most, file.written) == (1, [{}, {HOST: FIRST}])


async def test_a_lazy_engines_file_that_cannot_be_written_is_written_later(ring, tmp_path):
    path = tmp_path / "not yet" / "config.json"
    engine = EngineCredentials(ring, DockerConfig(path))
    engine.use("f", HOST, "i", NOTHING)
    running = tasks.spawn("engine", engine.run())
    try:
        ring.set(HOST, FIRST)
        with pytest.raises(RuntimeUnavailable, match="cannot be written"):
            await engine.refresh()
        path.parent.mkdir()
        ring.set(HOST, SECOND)
        await password_in(path, SECOND)
    finally:
        await tasks.stop(running)


async def test_a_command_that_hangs_holds_up_no_other_functions_lazy_deploy(clock, tmp_path):
    asked, go = asyncio.Event(), asyncio.Event()

    async def hangs(words, host):
        asked.set()
        await go.wait()
        raise RuntimeUnavailable("it hung")

    ring, path = Keyring(clock, hangs), tmp_path / "config.json"
    engine = EngineCredentials(ring, DockerConfig(path))
    engine.use("slow", "other.example", "i", COMMAND)
    running = tasks.spawn("engine", engine.run())
    try:
        await asked.wait()
        ring.set(HOST, FIRST)
        engine.use("f", HOST, "i", NOTHING)
        async with asyncio.timeout(10):
            await engine.refresh("f")
        await password_in(path, FIRST)
    finally:
        await tasks.stop(running)


class SlowFile:
    """A file of credentials whose writes end when they may."""

    def __init__(self):
        self.go = threading.Event()
        self.writing = self.most = 0
        self.written = []

    def write(self, known):
        self.writing += 1
        self.most = max(self.most, self.writing)
        self.go.wait(10)
        self.written.append({host: each.credentials for host, each in known.items()})
        self.writing -= 1


async def test_a_lazy_engine_is_shown_what_a_deploy_brought_until_newer_ones_are_set(
    ring, clock, tmp_path
):
    path = tmp_path / "config.json"
    engine = EngineCredentials(ring, DockerConfig(path))
    brought = RegistrySpec(username=FIRST.username, password=FIRST.password)
    engine.use("f", HOST, "i", brought)
    await engine.refresh()
    await password_in(path, FIRST)
    ring.keep("f", HOST, brought)
    engine.deploy_ended("f")
    await engine.refresh()
    await password_in(path, FIRST)
    clock.now_s += 1
    ring.set(HOST, SECOND)
    await engine.refresh()
    await password_in(path, SECOND)


async def test_a_lazy_engine_forgets_what_a_deploy_brought_that_failed(ring, tmp_path):
    path = tmp_path / "config.json"
    engine = EngineCredentials(ring, DockerConfig(path))
    ring.keep("f", HOST, RegistrySpec(username=FIRST.username, password=FIRST.password))
    engine.use("f", HOST, "i", RegistrySpec(username=SECOND.username, password=SECOND.password))
    await engine.refresh()
    await password_in(path, SECOND)
    engine.deploy_ended("f")
    await engine.refresh()
    await password_in(path, FIRST)
