"""Registries that want TLS, a password or a token, and ones that misbehave, through a real agent.

The agent's own client resolves and containerd's downloads: each row goes through both. The servers
are Debian's docker-registry, a token service and `tests/misbehaving.py`, all on loopback.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agent._pb.worker.v1 import worker_pb2 as pb
from agent.cli.client import Refused
from tests import certificates, oci, registry
from tests import misbehaving as m
from tests.certificates import Certificate
from tests.integration.functions import ASK_S, Functions
from tests.integration.running import RunningAgent
from tests.integration.test_pulls import a_server, images
from tests.registry import NEXT_PASSWORD, PASSWORD, USER, Caller
from tests.token_service import TokenService, token_service

IDENTITY = "identity-5d0c2b7e9f"
BASIC = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
SECRETS = (PASSWORD, BASIC, IDENTITY)


@dataclass
class Town:
    """The servers, and what may be pulled from them."""

    ca: Certificate
    locked: str
    tokened: str
    tokens: TokenService
    image: oci.OciImage


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    home = tmp_path_factory.mktemp("registries")
    ca = certificates.authority(home)
    shown = certificates.signed(ca, home)
    places = [home / "locked", home / "tokened"]
    for place in places:
        place.mkdir()
    image = a_server()
    with (
        token_service(home, USER, PASSWORD, IDENTITY) as tokens,
        registry.registry(places[0], tls=shown, auth=registry.with_passwords(home)) as locked,
        registry.registry(places[1], tls=shown, auth=tokens.section()) as tokened,
    ):
        registry.push(locked, "team/app", "1", image, by=Caller(ca.text, f"Basic {BASIC}"))
        bearer = tokens.token(["repository:team/app:pull,push"])
        registry.push(tokened, "team/app", "1", image, by=Caller(ca.text, f"Bearer {bearer}"))
        yield Town(ca, locked, tokened, tokens, image)


@pytest.fixture(autouse=True)
def no_image_stays(functions: Functions) -> Iterator[None]:
    """What a test pulled is gone after it."""
    before = set(images(functions))
    yield
    functions.clear()
    for name in set(images(functions)) - before:
        drop(functions, name)


def drop(functions: Functions, name: str) -> None:
    functions.client.ask("RemoveImage", pb.RemoveImageRequest(name=name), pb.RemoveImageResponse)


def pull(functions: Functions, name: str, **given: Any) -> pb.Image:
    request = pb.PrepareImageRequest(image=name, registry=pb.Registry(**given))
    steps = list(functions.client.follow("PrepareImage", request, pb.ImageProgress, within_s=ASK_S))
    return steps[-1].done


def refusal(ask: Callable[[], object]) -> Refused:
    with pytest.raises(Refused) as error:
        ask()
    assert not [secret for secret in SECRETS if secret in error.value.message]
    return error.value


def set_credentials(functions: Functions, host: str, **given: str) -> None:
    credentials = pb.RegistryCredentials(host=host, **given)
    request = pb.SetCredentialsRequest(registry=credentials)
    functions.client.ask("SetCredentials", request, pb.SetCredentialsResponse)


PASSWORDS = {"username": USER, "password": PASSWORD}


def test_a_password_and_an_authority_open_a_registry_over_tls(functions, town):
    name = f"{town.locked}/team/app:1"
    assert pull(functions, name, ca_pem=town.ca.text, **PASSWORDS).digest == town.image.digest


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "wants credentials (401)"),
        ({"username": USER, "password": "wr0ng"}, "refuses these credentials (401)"),
        ({"identity_token": IDENTITY}, "refuses these credentials (401)"),
    ],
)
def test_a_registry_that_wants_a_password_says_how_to_give_one(functions, town, given, words):
    name = f"{town.locked}/team/app:1"
    told = refusal(lambda: pull(functions, name, ca_pem=town.ca.text, **given))
    assert told.code == "FailedPrecondition"
    assert f"{name}: the registry {town.locked} {words}" in told.message
    assert f"SetCredentials for {town.locked}" in told.message
    assert name not in images(functions)


def test_an_authority_that_is_missing_is_asked_for(functions, town):
    name = f"{town.locked}/team/app:1"
    told = refusal(lambda: pull(functions, name, **PASSWORDS))
    assert "registry.ca_pem" in told.message
    other = (town.ca.pem.parent / "signer.pem").read_text()
    told = refusal(lambda: pull(functions, name, ca_pem=other, **PASSWORDS))
    assert "certificate that is not valid here" in told.message


@pytest.mark.parametrize(
    ("takes", "field", "given", "asked"),
    [
        ({"GET"}, "token", PASSWORDS, {("POST", "password"), ("GET", "password")}),
        ({"GET", "POST"}, "access_token", PASSWORDS, {("POST", "password")}),
        # containerd's client takes no other name from a POST; the agent's token is lent to it.
        ({"GET", "POST"}, "token", PASSWORDS, {("POST", "password")}),
        ({"POST"}, "access_token", {"identity_token": IDENTITY}, {("POST", "refresh_token")}),
    ],
)
def test_a_token_service_is_asked_as_it_likes(functions, town, takes, field, given, asked):
    town.tokens.takes, town.tokens.name = takes, field
    town.tokens.asked.clear()
    name = f"{town.tokened}/team/app:1"
    assert pull(functions, name, ca_pem=town.ca.text, **given).digest == town.image.digest
    assert set(town.tokens.asked) == asked


def test_a_token_service_that_refuses_is_told_without_its_words(functions, town):
    town.tokens.takes, town.tokens.name = {"GET", "POST"}, "access_token"
    name = f"{town.tokened}/team/app:1"
    for given in ({}, {"username": USER, "password": "wr0ng"}, {"identity_token": "wr0ng"}):
        told = refusal(partial(pull, functions, name, ca_pem=town.ca.text, **given))
        assert (told.code, "wr0ng" in told.message) == ("FailedPrecondition", False)


def test_the_command_line_reads_the_password_from_stdin(agent, town, functions):
    name = f"{town.locked}/team/app:1"
    words = ["image", "pull", name, "--ca", town.ca.pem, "--username", USER, "--password-stdin"]
    done = agent.cli(*words, stdin=f"{PASSWORD}\n")
    assert done.out == f"{name} {town.image.digest}\n"
    assert name in images(functions)


# -- blobs through containerd: what passes by itself, and what does not


SOME = [m.status(429, Retry_After="0")] * 7, [m.status(503)] * 3, [m.reset], [m.cut] * 3


@pytest.mark.parametrize("faults", SOME, ids=["429", "503", "reset", "cut"])
def test_a_layer_that_does_not_come_at_once_comes_later(functions, faults):
    image = oci.image([oci.layer({"a": os.urandom(1 << 18)})])
    with m.misbehaving(image) as server:
        server.faults["layer"] += faults
        assert pull(functions, f"{server.address}/a:1").digest == image.digest
        if m.cut in faults:
            # What had come was not fetched again.
            assert [each for each in server.ranges() if not each.startswith("bytes=0-")]


WITHHELD = {
    "401": ("layer", m.status(401), "FailedPrecondition", "answers 401 Unauthorized for sha256:"),
    "403": ("layer", m.status(403), "FailedPrecondition", "answers 403 Forbidden for sha256:"),
    "404": ("layer", m.status(404), "NotFound", "lost a part of it meanwhile (sha256:"),
    "429": (
        *("layer", m.status(429, Retry_After="9999"), "RuntimeUnavailable"),
        "for 9999 s, longer",
    ),
    "500": (
        *("layer", m.status(500), "RuntimeUnavailable"),
        "answers 500 Internal Server Error for",
    ),
    "reset": ("layer", m.reset, "RuntimeUnavailable", "broke off in the middle (connection reset"),
    "short": ("layer", m.short, "RuntimeUnavailable", "broke off in the middle (unexpected EOF)"),
    "long": ("layer", m.long, "FailedPrecondition", "sent more bytes than its manifest says for"),
    "other bytes": ("layer", m.other_bytes, "FailedPrecondition", "sent other bytes for sha256:"),
    "manifest": (
        *("manifest", m.typed("application/json"), "FailedPrecondition"),
        "as 'application/json'",
    ),
    "429 at once": (
        *("layer", m.status(429), "RuntimeUnavailable"),
        "answers 429 Too Many Requests",
    ),
    "502": (
        *("layer", m.status(502), "RuntimeUnavailable"),
        "answers 502 Bad Gateway for sha256:",
    ),
    "cut": ("layer", m.cut, "RuntimeUnavailable", "broke off in the middle (unexpected EOF)"),
    "zipped": ("layer", m.zipped, "FailedPrecondition", "sent"),
    "around": (
        *("layer", m.around, "FailedPrecondition"),
        "redirects its client round and round for sha256:",
    ),
}


@dataclass
class Withheld:
    """What was told of an image that did not come, and whether it came at last."""

    name: str
    address: str
    told: Refused
    listed: bool
    came: bool


@pytest.fixture(scope="module")
def withheld(agent: RunningAgent) -> dict[str, Withheld]:
    """Every row's pull at the same time: containerd asks again and again, seconds apart."""

    def tried(row: str) -> Withheld:
        kind, fault, *_ = WITHHELD[row]
        image = oci.image([oci.layer({"a": os.urandom(1 << 18)})])
        with m.misbehaving(image) as server:
            server.faults[kind] += [fault] * m.FOREVER
            name = f"{server.address}/a:1"
            told = refusal(lambda: pull(functions, name))
            listed = name in images(functions)
            server.faults.clear()
            # Nothing of the failure stays in the way.
            came = pull(functions, name).digest == image.digest
        drop(functions, name)
        return Withheld(name, server.address, told, listed, came)

    with Functions(agent) as functions, ThreadPoolExecutor(len(WITHHELD)) as pulling:
        return dict(zip(WITHHELD, pulling.map(tried, WITHHELD), strict=True))


@pytest.mark.parametrize("row", WITHHELD)
def test_a_registry_that_does_not_give_its_blobs_is_named(withheld, row):
    found, (_, _, code, words) = withheld[row], WITHHELD[row]
    message = found.told.message
    assert found.told.code == code
    assert f"image {found.name}: the registry {found.address} " in message
    assert words in message
    assert "so it is" not in message
    assert (found.listed, found.came) == (False, True)


def test_what_a_layer_is_redirected_to_is_neither_repeated_nor_shown_credentials(functions):
    image = oci.image([oci.layer({"a": os.urandom(1 << 10)})])
    with m.misbehaving(image) as server, m.misbehaving(image) as inside:
        told_inside = b"AccessKeyId: of-the-nodes-role"
        for answer in (m.says(told_inside, "text/plain"), m.status(403)):
            inside.asked.clear()
            inside.faults["layer"] = [answer] * m.FOREVER
            place = f"http://{inside.address}/v2/x/blobs/"
            layer = json.loads(image.blobs[image.digest])["layers"][0]["digest"]
            server.faults["layer"] = [m.status(307, Location=place + layer)] * m.FOREVER
            told = refusal(lambda: pull(functions, f"{server.address}/a:1", **PASSWORDS))
            assert "nodes-role" not in told.message
            assert "so it is" not in told.message
            assert inside.asked != []
            assert not [headers for _, _, headers in inside.asked if "Authorization" in headers]
        server.faults.clear()
        # What was refused is kept for who goes on.
        assert pull(functions, f"{server.address}/a:1", **PASSWORDS).digest == image.digest
        drop(functions, f"{server.address}/a:1")
    assert "nodes-role" not in functions.agent.log()


# -- the operator's directory


@pytest.fixture
def operated(make_agent: Callable[..., RunningAgent], tmp_path: Path) -> Iterator[RunningAgent]:
    """An agent with a directory of registries of its own: `agent.home / "registries"`."""
    agent = make_agent(node="private", sections={"storage": {"writable": "tmpfs"}})
    place = agent.home / "registries"
    place.mkdir()
    agent.configure({"registries": {"directory": str(place)}})
    yield agent.start()
    agent.close()


def test_the_operators_directory_gives_authorities_and_mirrors(operated, town):
    place = operated.home / "registries"
    gone = f"127.0.0.1:{registry.free_port()}"
    with Functions(operated) as functions:
        (place / town.locked).mkdir()
        (place / town.locked / "ca.crt").write_text(town.ca.text)
        name = f"{town.locked}/team/app:1"
        assert pull(functions, name, **PASSWORDS).digest == town.image.digest
        drop(functions, name)
        # A registry that is down, and a mirror of it with credentials of its own.
        mirror = place / f"{gone.replace(':', '_')}_"
        mirror.mkdir()
        (mirror / "hosts.toml").write_text(
            f'server = "http://{gone}"\n[host."https://{town.locked}"]\n'
            f'capabilities = ["pull", "resolve"]\nca = "{place / town.locked / "ca.crt"}"\n'
        )
        name = f"{gone}/team/app:1"
        assert refusal(lambda: pull(functions, name, **PASSWORDS)).code == "RuntimeUnavailable"
        set_credentials(functions, town.locked, **PASSWORDS)
        assert pull(functions, name).digest == town.image.digest
        drop(functions, name)
        left = list((operated.run / "containerd" / "registry-hosts").glob("*"))
        assert left == []


# -- credentials, and where they must not be


def leaks_of(agent: RunningAgent, secrets: tuple[str, ...]) -> list[str]:
    """Return where a secret can be read: files of the agent's, command lines, environments."""
    found = []
    texts = [each.encode() for each in secrets]
    for top in (agent.home, agent.run, agent.data):
        for directory, _, names in os.walk(top):
            for name in names:
                path = Path(directory, name)
                if path.is_file() and not path.is_symlink() and path.stat().st_size < 64 << 20:
                    found += [str(path) for text in texts if text in path.read_bytes()]
    for pid in agent.tree():
        for name in ("cmdline", "environ"):
            try:
                data = Path(f"/proc/{pid}/{name}").read_bytes()
            except OSError:
                continue
            found += [f"/proc/{pid}/{name}" for text in texts if text in data]
    return found


def test_a_password_of_a_deploy_is_nowhere_but_in_memory(operated, town):
    name = f"{town.locked}/team/app:1"
    table = {"ca_pem": town.ca.text, **PASSWORDS}
    with Functions(operated, same_worker=False) as functions:
        outcome = functions.deploy("private", name, memory_mb=128, registry=table)
        assert operated.http("GET", "/http/private/").body == b"hello\n"
        listed = functions.client.ask("List", pb.ListRequest(), pb.ListResponse)
        got = functions.client.ask("Get", pb.GetRequest(name="private"), pb.Function)
        events = operated.cli("status", "--json").out
        for reply in (str(outcome), str(listed), str(got), events):
            assert not [secret for secret in SECRETS if secret in reply]
        wrong = {**table, "password": f"{PASSWORD}-not"}
        refusal(lambda: pull(functions, f"{town.locked}/team/other:1", **wrong))
        assert leaks_of(operated, SECRETS) == []
        # Pulled again from memory, with nothing given.
        functions.remove("private", force=True)
        drop(functions, name)
        plain = {"ca_pem": town.ca.text}
        told = refusal(lambda: functions.deploy("private", name, memory_mb=128, registry=plain))
        assert "wants credentials" in told.message  # a removed function's are forgotten
        set_credentials(functions, town.locked, **PASSWORDS)
        functions.deploy("private", name, memory_mb=128, registry=plain)
        assert leaks_of(operated, SECRETS) == []


def test_a_worker_that_starts_knows_no_password_and_a_command_gives_one(operated, town):
    name = f"{town.tokened}/team/app:1"
    town.tokens.takes, town.tokens.name = {"GET", "POST"}, "access_token"
    plain = {"ca_pem": town.ca.text}
    command = operated.home / "command"
    answer = json.dumps({"ServerURL": town.tokened, "Username": USER, "Secret": PASSWORD})
    secret = Path("/dev/shm", f"kindling-test-{os.getpid()}")
    secret.write_text(answer)
    secret.chmod(0o644)
    command.write_text(f"#!/bin/sh\necho {PASSWORD[:9]} >&2\nexec cat {secret}\n")
    command.chmod(0o755)
    try:
        with Functions(operated, same_worker=False) as functions:
            set_credentials(functions, town.tokened, **PASSWORDS)
            assert pull(functions, name, **plain).digest == town.image.digest
            drop(functions, name)
            before = operated.pids["worker"]
            operated.cli("reload", timeout_s=120)
            operated.wait_until(lambda: operated.pids["worker"] not in (0, before), 30)
            functions.reconnect()
            told = refusal(lambda: pull(functions, name, **plain))
            assert f"SetCredentials for {town.tokened}" in told.message
            with_command = {**plain, "credential_command": [str(command)]}
            functions.deploy("by-command", name, memory_mb=128, registry=with_command)
            assert operated.http("GET", "/http/by-command/").body == b"hello\n"
            assert leaks_of(operated, (PASSWORD, BASIC)) == []
    finally:
        secret.unlink()


# -- credentials that end between two requests


LAYERS, AT_ONCE = 8, 3  # containerd fetches so many at a time


class Lock:
    """Lets in who shows one password, and takes another from the fifth layer on."""

    def __init__(self, server: m.Server) -> None:
        self.server = server
        self.password = PASSWORD
        self.ends: Callable[[], None] = lambda: None
        self.layers = layers_of(server.image)
        self.given: list[str] = []
        server.route = self
        server.faults["layer"] += [m.whole] * 4 + [self.ending]

    def __call__(self, request: m.Request) -> bool:
        shown = base64.b64encode(f"{USER}:{self.password}".encode()).decode()
        if request.headers.get("Authorization") == f"Basic {shown}":
            digest = request.path.rpartition("/")[2]
            if request.command == "GET" and digest in self.layers:
                self.given.append(digest)
            return False
        request.reply(401, {"WWW-Authenticate": 'Basic realm="here"'})
        return True

    def ending(self, request: m.Request, data: bytes, media_type: str) -> None:
        self.password = NEXT_PASSWORD
        self.ends()
        m.whole(request, data, media_type)


def layers_of(image: oci.OciImage) -> set[str]:
    manifest = json.loads(image.blobs[image.digest])
    return {str(layer["digest"]) for layer in manifest["layers"]}


@dataclass
class Command:
    """A credential command, and what it prints."""

    words: list[str]
    answer: Path

    def says(self, password: str) -> None:
        self.answer.write_text(json.dumps({"username": USER, "password": password}))
        self.answer.chmod(0o644)


@contextlib.contextmanager
def credential_command(home: Path) -> Iterator[Command]:
    """One that lies below `home` and prints PASSWORD at first, from a file on tmpfs."""
    script = home / "credential-command"
    found = Command([str(script)], Path("/dev/shm", f"kindling-test-{os.getpid()}"))
    script.write_text(f"#!/bin/sh\nexec cat {found.answer}\n")
    script.chmod(0o755)
    found.says(PASSWORD)
    try:
        yield found
    finally:
        found.answer.unlink()
        script.unlink()


@pytest.fixture
def command(agent: RunningAgent) -> Iterator[Command]:
    with credential_command(agent.home) as found:
        yield found


@pytest.fixture
def lock() -> Iterator[Lock]:
    image = oci.image([oci.layer({str(n): os.urandom(1 << 18)}) for n in range(LAYERS)])
    with m.misbehaving(image) as server:
        yield Lock(server)


def test_credentials_that_end_in_the_middle_of_a_pull_are_asked_for_anew(functions, command, lock):
    lock.ends = partial(command.says, NEXT_PASSWORD)
    name = f"{lock.server.address}/a:1"
    done = pull(functions, name, credential_command=command.words)
    assert done.digest == lock.server.image.digest
    assert set(lock.given) == lock.layers
    # What had come was not fetched again, but for what was on its way.
    assert len(lock.given) <= LAYERS + AT_ONCE


@pytest.mark.parametrize("by", ["command", "password"])
def test_a_pull_whose_credentials_end_says_so_and_the_next_goes_on(functions, command, lock, by):
    address = lock.server.address
    name = f"{address}/a:1"
    given = {"credential_command": command.words} if by == "command" else PASSWORDS
    told = refusal(lambda: pull(functions, name, **given))
    assert told.code == "FailedPrecondition"
    assert f"image {name}: the registry {address} answers 401" in told.message
    assert f"SetCredentials for {address}" in told.message
    before = set(lock.given)
    assert len(before) >= 5
    lock.given.clear()
    command.says(NEXT_PASSWORD)
    renewed = {**PASSWORDS, "password": NEXT_PASSWORD}
    pull(functions, name, **(given if by == "command" else renewed))
    assert len(before.intersection(lock.given)) <= AT_ONCE
