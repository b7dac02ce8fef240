"""The address plan: one number, one address, one MAC, one name, and back."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.addresses import MAX_PORTS, plan
from agent.errors import Bug, InvalidSpec


def test_the_bridge_takes_the_first_host_address_and_slots_follow() -> None:
    p = plan("172.30.0.0/16", "kd0")
    assert p.bridge_address == "172.30.0.1"
    assert p.bridge_mac == "02:6b:ac:1e:00:01"
    assert (p.address(1), p.mac(1), p.veth(1)) == ("172.30.0.2", "02:6b:ac:1e:00:02", "kd1")
    assert p.address(255) == "172.30.1.0"
    assert p.capacity == MAX_PORTS


@given(st.integers(min_value=8, max_value=29), st.integers(min_value=0, max_value=2**32 - 1))
def test_every_slot_has_an_address_mac_and_name_of_its_own(prefix: int, base: int) -> None:
    network = IPv4Network((base, prefix), strict=False)
    p = plan(str(network), "kd0")
    numbers = range(1, p.capacity + 1)
    addresses = {p.address(n) for n in numbers}
    assert len(addresses) == len({p.mac(n) for n in numbers}) == p.capacity
    taken = {network.network_address, network.broadcast_address, IPv4Address(p.bridge_address)}
    assert all(IPv4Address(a) in network and IPv4Address(a) not in taken for a in addresses)
    assert all(p.number_of_veth(p.veth(n)) == n for n in numbers)


def test_a_small_subnet_has_as_many_slots_as_addresses_are_left() -> None:
    p = plan("10.1.2.0/29", "kd0")
    assert p.capacity == 5
    assert p.address(5) == "10.1.2.6"


@pytest.mark.parametrize("number", [0, -1, 6])
def test_a_number_outside_the_plan_is_a_bug(number: int) -> None:
    p = plan("10.1.2.0/29", "kd0")
    for question in (p.address, p.mac, p.veth):
        with pytest.raises(Bug):
            question(number)


@pytest.mark.parametrize("name", ["kd0", "eth0", "kd", "kd01", "kdx", "kd6", "lo", "kd-1", "kd٣"])
def test_names_that_are_not_ours_have_no_number(name: str) -> None:
    assert plan("10.1.2.0/29", "kd0").number_of_veth(name) is None


@pytest.mark.parametrize(
    ("subnet", "bridge", "field"),
    [
        ("172.30.0.1/16", "kd0", "network.subnet"),
        ("fd00::/64", "kd0", "network.subnet"),
        ("not a net", "kd0", "network.subnet"),
        ("10.0.0.0/30", "kd0", "network.subnet"),
        ("10.0.0.0/24", "kd7", "network.bridge"),
        ("10.0.0.0/24", "a-name-of-16-chr", "network.bridge"),
    ],
)
def test_a_wrong_plan_is_refused_with_its_field(subnet: str, bridge: str, field: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        plan(subnet, bridge)
    assert [p.field for p in caught.value.problems] == [field]
