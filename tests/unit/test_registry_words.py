"""What registries say and what operators write about them: challenges, Retry-After, hosts.toml."""

from __future__ import annotations

import pytest

from agent.core.challenges import MAX_HEADER_CHARS, Challenge, challenges
from agent.core.registry_hosts import HostEntry, hosts_toml, parse_hosts
from agent.core.registry_patience import FIRST_PAUSE_S, MAX_TRIES, asked_pause_s, pause_s
from agent.model.registry_rules import registry_problems
from agent.model.spec import RegistrySpec

NOW_S = 784_887_151.0  # Tue, 15 Nov 1994 08:12:31 GMT, RFC 9110's example


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ([], []),
        ([""], []),
        (["Basic"], [Challenge("basic")]),
        (['Basic realm="a, b"'], [Challenge("basic", {"realm": "a, b"})]),
        (
            ['Bearer realm="https://a/t",service=s,scope="repository:x:pull"'],
            [Challenge("bearer", {"realm": "https://a/t", "service": "s"})],
        ),
        (
            ['Basic realm="x", Bearer realm="y"'],
            [Challenge("bearer", {"realm": "y"}), Challenge("basic", {"realm": "x"})],
        ),
        (
            ['basic realm="x"', 'BEARER realm="y"'],
            [Challenge("bearer", {"realm": "y"}), Challenge("basic", {"realm": "x"})],
        ),
        (['Negotiate abc==, Basic realm="x"'], [Challenge("basic", {"realm": "x"})]),
        ([r'Basic realm="a \"b\""'], [Challenge("basic", {"realm": 'a "b"'})]),
        (['Digest realm="x"'], []),
    ],
)
def test_challenges_are_taken_apart(headers, found):
    got = challenges(headers)
    assert [each.scheme for each in got] == [each.scheme for each in found]
    for one, wanted in zip(got, found, strict=True):
        assert {key: one.fields[key] for key in wanted.fields} == wanted.fields


@pytest.mark.parametrize("filler", [" ", "\t", ",", ", ", " =", "a ", 'a="', "\\"])
def test_no_header_is_taken_apart_for_ever(filler):
    """The longest that is read; one that needs the cube of its length takes half an hour."""
    header = 'Basic realm="x"' + filler * (MAX_HEADER_CHARS // len(filler)) + '"'
    assert challenges([header])[0].fields["realm"] == "x"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        ("Tue, 15 Nov 1994 08:12:41 GMT", 10.0),
        ("Tue, 15 Nov 1994 08:12:21 GMT", -10.0),
        ("9" * 400, 999_999_999.0),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("Tue, 99 Nov 1994 08:12:41 GMT", None),
        ("Tue, 15 Nov 99999999999999999999 08:12:41 GMT", None),
        ("Tue, 15 Nov 1994 08:12:41 +99999999999999999999", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(text, seconds):
    assert asked_pause_s(text, NOW_S) == seconds


def test_pauses_grow_end_and_are_never_negative():
    found = [pause_s(tries, "", NOW_S) for tries in range(1, MAX_TRIES + 1)]
    assert found == [FIRST_PAUSE_S * 2**n for n in range(MAX_TRIES - 1)] + [None]
    assert pause_s(1, "Tue, 15 Nov 1994 08:12:21 GMT", NOW_S) == 0.0


HOSTS = """
server = "registry.example"
ca = ["/etc/a.pem", "b.pem"]
[header]
X-A = "1"
[host."https://mirror.example:8443/team"]
capabilities = ["pull", "resolve"]
skip_verify = true
client = [["c.cert", "c.key"], "both.pem"]
[host."http://127.0.0.1:5000"]
[host."http://127.0.0.1:5000".header]
X-B = ["2", "3"]
[host."https://old.example/api"]
override_path = true
"""


def test_a_hosts_file_is_read_as_containerd_reads_it():
    mirror, plain, old, server = parse_hosts(HOSTS, "/d")
    assert (mirror.scheme, mirror.host, mirror.path) == (
        *("https", "mirror.example:8443"),
        "/team/v2",
    )
    assert mirror.client == (("/d/c.cert", "/d/c.key"), ("/d/both.pem", ""))
    assert mirror.skip_verify
    assert mirror.capabilities == ("pull", "resolve")
    assert (plain.scheme, plain.path, plain.headers) == (
        *("http", "/v2"),
        (("X-B", "2"), ("X-B", "3")),
    )
    assert old.path == "/api"
    assert (server.scheme, server.host, server.ca) == (
        *("https", "registry.example"),
        ("/etc/a.pem", "/d/b.pem"),
    )
    assert server.headers == (("X-A", "1"),)


def test_what_is_written_for_containerd_reads_back_the_same():
    entries = parse_hosts(HOSTS, "/d")
    assert parse_hosts(hosts_toml(entries), "/d") == entries


def test_a_file_without_a_server_ends_with_the_registry_itself():
    assert parse_hosts('[host."https://m"]', "/d")[-1] == HostEntry()


@pytest.mark.parametrize(
    "text",
    [
        "server = 1",
        "host = 1",
        'host.x = "y"',
        "[header]\nX = 1",
        "ca = 1",
        'client = [["a", "b", "c"]]',
        'server = "https://me:secret@x"',
        'server = "unix:///x"',
        "bogus = 1",
    ],
)
def test_what_containerd_would_pass_over_is_an_error(text):
    with pytest.raises(ValueError, match=r"must|no address|unknown key|a client"):
        parse_hosts(text, "/d")


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        ({}, []),
        ({"username": "me", "password": "s3cret"}, []),
        ({"username": "me", "identity_token": "s3cret"}, []),
        ({"identity_token": "s3cret"}, []),
        ({"username": "me"}, []),  # the rest may come by SetCredentials
        ({"password": "s3cret"}, ["registry.username"]),
        ({"username": "m:e", "password": "s3cret"}, ["registry.username"]),
        ({"username": "m\ne", "password": "s3cret"}, ["registry.username"]),
        ({"username": "me", "password": "s3cret" * 20_000}, ["registry.password"]),
        ({"credential_command": ("/bin/x", "a")}, []),
        ({"credential_command": ("",)}, ["registry.credential_command"]),
        ({"credential_command": ("x", "s3cret\0")}, ["registry.credential_command"]),
        ({"credential_command": ("x",) * 65}, ["registry.credential_command"]),
    ],
)
def test_a_registry_table_is_checked_and_not_repeated(given, fields):
    problems = list(registry_problems(RegistrySpec(**given)))
    assert [problem.field for problem in problems] == fields
    assert "s3cret" not in str(problems)
