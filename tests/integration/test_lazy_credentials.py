"""Credentials that end while an image is mounted from its registry and not complete: they are
renewed, taken over by the next worker, or asked for; reads of what is not here go on.

By the real SOCI engine. One registry over TLS wants a password, the other a token of a service
whose tokens hold a few seconds; both passwords are changed by the tests.
"""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from agent._pb.worker.v1 import worker_pb2 as pb
from agent.cli.client import Refused
from tests import oci, registry
from tests.certificates import Certificate
from tests.integration import test_lazy
from tests.integration.functions import Functions, Watched
from tests.integration.running import LIB, RunningAgent, signal_pid
from tests.integration.test_lazy import CONFIG, NEVER_S, deploy, directory, mounts
from tests.integration.test_private_registries import (
    Command,
    credential_command,
    leaks_of,
    pull,
    set_credentials,
)
from tests.registry import NEXT_PASSWORD, PASSWORD, USER
from tests.tls_registry import TlsRegistry, tls_registry
from tests.token_service import TokenService, token_service

FILES = 8
SECRETS = tuple(
    text
    for password in (PASSWORD, NEXT_PASSWORD)
    for text in (password, base64.b64encode(f"{USER}:{password}".encode()).decode())
)
# The registry gives a token a minute more: these end five seconds after they were made.
SHORT_S, TOKEN_S = -55, 6
GOES_ON_S = 20.0

pytestmark = pytest.mark.skipif(
    not (LIB / "bin" / "soci-snapshotter-grpc").exists(), reason="no lazy engine is installed"
)


@dataclass
class Locked:
    """A registry whose password may be changed."""

    kind: str
    server: TlsRegistry
    tokens: TokenService | None = None

    def takes(self, password: str) -> None:
        """Take this password from now on, and no other; tokens that are out end first."""
        if self.tokens is None:
            registry.change_password(self.server.directory, password)
            return
        self.tokens.password = password
        if self.tokens.life_s == SHORT_S:
            time.sleep(TOKEN_S)  # sleeps: the tokens that are out end


@pytest.fixture(scope="module")
def by_password() -> Iterator[Locked]:
    with directory() as home, tls_registry(home, auth=registry.with_passwords(home)) as server:
        yield Locked("password", server)


@pytest.fixture(scope="module")
def by_token() -> Iterator[Locked]:
    made: list[TokenService] = []
    with contextlib.ExitStack() as stack, directory() as home:

        def auth(host: str, shown: Certificate) -> str:
            service = token_service(home, USER, PASSWORD, "none", host=host, tls=shown.server())
            made.append(stack.enter_context(service))
            return made[0].section()

        with tls_registry(home, auth=auth) as server:
            yield Locked("token", server, made[0])


@pytest.fixture(scope="module")
def place(
    make_agent: Callable[..., RunningAgent], by_password: Locked, by_token: Locked
) -> Iterator[RunningAgent]:
    """An agent that completes no image by itself."""
    with directory() as authorities:
        for one in (by_password, by_token):
            (authorities / one.server.address).mkdir()
            shutil.copy(one.server.ca, authorities / one.server.address / "ca.crt")
        agent = make_agent(
            node="keys",
            sections={
                "lazy": {"least_mb": 1, "complete_after_s": NEVER_S},
                "registries": {"directory": str(authorities)},
                "storage": {"writable": "tmpfs"},
            },
        ).start()
        yield agent
        agent.close()


@pytest.fixture
def lazy(place: RunningAgent) -> Iterator[Functions]:
    with Functions(place, same_worker=False) as found:
        yield found


@pytest.fixture(scope="module")
def content() -> list[bytes]:
    return [os.urandom(3 << 20) for _ in range(FILES)]


@pytest.fixture(params=["password", "token"])
def locked(request: pytest.FixtureRequest, place: RunningAgent, content: list[bytes]) -> Locked:
    """A registry that takes PASSWORD at first, with an indexed image."""
    found: Locked = request.getfixturevalue(f"by_{request.param}")
    if found.tokens is not None:
        found.tokens.life_s = 300
    found.takes(PASSWORD)
    index(place, found, content)
    if found.tokens is not None:
        found.tokens.life_s = SHORT_S
    return found


@pytest.fixture
def command(place: RunningAgent) -> Iterator[Command]:
    with credential_command(place.home) as found:
        yield found


def index(agent: RunningAgent, locked: Locked, content: list[bytes]) -> None:
    """Push the image, with an index beside it; nothing of it is here after.

    No layer is another registry's as well: the engine would ask that one for it.
    """
    files: dict[str, oci.File] = {f"srv/{n}": data for n, data in enumerate(content)}
    base = oci.layer({"of": locked.server.address.encode()})
    layers = [base, oci.static_busybox(), oci.layer({**files, "srv/small": b"small\n"})]
    registry.push(locked.server.plain, "private", "1", oci.image(layers, CONFIG))
    name = f"{locked.server.address}/private:1"
    given = ["--username", USER, "--password-stdin"]
    agent.cli("image", "accelerate", name, *given, stdin=PASSWORD)
    agent.cli("image", "rm", name)


def mounted(lazy: Functions, locked: Locked, **given: object) -> None:
    """Deploy it with PASSWORD, or with what is given, and have it serve from its mount."""
    name = f"{locked.server.address}/private:1"
    fields = given or {"username": USER, "password": PASSWORD}
    # An engine that has gone on running has what the tests before this one have read.
    for one in lazy.agent.cli("image", "ls", "--json").json()["images"]:
        if one["name"].endswith("/private:1"):
            lazy.agent.cli("image", "rm", one["name"])
    lazy.agent.wait_until(lambda: mounts(lazy.agent) == [], 20, "nothing mounted")
    reply = deploy(
        lazy,
        "private",
        name,
        acceleration="lazy",
        registry=fields,
        scaling={"min": 1},
        timeout_s=60,
    )
    assert list(reply.warnings) == []
    assert mounts(lazy.agent) != []
    assert reads(lazy.agent, "small") == b"small\n"


def reads(agent: RunningAgent, path: str) -> bytes:
    return test_lazy.reads(agent, "private", path)


def goes_on(agent: RunningAgent, path: str, wanted: bytes) -> None:
    agent.wait_until(lambda: reads(agent, path) == wanted, GOES_ON_S, f"{path} read again")


def told(watched: Watched, type: str) -> str:
    return " | ".join(event.message for event in watched.events if event.type == type)


def nothing_leaked(agent: RunningAgent, *, engine: bool = True) -> None:
    """Secrets are in the engine's own file on tmpfs, if anywhere."""
    file = agent.run / "lazy/soci/config.json"
    found = set(leaks_of(agent, SECRETS)) - ({str(file)} if engine else set())
    assert found == set()
    if file.exists():
        assert file.stat().st_mode & 0o777 == 0o600
    pages = [("GET", "/debug/state"), ("GET", "/metrics"), ("GET", "/")]
    shown = [agent.http(*page, port=agent.admin_port).body.decode() for page in pages]
    shown.append(agent.cli("status", "--json").out)
    assert not [secret for secret in SECRETS for text in shown if secret in text]


def new_worker(agent: RunningAgent, lazy: Functions, how: str) -> None:
    before = agent.pids["worker"]
    if how == "killed":
        signal_pid(before, signal.SIGKILL)
    else:
        agent.cli("reload", timeout_s=120)
    agent.wait_until(lambda: agent.pids["worker"] not in (0, before), 30, "a worker")
    agent.wait_until(lambda: reads(agent, "small") == b"small\n", 20, "an answer")
    lazy.reconnect()


def test_a_mount_goes_on_when_a_password_that_has_changed_is_set(lazy, locked, content):
    agent = lazy.agent
    mounted(lazy, locked)
    assert reads(agent, "0") == content[0]
    locked.takes(NEXT_PASSWORD)
    assert reads(agent, "2") == b""
    set_credentials(lazy, locked.server.address, username=USER, password=NEXT_PASSWORD)
    goes_on(agent, "2", content[2])
    nothing_leaked(agent)
    # What the deploy brought is older, for whoever begins now as well.
    new_worker(agent, lazy, "killed")
    goes_on(agent, "4", content[4])
    lazy.remove("private", force=True)
    set_credentials(lazy, locked.server.address)
    agent.wait_until(lambda: leaks_of(agent, SECRETS) == [], 20, "no credentials any more")


@pytest.mark.parametrize("locked", ["token"], indirect=True)
def test_a_mount_goes_on_when_a_command_was_run_again(lazy, locked, command, content):
    agent = lazy.agent
    mounted(lazy, locked, credential_command=command.words)
    command.says(NEXT_PASSWORD)
    locked.takes(NEXT_PASSWORD)
    assert reads(agent, "2") == b""
    # What the command printed is fresh by its own word: that it is refused is what tells.
    name = f"{locked.server.address}/private:1"
    pull(lazy, name, credential_command=command.words)
    goes_on(agent, "2", content[2])
    nothing_leaked(agent)
    lazy.remove("private", force=True)
    agent.cli("image", "rm", name)


@pytest.mark.parametrize("locked", ["password"], indirect=True)
def test_a_new_worker_goes_on_with_a_mounts_credentials_until_it_is_complete(lazy, locked, content):
    agent = lazy.agent
    mounted(lazy, locked)
    for how, path in (("killed", 2), ("reloaded", 4)):
        new_worker(agent, lazy, how)
        assert reads(agent, str(path)) == content[path]
        nothing_leaked(agent)
    # For the mount, not for others of the registry.
    with pytest.raises(Refused, match=f"SetCredentials for {locked.server.address}"):
        pull(lazy, f"{locked.server.address}/private:1")
    with completing(agent, lazy, after_s=1.0) as watched:
        agent.wait_until(lambda: told(watched, "ImageCompleted") != "", 30, "the image complete")
        assert told(watched, "ImageNotComplete") == ""
    lazy.remove("private", force=True)
    agent.wait_until(lambda: leaks_of(agent, SECRETS) == [], 20, "no credentials any more")


@contextlib.contextmanager
def completing(agent: RunningAgent, lazy: Functions, after_s: float) -> Iterator[Watched]:
    """Have a worker that completes images; gives what it tells."""
    agent.configure({"lazy": {"complete_after_s": after_s}})
    try:
        new_worker(agent, lazy, "reloaded")
        with lazy.watching() as watched:
            yield watched
    finally:
        agent.configure({"lazy": {"complete_after_s": NEVER_S}})
        new_worker(agent, lazy, "reloaded")


def test_credentials_that_are_gone_for_good_are_asked_for(lazy, locked, content):
    agent = lazy.agent
    mounted(lazy, locked)
    locked.takes(NEXT_PASSWORD)
    address = locked.server.address
    with completing(agent, lazy, after_s=1.0) as watched:
        agent.wait_until(lambda: told(watched, "ImageNotComplete") != "", 20, "the reason")
        why = told(watched, "ImageNotComplete")
        assert f"the registry {address} " in why
        assert f"SetCredentials for {address}" in why
        assert reads(agent, "small") == b"small\n"
        set_credentials(lazy, address, username=USER, password=NEXT_PASSWORD)
        agent.wait_until(lambda: told(watched, "ImageCompleted") != "", 20, "the image complete")
        goes_on(agent, "5", content[5])
        nothing_leaked(agent)
        # Refused again: what began on the mount gives way to what needs none.
        locked.takes(PASSWORD)
        agent.wait_until(lambda: told(watched, "InstanceCutOff") != "", 30, "the way out of it")
        goes_on(agent, "7", content[7])
        agent.wait_until(lambda: mounts(agent) == [], 20, "nothing mounted any more")
        agent.wait_until(lambda: leaks_of(agent, SECRETS) == [], 10, "no credentials any more")
    set_credentials(lazy, address)
    lazy.remove("private", force=True)


@pytest.mark.parametrize("locked", ["password"], indirect=True)
def test_credentials_that_end_by_their_own_word_are_asked_for(lazy, locked, content):
    agent = lazy.agent
    address = locked.server.address
    given = pb.RegistryCredentials(host=address, username=USER, password=PASSWORD)
    request = pb.SetCredentialsRequest(registry=given)
    request.expires_at.GetCurrentTime()
    request.expires_at.seconds += 4
    with lazy.watching() as watched:
        lazy.client.ask("SetCredentials", request, pb.SetCredentialsResponse)
        mounted(lazy, locked, ca_pem="")
        agent.wait_until(lambda: told(watched, "CredentialsMissing") != "", 10, "the event")
        for word in (address, "expired at", "SetCredentials"):
            assert word in told(watched, "CredentialsMissing")
    nothing_leaked(agent, engine=False)
    set_credentials(lazy, address, username=USER, password=PASSWORD)
    goes_on(agent, "5", content[5])
    set_credentials(lazy, address)
    lazy.remove("private", force=True)


@pytest.mark.parametrize("locked", ["password"], indirect=True)
@pytest.mark.parametrize("by", ["command", "set"])
def test_what_was_collected_is_pulled_again_with_renewed_credentials(lazy, locked, command, by):
    agent, address = lazy.agent, locked.server.address
    name = f"{address}/private:1"
    own = {"username": USER, "password": PASSWORD}
    table = {"credential_command": command.words} if by == "command" else own
    deploy(lazy, "private", name, acceleration="eager", registry=table)
    lazy.remove("private")
    agent.cli("gc")
    assert name not in agent.cli("image", "ls").out
    locked.takes(NEXT_PASSWORD)
    if by == "command":
        command.says(NEXT_PASSWORD)
    else:
        with pytest.raises(Refused, match=f"SetCredentials for {address}"):
            deploy(lazy, "private", name, acceleration="eager", registry=table)
        set_credentials(lazy, address, username=USER, password=NEXT_PASSWORD)
        table = {}
    deploy(lazy, "private", name, acceleration="eager", registry=table)
    assert reads(agent, "small") == b"small\n"
    set_credentials(lazy, address)
    lazy.remove("private", force=True)
