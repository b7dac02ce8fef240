"""Registries that do not behave, asked by the agent's own client: a row for each kind of fault."""

from __future__ import annotations

import asyncio
import email.utils
import ssl
import time
from pathlib import Path

import pytest

from agent.containerd import registry
from agent.containerd.access import Access
from agent.containerd.credentials import Credentials
from agent.containerd.endpoints import RegistryHosts
from agent.core.registry_hosts import parse_hosts
from agent.core.registry_patience import MAX_TRIES
from agent.errors import FailedPrecondition, InvalidSpec, NotFound, RuntimeUnavailable
from agent.model.image_ref import parse_image_ref
from tests import certificates, oci
from tests import misbehaving as m

IMAGE = oci.image([oci.layer({"a": b"1"})])
SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"


async def resolve(server, *, seconds=20.0, access=None, directory=None, ca_pem=""):
    name = parse_image_ref(f"{server.address}/me/app:1")
    endpoints = await RegistryHosts(directory, Path("/nowhere")).endpoints(name, ca_pem)
    deadline = asyncio.get_running_loop().time() + seconds
    return await registry.resolve(name, endpoints, deadline=deadline, access=access)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr("agent.core.registry_patience.FIRST_PAUSE_S", 0.01)


@pytest.fixture
def server():
    with m.misbehaving(IMAGE) as made:
        yield made


def in_a_second():
    return email.utils.formatdate(time.time() + 1, usegmt=True)


@pytest.mark.parametrize(
    ("kind", "faults"),
    [
        ("manifest", lambda: [m.status(429, Retry_After="0")] * (MAX_TRIES - 1)),
        ("manifest", lambda: [m.status(429, Retry_After=in_a_second())]),
        ("config", lambda: [m.status(503), m.status(500)]),
        ("manifest", lambda: [m.status(502)]),
        ("config", lambda: [m.reset, m.reset]),
        ("manifest", lambda: [m.cut, m.reset]),
        ("manifest", lambda: [m.typed("application/json")]),
        ("manifest", lambda: [m.status(429)]),
        ("manifest", lambda: [m.too_long]),
        ("manifest", lambda: [m.gzipped]),
        ("config", lambda: [m.gzipped]),
    ],
    ids=[
        *("429", "429-date", "500s", "502", "reset", "cut", "typed", "429-unsaid", "too-long"),
        *("gzipped-manifest", "gzipped-config"),
    ],
)
async def test_what_passes_by_itself_is_asked_again(server, kind, faults):
    server.faults[kind] += faults()
    assert (await resolve(server)).target.digest == IMAGE.digest
    assert not server.faults[kind]


@pytest.mark.parametrize(
    ("kind", "fault", "failure", "words"),
    [
        ("manifest", m.status(401), FailedPrecondition, "wants credentials (401)"),
        ("manifest", m.status(403), FailedPrecondition, "wants credentials (403)"),
        ("manifest", m.status(404), NotFound, "has no such image"),
        ("manifest", m.status(410), RuntimeUnavailable, "answers 410 Gone"),
        ("manifest", m.status(429, Retry_After="0"), RuntimeUnavailable, "answers 429 Too Many"),
        ("manifest", m.status(429, Retry_After="3600"), RuntimeUnavailable, "for 3600 s, longer"),
        ("manifest", m.status(503, Retry_After="0"), RuntimeUnavailable, "503 Service Unavail"),
        ("config", m.status(404), NotFound, "has no such image"),
        ("config", m.other_bytes, FailedPrecondition, "sent other bytes for sha256:"),
        ("config", m.short, FailedPrecondition, "sent other bytes for sha256:"),
        ("manifest", m.says(b'{"schemaVersion": 1}', SCHEMA_1), InvalidSpec, SCHEMA_1),
        ("manifest", m.short, InvalidSpec, "is not JSON"),
        ("manifest", m.zipped, InvalidSpec, "is not JSON"),
        ("config", m.zipped, FailedPrecondition, "sent other bytes for sha256:"),
        ("manifest", m.status(429), RuntimeUnavailable, "answers 429 Too Many"),
        ("manifest", m.status(500), RuntimeUnavailable, "answers 500 Internal Server Error"),
        ("manifest", m.status(502), RuntimeUnavailable, "answers 502 Bad Gateway"),
        ("config", m.status(403), FailedPrecondition, "wants credentials (403)"),
        ("manifest", m.says(b"<html>", "text/html"), InvalidSpec, "is not JSON"),
        ("manifest", m.around, FailedPrecondition, "redirect"),
        ("config", m.onward, FailedPrecondition, "redirect"),
        ("manifest", m.cut, RuntimeUnavailable, "does not answer"),
    ],
)
async def test_what_does_not_pass_is_named(server, kind, fault, failure, words):
    server.faults[kind] += [fault] * m.FOREVER
    with pytest.raises(failure) as error:
        await resolve(server)
    assert f"image {server.address}/me/app:1" in str(error.value) or failure is InvalidSpec
    assert words in str(error.value)
    assert "so it is" not in str(error.value)


@pytest.mark.parametrize("fault", [m.silence, m.loris])
async def test_a_registry_that_drags_on_ends_with_the_time_allowed(server, fault):
    server.faults["manifest"] += [fault] * m.FOREVER
    with pytest.raises(RuntimeUnavailable, match="did not answer in time"):
        await resolve(server, seconds=1.0)


async def test_a_connection_that_always_breaks_is_given_up(server):
    server.faults["manifest"] += [m.reset] * m.FOREVER
    with pytest.raises(RuntimeUnavailable, match="does not answer"):
        await resolve(server)
    # aiohttp itself asks once more over a new connection.
    assert MAX_TRIES <= len(server.asked) <= 2 * MAX_TRIES


# -- whom to believe


@pytest.fixture(scope="module")
def ca(tmp_path_factory):
    return certificates.authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def tls(ca, tmp_path):
    with m.misbehaving(IMAGE, certificates.signed(ca, tmp_path).server()) as made:
        yield made


async def test_an_authority_of_the_spec_is_believed(tls, ca):
    assert (await resolve(tls, ca_pem=ca.text)).target.digest == IMAGE.digest


async def test_a_servers_own_certificate_may_be_given_as_well(tls, tmp_path):
    own = (tmp_path / "server.pem").read_text()
    assert (await resolve(tls, ca_pem=own)).target.digest == IMAGE.digest


async def test_an_authority_of_the_spec_is_believed_for_its_registry_only(tls, ca, tmp_path):
    place = tmp_path / "127.0.0.1_1_"
    place.mkdir()
    (place / "hosts.toml").write_text(f'[host."https://{tls.address}"]\n')
    name = parse_image_ref("127.0.0.1:1/me/app:1")
    mirror, itself = await RegistryHosts(tmp_path, tmp_path).endpoints(name, ca.text)
    assert (mirror.ca_pem, itself.ca_pem) == ("", ca.text)


@pytest.mark.parametrize(
    ("names", "days", "why"),
    [
        ("IP:127.0.0.1", -1, "expired"),
        ("DNS:elsewhere.example", 2, "mismatch"),
        ("", 2, "mismatch"),  # a name in CN only: containerd would refuse it, so this one does
    ],
    ids=["expired", "other-name", "no-name"],
)
async def test_a_certificate_that_is_not_valid_is_named(ca, tmp_path, names, days, why):
    shown = certificates.signed(ca, tmp_path, names=names, days=days)
    with m.misbehaving(IMAGE, shown.server()) as server:
        with pytest.raises(FailedPrecondition) as error:
            await resolve(server, ca_pem=ca.text)
        assert f"the registry {server.address} shows a certificate" in error.value.message
        assert why in error.value.message
        assert "registry.ca_pem" in error.value.message


async def test_a_certificate_that_is_its_own_authority_is_named(ca, tmp_path):
    alone = certificates.authority(tmp_path, "alone")
    shown = certificates.signed(alone, tmp_path).server()
    refused = pytest.raises(FailedPrecondition, match=r"not valid here.*registry\.ca_pem")
    with m.misbehaving(IMAGE, shown) as server, refused:
        await resolve(server, ca_pem=ca.text)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
async def test_a_protocol_that_is_too_old_is_named(ca, tmp_path):
    context = certificates.signed(ca, tmp_path).server()
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    refused = pytest.raises(FailedPrecondition, match="does not speak TLS as it should")
    with m.misbehaving(IMAGE, context) as server, refused:
        await resolve(server, ca_pem=ca.text)


async def test_an_authority_that_nobody_gave_is_not_believed(tls, tmp_path):
    other = certificates.authority(tmp_path, "other")
    with pytest.raises(FailedPrecondition, match=r"not valid here.*registry\.ca_pem"):
        await resolve(tls, ca_pem=other.text)


async def test_tls_where_plain_http_was_taken_for_granted_says_so(tls):
    with pytest.raises(RuntimeUnavailable, match=r"over plain HTTP.*registry\.ca_pem"):
        await resolve(tls)


async def test_a_tls_server_that_answers_plain_http_says_so(server):
    server.faults["manifest"] += [m.status(400)] * m.FOREVER  # as Go's servers do
    with pytest.raises(FailedPrecondition, match=r"over plain HTTP.*registry\.ca_pem"):
        await resolve(server)


async def test_plain_http_where_tls_is_wanted_says_so(server, ca):
    with pytest.raises(FailedPrecondition, match="does not speak TLS"):
        await resolve(server, ca_pem=ca.text)


@pytest.mark.parametrize("text", ["no certificate", "-----BEGIN CERTIFICATE-----\nAA\n"])
async def test_an_authority_that_is_none_is_refused_by_field(server, text):
    with pytest.raises(InvalidSpec) as error:
        await resolve(server, ca_pem=text)
    assert [problem.field for problem in error.value.problems] == ["registry.ca_pem"]


# -- the operator's directory


async def test_certificates_alone_are_read_as_docker_lays_them_out(tls, ca, tmp_path):
    place = tmp_path / "certs.d" / tls.address
    place.mkdir(parents=True)
    (place / "ca.crt").write_text(ca.text)
    found = await resolve(tls, directory=tmp_path / "certs.d")
    assert found.target.digest == IMAGE.digest


async def test_mirrors_are_asked_first_and_missed_by_nobody(server, tls, ca, tmp_path):
    host, port = server.address.split(":")
    place = tmp_path / f"{host}_{port}_"
    place.mkdir()
    (place / "mirror.pem").write_text(ca.text)
    (place / "hosts.toml").write_text(
        f'server = "http://{server.address}"\n[host."https://{tls.address}"]\n'
        'capabilities = ["pull", "resolve"]\nca = "mirror.pem"\n'
    )
    assert (await resolve(server, directory=tmp_path)).target.digest == IMAGE.digest
    assert (len(tls.asked), len(server.asked)) == (2, 0)
    for asked, fault in enumerate((m.status(404), m.status(503), m.reset), 1):
        tls.asked.clear()
        tls.faults["manifest"] += [fault] * m.FOREVER
        assert (await resolve(server, directory=tmp_path)).target.digest == IMAGE.digest
        assert len(server.asked) == 2 * asked
        assert len(tls.asked) <= 2  # not waited for; aiohttp itself may ask twice
        tls.faults.clear()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("server = ", "Invalid value"),
        ('[host."ftp://x"]', "no address of http or https"),
        ('[host."https://x"]\ncapabilities = ["fly"]', "capabilities are pull, resolve, push"),
        ("skip_verfy = true", "unknown key 'skip_verfy'"),
        ('ca = "gone.pem"', "No such file"),
        ('ca = "hosts.toml"', "no certificate in PEM"),
    ],
)
async def test_a_hosts_file_that_is_not_right_is_named(server, tmp_path, text, why):
    place = tmp_path / server.address
    place.mkdir()
    (place / "hosts.toml").write_text(text)
    with pytest.raises(FailedPrecondition) as error:
        await resolve(server, directory=tmp_path)
    assert str(place) in error.value.message
    assert why in error.value.message


async def test_what_containerd_is_told_is_its_owners_and_gone_after_the_pull(tls, ca, tmp_path):
    hosts = RegistryHosts(None, tmp_path / "hosts")
    endpoints = await hosts.endpoints(parse_image_ref(f"{tls.address}/me/app:1"), ca.text)
    async with hosts.for_containerd(endpoints) as place:
        text = Path(place, "_default", "hosts.toml").read_text()
        (told,) = parse_hosts(text, place)
        assert (told.scheme, told.host) == ("https", tls.address)
        assert [Path(each).read_text() for each in told.ca] == [ca.text]
        assert {Path(place).stat().st_mode & 0o77, Path(place).parent.stat().st_mode & 0o77} == {0}
        (tmp_path / "hosts" / "999999999-of-a-worker-that-ended").mkdir()
        hosts.sweep()
        assert [str(each) for each in (tmp_path / "hosts").iterdir()] == [place]
    assert list((tmp_path / "hosts").iterdir()) == []


# -- who asks


def asks_for(user, password):
    """A route that answers only to these, by Basic."""
    wanted = Credentials(user, password).basic

    def route(request):
        if request.headers.get("Authorization") == wanted:
            return False
        request.reply(401, {"WWW-Authenticate": 'Basic realm="here"'})
        return True

    return route


async def test_a_password_is_shown_where_it_is_asked_for(server):
    server.route = asks_for("me", "secret")

    async def find(host):
        return Credentials("me", "secret") if host == server.address else None

    assert (await resolve(server, access=Access(find))).target.digest == IMAGE.digest


async def test_credentials_that_cannot_be_had_are_told_with_the_image(server):
    server.route = asks_for("me", "secret")

    async def find(host):
        raise FailedPrecondition("registry.credential_command: /bin/c ended with status 3")

    with pytest.raises(FailedPrecondition, match=r"^image .*/me/app:1: the registry .* status 3$"):
        await resolve(server, access=Access(find))


async def test_an_operators_header_is_shown_and_does_not_follow_a_redirect(server, tmp_path):
    wanted = Credentials("me", "secret").basic
    with m.misbehaving(IMAGE) as storage:
        server.route = asks_for("me", "secret")
        place = tmp_path / server.address
        place.mkdir()
        (place / "hosts.toml").write_text(f'[header]\nauthorization = "{wanted}"\nX-A = "1"\n')
        away = m.status(307, Location=f"http://{storage.address}/v2/a/blobs/{server.config}")
        server.faults["config"] += [away]
        assert (await resolve(server, directory=tmp_path)).target.digest == IMAGE.digest
    (_, _, headers) = storage.asked[0]
    assert "Authorization" not in headers
    assert headers["X-A"] == "1"


async def test_a_wrong_password_is_refused_and_not_repeated(server):
    server.route = asks_for("me", "secret")

    async def find(host):
        return Credentials("me", "wr0ng")

    with pytest.raises(FailedPrecondition, match="refuses these credentials") as error:
        await resolve(server, access=Access(find))
    assert "wr0ng" not in error.value.message
    assert f"SetCredentials for {server.address}" in error.value.message


@pytest.mark.parametrize(
    ("others", "passes"), [(["secret"], True), (["wr0ng2"], False), ([], False)]
)
async def test_refused_credentials_are_asked_for_anew_once(server, others, passes):
    server.route = asks_for("me", "secret")
    known, asked = ["wr0ng1"], []

    async def find(host):
        return Credentials("me", known[-1])

    async def renew(host, refused):
        asked.append((host, refused))
        known.extend(others)
        return bool(others)

    access = Access(find, renew=renew)
    if passes:
        assert (await resolve(server, access=access)).target.digest == IMAGE.digest
    else:
        with pytest.raises(FailedPrecondition, match="refuses these credentials"):
            await resolve(server, access=access)
    assert asked == [(server.address, Credentials("me", "wr0ng1"))]
