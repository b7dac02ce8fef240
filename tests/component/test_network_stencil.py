"""A slot's requests, filled into the specimen's, are what pyroute2 would pack for the slot."""

from __future__ import annotations

from typing import Any

import pytest
from pyroute2.netlink.rtnl.marshal import MarshalRtnl
from pyroute2.netlink.rtnl.ndmsg import NTF_MASTER

from agent.core.addresses import AddressPlan, plan
from agent.network import stencil
from agent.network.stencil import Stencil


def read(requests: bytes) -> list[Any]:
    """Every request as plain values; names without their padding, no lengths, no numbers."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items() if k not in {"header", "value"}}
        if isinstance(value, list | tuple):
            return [plain(one) for one in value]
        return value.rstrip("\0") if isinstance(value, str) else value

    found = list(MarshalRtnl().parse(requests))
    return [(one["header"]["type"], one["header"]["flags"], plain(one.dump())) for one in found]


@pytest.mark.parametrize("number", [1, 9, 10, 100, 256, 1023])
@pytest.mark.parametrize("subnet", ["172.30.0.0/16", "10.0.0.0/8"])
def test_a_filled_slot_is_what_would_be_packed_for_it(
    monkeypatch: pytest.MonkeyPatch, subnet: str, number: int
) -> None:
    of: AddressPlan = plan(subnet, "kd0")
    filled = Stencil(of, mtu=1400, bridge=7)
    outside, inside = filled.outside(number, 77), filled.inside(number)
    # a specimen that is this very slot
    monkeypatch.setattr(stencil, "_NAME", of.veth(number))
    monkeypatch.setattr(stencil, "_INDEX", 10_000 + number)
    monkeypatch.setattr(stencil, "_FD", 77)
    monkeypatch.setattr(stencil, "_ADDRESS", of.address(number))
    monkeypatch.setattr(stencil, "_MAC", of.mac(number))
    slot = Stencil(of, mtu=1400, bridge=7)
    assert read(outside) == read(slot._outside)
    assert read(inside) == read(slot._inside)
    assert len(read(outside)) == 5
    assert len(read(inside)) == 6


def test_what_pyroute2_would_leave_out_is_said() -> None:
    """The peer's number, without which a kernel with fallback tunnels gives eth0 another one."""
    veth, _, _, forwarding, _ = read(Stencil(plan("10.0.0.0/8", "kd0"), 1400, 7).outside(5, 77))
    info = dict(veth[2]["attrs"])["IFLA_LINKINFO"]["attrs"]
    peer = dict(dict(info)["IFLA_INFO_DATA"]["attrs"])["VETH_INFO_PEER"]
    assert peer["index"] == stencil.ETH0
    assert dict(peer["attrs"])["IFLA_NET_NS_FD"] == 77
    assert forwarding[2]["flags"] == NTF_MASTER


def test_the_specimens_values_stand_where_they_are_expected_and_nowhere_else() -> None:
    made = Stencil(plan("172.30.0.0/16", "kd0"), mtu=1500, bridge=7)
    both = made._outside + made._inside
    values = [
        stencil._NAME.encode(),
        stencil._packed(stencil._INDEX),
        stencil._packed(stencil._FD),
        stencil._mac(stencil._MAC),
    ]
    assert [both.count(value) for value in values] == [1, 4, 1, 3]
