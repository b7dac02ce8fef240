"""What the network room writes for others to read: nft elements and resolv.conf."""

from __future__ import annotations

import pytest

from agent.core.addresses import plan
from agent.errors import InvalidSpec
from agent.network import egress, resolv


def test_the_default_egress_is_in_no_set() -> None:
    assert egress.members("add", "172.30.0.2", "all") == ""


@pytest.mark.parametrize("rule", ["none", (), []])
def test_nothing_allowed_means_closed(rule: egress.Egress) -> None:
    expected = "add element inet kindling closed { 172.30.0.2 }\n"
    assert egress.members("add", "172.30.0.2", rule) == expected


def test_overlapping_and_adjacent_networks_are_merged() -> None:
    text = egress.members("add", "172.30.0.2", ["10.0.0.0/8", "10.1.0.0/16", "11.0.0.0/8"])
    assert "allowed { 172.30.0.2 . 10.0.0.0/7 }" in text
    assert "listed { 172.30.0.2 }" in text


def test_all_wrong_networks_are_named_at_once() -> None:
    with pytest.raises(InvalidSpec) as caught:
        egress.members("add", "172.30.0.2", ["10.0.0.1/8", "1.1.1.1", "fd00::/8", "x"])
    fields = [problem.field for problem in caught.value.problems]
    assert fields == ["egress[0]", "egress[2]", "egress[3]"]


def test_restoring_the_rules_forgets_all_others_first() -> None:
    text = egress.all_members({"172.30.0.2": "none", "172.30.0.3": "all"})
    flushed = [line.split()[-1] for line in text.splitlines() if line.startswith("flush")]
    assert flushed == ["closed", "listed", "allowed"]
    assert text.endswith("add element inet kindling closed { 172.30.0.2 }\n")


def test_no_host_address_at_all_empties_the_set() -> None:
    assert egress.host_members([]) == "flush set inet kindling host\n"
    assert "host { 10.0.0.1/32, 127.0.0.0/8 }" in egress.host_members(
        ["127.0.0.0/8", "10.0.0.1/32"]
    )


def test_the_rules_speak_of_the_configured_bridge_and_subnet() -> None:
    text = egress.ruleset(plan("10.9.0.0/24", "fn0"))
    assert 'oifname "fn0" notrack' in text
    assert "ip daddr 10.9.0.1" in text
    assert "ip saddr 10.9.0.0/24 masquerade" in text
    assert "kd0" not in text


def test_resolv_conf_keeps_the_search_list_and_no_nameserver() -> None:
    host = (
        "# made by x\nnameserver 127.0.0.53\nsearch a.example  b.example\noptions edns0 ndots:2\n"
    )
    assert resolv.text(host, "10.0.2.3") == (
        "nameserver 10.0.2.3\nsearch a.example b.example\noptions edns0 ndots:2\n"
    )
