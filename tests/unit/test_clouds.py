"""The addresses at which clouds tell a machine about itself: a table, each row closed."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest

from agent.core import clouds
from agent.core.addresses import plan
from agent.network import egress

# What a large cloud's machine can ask about itself, and where (each cloud's own documentation).
ASKED = {
    "AWS": "169.254.169.254",
    "AWS, tasks of ECS": "169.254.170.2",
    "AWS, pods of EKS": "169.254.170.23",
    "Google": "169.254.169.254",
    "Azure": "169.254.169.254",
    "Azure's host agent": "168.63.129.16",
    "Alibaba": "100.100.100.200",
    "Tencent": "169.254.0.23",
    "Huawei": "169.254.169.254",
    "Volcengine": "100.96.0.96",
    "UCloud": "100.80.80.80",
    "Oracle": "169.254.169.254",
    "Oracle Classic": "192.0.0.192",
    "IBM": "169.254.169.254",
    "OpenStack": "169.254.169.254",
    "DigitalOcean": "169.254.169.254",
    "Hetzner": "169.254.169.254",
    "Scaleway": "169.254.42.42",
    "Linode": "169.254.169.254",
    "Vultr": "169.254.169.254",
}


@pytest.mark.parametrize(("cloud", "address"), ASKED.items(), ids=ASKED)
def test_metadata_of_a_cloud_answers_no_function(cloud: str, address: str) -> None:
    networks = [IPv4Network(network) for network in egress.never()]
    assert any(IPv4Address(address) in network for network in networks), cloud


@pytest.mark.parametrize("row", clouds.METADATA, ids=lambda row: row.address)
def test_each_row_says_whose_it_is_and_how_we_know(row: clouds.Metadata) -> None:
    assert str(IPv4Address(row.address)) == row.address
    assert row.clouds
    assert row.source


def test_no_address_stands_in_the_table_twice() -> None:
    listed = [row.address for row in clouds.METADATA]
    assert len(set(listed)) == len(listed)


# Alibaba's resolvers, its package mirror's network, and Tencent's resolver: no metadata.
@pytest.mark.parametrize("address", ["100.100.2.136", "100.100.2.138", "183.60.83.19", "8.8.8.8"])
def test_what_is_no_metadata_stays_open(address: str) -> None:
    networks = [IPv4Network(network) for network in egress.never()]
    assert not any(IPv4Address(address) in network for network in networks)


def test_what_the_operator_denies_is_refused_before_any_list_of_a_function_is_asked() -> None:
    text = egress.ruleset(plan("10.9.0.0/24", "fn0"), ["10.0.0.0/8", "10.1.0.0/16", "8.8.8.8"])
    outward = text.partition("chain outward")[2]
    dns, refused, listed = (
        outward.index(part) for part in ("10.0.2.3 udp", "10.0.0.0/8", "@allowed")
    )
    assert dns < refused < listed
    assert "8.8.8.8/32" in outward
    assert "10.1.0.0/16" not in outward, "overlapping members of a set are an error of the kernel's"
