"""The network room for real: bridge, slots, packet filter, inside rootlesskit as user kindling.

Every line of "from inside a function none of these answer" is tried from inside, each against
something that does answer when asked from elsewhere.
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

import pytest

from agent.core import clouds
from tests.inside.rootless_session import ProbeFailed, Session
from tests.integration.other_machine import (
    FAR_OUTSIDE,
    OUTSIDE,
    OUTSIDE_HOST_SIDE,
    other_machine,
)

pytestmark = pytest.mark.integration

REFUSED = {"No route to host", "silent"}
"""How a function sees what does not answer: our filter's refusal, or nothing."""

# What clouds answer at beyond link-local; here the other machine does. Alibaba's resolver is none.
METADATA = [row.address for row in clouds.METADATA if not row.address.startswith("169.254.")]
NO_METADATA = "100.100.2.136"


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    session = Session("network_probe")
    try:
        session.call("open", warm_slots=2)
        yield session
    finally:
        session.end()


@pytest.fixture(scope="module")
def functions(session: Session) -> dict[str, dict[str, object]]:
    """Two functions with the default egress, one closed, one with a network of its own."""
    slots = {}
    for name, egress in (
        ("a", "all"),
        ("b", "all"),
        ("none", "none"),
        ("cidr", [f"{FAR_OUTSIDE}/32", "203.0.113.0/24"]),
    ):
        slots[name] = session.call("lease", name=name, egress=egress)
        assert session.call("start", name=name) == "ready"
    return slots


@pytest.fixture(scope="module")
def outside() -> Iterator[int]:
    with other_machine(NO_METADATA, *METADATA) as port:
        yield port


@pytest.fixture(scope="module")
def host_port() -> Iterator[int]:
    """A listener of the host on all its addresses."""
    with closing(socket.create_server(("0.0.0.0", 0), backlog=64)) as listener:
        yield listener.getsockname()[1]


def host_addresses() -> list[str]:
    listing = json.loads(subprocess.check_output(["ip", "-j", "-4", "address"]))
    return [info["local"] for link in listing for info in link["addr_info"]]


DNS_QUERY = "abcd01000001000000000000076578616d706c6503636f6d0000010001"


def wait_until_blocked(session: Session, *addresses: str) -> None:
    """Wait until the agent has heard of the host's new addresses."""
    wait_until(lambda: all(address in blocked(session) for address in addresses), "the block")


def blocked(session: Session) -> str:
    """What the agent closes of the host's addresses."""
    return json.dumps(session.call("nft")["host"])


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline, f"no {what} in 10 s"
        time.sleep(0.02)


def ask(session: Session, name: str, *what: object) -> Any:
    return session.call("ask", name=name, what=list(what))


def test_the_agent_reaches_a_function_and_is_seen_as_the_bridge(session, functions) -> None:
    for name in ("a", "b", "none", "cidr"):
        status, body = session.call("fetch", address=functions[name]["address"])
        assert (status, body) == ("HTTP/1.0 200 OK", "hello 172.30.0.1")


def test_a_socket_that_was_not_in_stock_works_too(session, functions) -> None:
    address = functions["a"]["address"]
    assert session.call("fetch", address=address, take=False)[1] == "hello 172.30.0.1"
    at_once, waited, different = session.call("many_sockets", count=200)
    assert waited == 200
    assert at_once >= 32
    assert different == at_once + waited


def test_a_slot_is_furnished_as_a_container_expects(session, functions) -> None:
    slot = functions["a"]
    inside = session.call("in_slot", name="a")
    names = [link[1:4] for link in inside["links"]]
    assert names == [["lo", True, 65536], ["eth0", True, 1500]]
    assert [1, "127.0.0.1/8"] in inside["addresses"]
    assert [2, f"{slot['address']}/32"] in inside["addresses"]
    assert ["0.0.0.0/0", "172.30.0.1", 2] in inside["routes"]
    settings = "net/ipv4/ip_unprivileged_port_start net/ipv6/conf/eth0/disable_ipv6"
    read = f"cd /proc/sys; cat {settings} net/ipv4/ping_group_range; ip -6 address show dev eth0"
    assert ask(session, "a", "shell", read) == [0, "0\n1\n0\t65534"]


def test_a_function_may_ping_itself_but_not_the_bridge(session, functions) -> None:
    assert ask(session, "a", "ping", "127.0.0.1") == "answer"
    assert ask(session, "a", "ping", "172.30.0.1") in REFUSED


def test_a_function_has_no_rights_over_its_network(session, functions) -> None:
    for change in (
        "ip link set eth0 down",
        "ip address add 172.30.9.9/32 dev eth0",
        "ip route replace default dev eth0",
        "nft add table ip x",
        "echo 1 > /proc/sys/net/ipv4/ip_forward",
    ):
        status, said = ask(session, "a", "shell", change)
        assert status != 0, change
        assert "not permitted" in said or "denied" in said, (change, said)


def test_functions_do_not_reach_each_other(session, functions) -> None:
    other = functions["b"]["address"]
    assert ask(session, "a", "tcp", other, 9000) in REFUSED
    assert ask(session, "a", "udp", other, 9000) in REFUSED
    assert ask(session, "a", "ping", other) in REFUSED
    assert ask(session, "b", "tcp", functions["b"]["address"], 9000) == "open"


def test_the_bridges_host_side_does_not_answer(session, functions) -> None:
    session.call("listen_beside_bridge", port=18080)
    assert session.call("fetch", address="172.30.0.1", port=18080)[1] == "beside the bridge"
    for port in (18080, 8080, 8081, 22):
        assert ask(session, "a", "tcp", "172.30.0.1", port) in REFUSED
        assert ask(session, "a", "udp", "172.30.0.1", port) in REFUSED


def test_the_detached_namespaces_own_addresses_do_not_answer(session, functions) -> None:
    session.call("listen_beside_bridge", port=18082)
    assert ask(session, "a", "tcp", "10.0.2.100", 18082) in REFUSED


def test_the_hosts_loopback_does_not_answer(session, functions, host_port) -> None:
    socket.create_connection(("127.0.0.1", host_port), 2).close()
    for address in ("10.0.2.2", "10.0.2.1", "10.0.2.255", "127.0.0.2"):
        assert ask(session, "a", "tcp", address, host_port) in {*REFUSED, "Connection refused"}
    assert ask(session, "a", "tcp", "10.0.2.2", host_port) in REFUSED


def test_the_hosts_own_addresses_do_not_answer(session, functions, outside, host_port) -> None:
    own = [a for a in host_addresses() if not a.startswith("127.")]
    assert OUTSIDE_HOST_SIDE in own
    wait_until_blocked(session, *own)
    for address in own:
        socket.create_connection((address, host_port), 2).close()
        for name in ("a", "cidr"):
            assert ask(session, name, "tcp", address, host_port) in REFUSED, address


def test_an_address_the_host_gets_later_does_not_answer_either(
    session, functions, outside, host_port
) -> None:
    fresh = "203.0.113.200"
    subprocess.run(["ip", "address", "add", f"{fresh}/32", "dev", "lo"], check=True)
    try:
        wait_until_blocked(session, fresh)
        assert ask(session, "a", "tcp", fresh, host_port) in REFUSED
        assert ask(session, "cidr", "tcp", fresh, host_port) in REFUSED
    finally:
        subprocess.run(["ip", "address", "delete", f"{fresh}/32", "dev", "lo"], check=True)
    wait_until(lambda: fresh not in blocked(session), "end of the block")


@pytest.mark.parametrize(
    "address", ["169.254.169.254", "169.254.1.1", "224.0.0.1", "255.255.255.255"]
)
def test_link_local_and_reserved_networks_do_not_answer(session, functions, address) -> None:
    assert ask(session, "a", "tcp", address, 80) in {*REFUSED, "Network is unreachable"}
    # refused by the filter itself: the packet never got as far as slirp
    if address.startswith("169.254"):
        assert ask(session, "a", "tcp", address, 80) == "No route to host"


@pytest.mark.parametrize("address", METADATA)
def test_metadata_of_a_cloud_answers_no_function(session, functions, outside, address) -> None:
    name = f"lists {address}"
    session.call("lease", name=name, egress=[f"{address}/32", f"{FAR_OUTSIDE}/32"])
    session.call("start", name=name)
    try:
        for asker in ("a", name):
            assert ask(session, asker, "tcp", address, outside) == "No route to host"
            assert ask(session, asker, "udp", address, 80) == "No route to host"
            # what is beside it does answer
            assert ask(session, asker, "tcp", FAR_OUTSIDE, outside) == "open"
    finally:
        session.call("kill", name=name)
        session.call("release", name=name)


def test_a_clouds_resolver_is_no_metadata(session, functions, outside) -> None:
    assert ask(session, "a", "tcp", NO_METADATA, outside) == "open"


def test_dns_passes_but_nothing_else_of_the_resolver(session, functions) -> None:
    query = DNS_QUERY
    assert ask(session, "a", "udp", "10.0.2.3", 53, query) in {"answer", "silent"}
    assert ask(session, "cidr", "udp", "10.0.2.3", 53, query) in {"answer", "silent"}
    assert ask(session, "none", "udp", "10.0.2.3", 53, query) == "No route to host"
    assert ask(session, "a", "udp", "10.0.2.3", 54, query) == "No route to host"
    for port in (54, 80, 8080):
        assert ask(session, "a", "tcp", "10.0.2.3", port) == "No route to host"


def test_egress_all_reaches_the_world(session, functions, outside) -> None:
    assert ask(session, "a", "tcp", OUTSIDE, outside) == "open"
    assert ask(session, "b", "tcp", FAR_OUTSIDE, outside) == "open"


def test_egress_none_reaches_nothing(session, functions, outside) -> None:
    for address in (OUTSIDE, FAR_OUTSIDE):
        assert ask(session, "none", "tcp", address, outside) == "No route to host"


def test_egress_by_network_reaches_that_network_only(session, functions, outside) -> None:
    assert ask(session, "cidr", "tcp", FAR_OUTSIDE, outside) == "open"
    assert ask(session, "cidr", "tcp", OUTSIDE, outside) == "No route to host"


def test_a_list_of_everything_is_everything_but_the_host(
    session, functions, outside, host_port
) -> None:
    session.call("lease", name="wide", egress=["0.0.0.0/1", "128.0.0.0/1"])
    session.call("start", name="wide")
    assert ask(session, "wide", "tcp", FAR_OUTSIDE, outside) == "open"
    assert ask(session, "wide", "tcp", OUTSIDE_HOST_SIDE, host_port) == "No route to host"
    assert ask(session, "wide", "tcp", functions["a"]["address"], 9000) in REFUSED
    session.call("kill", name="wide")
    session.call("release", name="wide")


def test_traffic_between_agent_and_function_is_not_tracked(session, functions, outside) -> None:
    session.call("fetch", address=functions["a"]["address"])
    ask(session, "a", "tcp", OUTSIDE, outside)
    tracked = session.call("tracked")
    assert any(f"dst={OUTSIDE}" in line for line in tracked)
    assert not [line for line in tracked if "dport=9000" in line]


def test_the_resolver_file_names_the_detached_resolver(session) -> None:
    lines = session.call("resolv").splitlines()
    assert lines[0] == "nameserver 10.0.2.3"
    assert len([line for line in lines if line.startswith("nameserver")]) == 1


def test_a_slot_comes_back_as_new(session, functions, outside) -> None:
    """Sockets in TIME_WAIT, tracked connections and rules of a lease do not outlive it."""
    first = session.call("lease", name="used", egress=[f"{OUTSIDE}/32"])
    session.call("start", name="used")
    ask(session, "used", "hang_up_first", 9001)
    session.call("touch", address=first["address"], port=9001)
    assert ask(session, "used", "tcp", OUTSIDE, outside) == "open"
    session.call("kill", name="used")
    assert session.call("in_slot", name="used")["sockets"][1] >= 1
    assert first["address"] in json.dumps(session.call("nft")["allowed"])
    session.call("release", name="used")
    session.call("settled")
    assert first["address"] not in json.dumps(session.call("nft"))
    assert not [row for row in session.call("tracked") if f"src={first['address']} " in row]
    leased = [session.call("lease", name=f"again{n}") for n in range(4)]
    same = next(n for n, slot in enumerate(leased) if slot["number"] == first["number"])
    assert leased[same]["inode"] == first["inode"]
    assert session.call("in_slot", name=f"again{same}")["sockets"][1] == 0
    for n in range(4):
        session.call("release", name=f"again{n}")


@pytest.fixture
def sums_unchecked(session) -> Iterator[None]:
    """While it checks sums, the kernel tracks no UDP-Lite that it forwards (seen with 6.18)."""
    session.call("check_sums", on=False)
    yield
    session.call("check_sums", on=True)


@pytest.mark.usefixtures("sums_unchecked")
@pytest.mark.parametrize(
    ("what", "protocol"), [(["udp_lite", OUTSIDE, 9], "udplite"), (["ping", OUTSIDE], "icmp")]
)
def test_tracked_connections_of_other_protocols_are_forgotten_too(
    session, functions, outside, what, protocol
) -> None:
    def rows() -> list[str]:
        found = [row for row in session.call("tracked") if f"src={slot['address']} " in row]
        return [row for row in found if protocol in row]

    slot = session.call("lease", name="rare")
    session.call("start", name="rare")
    ask(session, "rare", *what)
    assert rows()
    session.call("kill", name="rare")
    session.call("release", name="rare")
    counts = session.call("settled")
    assert not rows()
    assert not counts["dirty"]
    assert counts["ready"]


def test_a_slot_in_which_something_lives_on_is_never_used_again(session, functions) -> None:
    first = session.call("lease", name="haunted")
    session.call("start", name="haunted")
    session.call("release", name="haunted")
    session.call("settled")
    # its devices are gone at once, so what lives on has no network
    assert ask(session, "haunted", "tcp", "172.30.0.1", 80) == "Network is unreachable"
    assert f"kd{first['number']}" not in session.call("links")
    leased = [session.call("lease", name=f"next{n}") for n in range(5)]
    assert first["inode"] not in [slot["inode"] for slot in leased]
    for n in range(5):
        session.call("release", name=f"next{n}")
    session.call("kill", name="haunted")


def test_a_second_release_is_a_bug_and_changes_nothing(session) -> None:
    session.call("lease", name="twice")
    with pytest.raises(ProbeFailed) as caught:
        session.call("release_twice", name="twice")
    assert caught.value.kind == "Bug"
    counts = session.call("settled")
    assert counts["leased"] == 4


def test_cancelled_leases_lose_no_slot_and_leave_no_rule(session, functions) -> None:
    before = session.call("settled")
    after = session.call("cancel_leases", count=80)
    assert after["leased"] == before["leased"] == 4
    assert sum(after.values()) == sum(before.values())
    rules = session.call("nft")
    assert [entry["concat"][0] for entry in rules["allowed"]] == [functions["cidr"]["address"]]
    assert rules["closed"] == [functions["none"]["address"]]


def test_a_network_that_is_none_is_the_callers_error(session) -> None:
    with pytest.raises(ProbeFailed) as caught:
        session.call("lease", name="x", egress=["10.0.0.1/8"])
    assert caught.value.kind == "InvalidSpec"
    assert "egress[0]" in caught.value.message


def test_functions_outlive_the_worker_and_are_adopted(session, functions, outside) -> None:
    """Last of the shared session: the room is closed and opened again around running processes."""
    session.call("close")
    session.call("open", warm_slots=2, ready=False)
    # before anybody is adopted the old rules still hold
    assert ask(session, "none", "tcp", OUTSIDE, outside) == "No route to host"
    adopted = session.call("adopt", name="none", number=functions["none"]["number"], egress="none")
    assert adopted == functions["none"]
    session.call("adopt", name="a", number=functions["a"]["number"])
    with pytest.raises(ProbeFailed) as caught:
        session.call("adopt", name="b", number=functions["a"]["number"])
    assert caught.value.kind == "NotFound"
    with pytest.raises(ProbeFailed) as caught:
        session.call("adopt_pid", number=77, pid=2**22 - 1)
    assert caught.value.kind == "NotFound"
    session.call("ready")
    counts = session.call("settled")
    assert (counts["leased"], counts["ready"]) == (2, 2)
    assert session.call("fetch", address=functions["a"]["address"])[1] == "hello 172.30.0.1"
    assert ask(session, "a", "tcp", OUTSIDE, outside) == "open"
    assert ask(session, "none", "tcp", OUTSIDE, outside) == "No route to host"
    # nobody adopted these two: they have no network any more, and their rules are gone
    assert ask(session, "b", "tcp", OUTSIDE, outside) == "Network is unreachable"
    assert session.call("nft")["allowed"] == []
    for name in ("a", "none"):
        session.call("kill", name=name)
        session.call("release", name=name)
    assert session.call("settled")["leased"] == 0
    assert session.call("nft")["closed"] == []


def test_a_full_node_says_so() -> None:
    session = Session("network_probe")
    try:
        session.call("open", warm_slots=1, subnet="10.99.0.0/29")
        for n in range(5):
            session.call("lease", name=f"s{n}")
        with pytest.raises(ProbeFailed) as caught:
            session.call("lease", name="one too many")
        assert caught.value.kind == "Overloaded"
        assert "all 5 network slots are taken" in caught.value.message
        session.call("release", name="s3")
        assert session.call("lease", name="s3")["address"] == "10.99.0.5"
    finally:
        session.end()


def test_nothing_is_left_on_the_host(session) -> None:
    """The detached namespace takes everything with it; the host has seen no device of ours."""
    listing = json.loads(subprocess.check_output(["ip", "-j", "link"]))
    names = {link["ifname"] for link in listing}
    assert not {name for name in names if name.startswith("kd") and not name.startswith("kdt")}
    assert not [
        m for m in Path("/proc/self/mounts").read_text().splitlines() if "kindling-test-" in m
    ]
    assert IPv4Interface(f"{OUTSIDE_HOST_SIDE}/30").network.is_private
