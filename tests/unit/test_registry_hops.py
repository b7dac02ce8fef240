"""Where a registry may send its client, and how it is spoken to."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from agent.core.registry_hops import Home, plain_http, refused_addresses, refused_url

OWN = frozenset(map(ip_address, ("93.184.216.34", "10.9.9.9", "2606:2800:220::9")))
PUBLIC = "151.101.1.69"


@pytest.mark.parametrize(
    ("scheme", "addresses", "wants"),
    [
        ("https", ["127.0.0.1"], False),
        ("https", ["127.0.0.1", "::1"], False),
        ("https", ["::ffff:127.0.0.1"], False),
        ("https", ["127.0.0.1", "10.0.0.1"], True),
        ("https", ["192.0.2.1"], True),
        ("https", [], True),
        ("http", ["127.0.0.1"], False),
    ],
)
def test_only_a_registry_of_this_machine_may_name_plain_http_over_tls(scheme, addresses, wants):
    assert home(*addresses, scheme=scheme).wants_tls == wants


def home(*addresses: str, scheme: str = "https") -> Home:
    return Home(scheme, tuple(map(ip_address, addresses)), OWN)


def refused(where: Home, *addresses: str, scheme: str = "https") -> str:
    return refused_addresses(where, scheme, tuple(map(ip_address, addresses)))


@pytest.mark.parametrize(
    ("host", "plain"),
    [
        ("127.0.0.1:5000", True),
        ("127.8.9.1:80", True),
        ("localhost:5000", True),
        ("[::1]:5000", True),
        ("127.0.0.1:443", False),
        ("localhost", False),
        ("10.0.0.1:5000", False),
        ("registry.example:5000", False),
        ("docker.io", False),
    ],
)
def test_only_loopback_with_a_port_goes_without_tls(host: str, plain: bool) -> None:
    assert plain_http(host) is plain


# What is not public, and the word for it.
PLACES = [
    ("127.0.0.1", "loopback"),
    ("127.255.0.9", "loopback"),
    ("::1", "loopback"),
    ("::ffff:127.0.0.1", "loopback"),
    ("::127.0.0.1", "loopback"),
    ("64:ff9b::7f00:1", "loopback"),
    ("2002:7f00:1::", "loopback"),
    ("0.0.0.0", "this machine"),
    ("::", "this machine"),
    ("::ffff:0.0.0.0", "this machine"),
    ("169.254.1.1", "link-local"),
    ("fe80::1", "link-local"),
    ("fe80::1%lo", "link-local"),
    ("169.254.169.254", "metadata"),
    ("::ffff:169.254.169.254", "metadata"),
    ("64:ff9b::a9fe:a9fe", "metadata"),
    ("100.100.100.200", "metadata"),
    ("168.63.129.16", "metadata"),
    ("192.0.0.192", "metadata"),
    ("fd00:ec2::254", "metadata"),
    ("fd20:ce::254", "metadata"),
    ("93.184.216.34", "own"),
    ("::ffff:93.184.216.34", "own"),
    ("10.9.9.9", "own"),
    ("2606:2800:220::9", "own"),
    ("10.0.0.1", "private"),
    ("172.16.0.1", "private"),
    ("192.168.0.1", "private"),
    ("100.64.0.1", "private"),
    ("fd00::1", "private"),
    ("fec0::1", "private"),
    ("0.1.2.3", "private"),
    ("224.0.0.1", "no address of one host"),
    ("255.255.255.255", "no address of one host"),
    ("ff02::1", "no address of one host"),
]


@pytest.mark.parametrize(("address", "word"), PLACES)
def test_a_public_registry_sends_to_public_places_only(address: str, word: str) -> None:
    public = home(PUBLIC)
    assert word in refused(public, address)
    assert word in refused(public, PUBLIC, address)
    # A name with a public address among others is public: it does not let itself in.
    assert word in refused(home(PUBLIC, address), address)
    assert not refused(public, "104.16.99.52", "2606:4700::1")


# Addresses of the table in other clothes, and what they are without.
CLOTHED = {
    "::ffff:127.0.0.1": "127.0.0.1",
    "::127.0.0.1": "127.0.0.1",
    "64:ff9b::7f00:1": "127.0.0.1",
    "2002:7f00:1::": "127.0.0.1",
    "::ffff:0.0.0.0": "0.0.0.0",
    "fe80::1%lo": "fe80::1",
    "::ffff:169.254.169.254": "169.254.169.254",
    "64:ff9b::a9fe:a9fe": "169.254.169.254",
    "::ffff:93.184.216.34": "93.184.216.34",
}
SPECIAL = [address for address, word in PLACES if word != "private"]


@pytest.mark.parametrize("address", SPECIAL)
def test_a_registry_at_a_special_place_may_name_its_own_address_and_no_other(address: str) -> None:
    plain = CLOTHED.get(address, address)
    allowed = {other for other in SPECIAL if not refused(home(address), other)}
    assert allowed == {other for other in SPECIAL if CLOTHED.get(other, other) == plain}


def test_a_private_registry_may_name_its_neighbours_and_the_internet() -> None:
    inside = home("10.0.0.5")
    assert not refused(inside, "10.0.0.6", "192.168.3.4")
    assert not refused(inside, PUBLIC)
    for address in ("127.0.0.1", "169.254.169.254", "100.100.100.200", "10.9.9.9", "fe80::1"):
        assert refused(inside, address)


def test_a_registry_behind_a_proxy_is_nowhere_itself() -> None:
    assert refused(home(), "10.0.0.6")
    assert refused(home(), "127.0.0.1")
    assert not refused(home(), PUBLIC)


def test_plain_http_stays_on_loopback() -> None:
    local = home("127.0.0.1", scheme="http")
    assert not refused(local, "127.0.0.1", scheme="http")
    assert not refused(local, PUBLIC, scheme="https")
    assert "leaves this machine" in refused(local, PUBLIC, scheme="http")
    assert "loopback" in refused(local, "127.0.0.2", scheme="http")


@pytest.mark.parametrize(
    ("scheme", "host", "word"),
    [
        ("http", "cdn.example", "plain http"),
        ("ftp", "cdn.example", "no address of http"),
        ("file", "", "no address of http"),
        ("https", "", "no address of http"),
        ("https", "2130706433", "number"),
        ("https", "017700000001", "number"),
        ("https", "0x7f000001", "number"),
        ("https", "0X7F.1", "number"),
        ("https", "127.1", "number"),
        ("https", "0177.0.0.1", "number"),
        ("https", "127.0.0.1.", "number"),
        ("https", "1.2.3.4.5", "number"),
    ],
)
def test_what_is_no_address_is_not_looked_up(scheme: str, host: str, word: str) -> None:
    assert word in refused_url(scheme, host, has_userinfo=False, home_scheme="https")


@pytest.mark.parametrize("host", ["cdn.example", "127.0.0.1", "::1", "1.example", "0x.example.org"])
def test_a_host_is_looked_up(host: str) -> None:
    assert not refused_url("https", host, has_userinfo=False, home_scheme="https")
    assert not refused_url("http", host, has_userinfo=False, home_scheme="http")
    assert refused_url("https", host, has_userinfo=True, home_scheme="https")
