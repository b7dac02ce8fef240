"""Tracked connections the kernel does not let go; the kernel's own are in `test_network.py`."""

from __future__ import annotations

import errno
import socket

import pytest
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple, nfct_msg

from agent.network import conntrack
from agent.network.netlink import Netlink, NetlinkError

FUNCTION, WORLD = "172.30.0.2", "198.18.77.2"


class Kernel(Netlink):
    """Lists rows and refuses to drop some of them."""

    def __init__(self, *protocols, refuses=(), why=errno.EINVAL):
        self.rows = [row(protocol) for protocol in protocols]
        self.refuses, self.why = refuses, why
        self.asked = []

    def dump(self, what, request, answer, wanted=bool):
        assert all(wanted(bytes(message.data)) for message in self.rows)
        return self.rows

    def send(self, what, requests):
        message = nfct_msg(requests)
        message.decode()
        ends = message.get_attr("CTA_TUPLE_ORIG").get_attr("CTA_TUPLE_PROTO")
        protocol = ends.get_attr("CTA_PROTO_NUM")
        self.asked.append((protocol, ends.get_attr("CTA_PROTO_SRC_PORT")))
        if protocol in self.refuses:
            raise NetlinkError(self.why, what)


def row(protocol):
    ends = NFCTAttrTuple(saddr=FUNCTION, daddr=WORLD, proto=protocol, sport=4000, dport=9)
    packed = nfct_msg.create_from(tuple_orig=ends)
    packed.encode()
    message = nfct_msg(packed.data)
    message.decode()
    return message


@pytest.fixture(autouse=True)
def something_is_tracked(tmp_path, monkeypatch):
    (tmp_path / "count").write_text("3\n")
    monkeypatch.setattr(conntrack, "_COUNT", tmp_path / "count")


UDP_LITE, SCTP = 136, 132


def test_every_protocol_is_dropped_by_its_ports():
    kernel = Kernel(socket.IPPROTO_TCP, UDP_LITE, SCTP)
    assert conntrack.forget(kernel, [FUNCTION]) == 3
    assert kernel.asked == [(socket.IPPROTO_TCP, 4000), (UDP_LITE, 4000), (SCTP, 4000)]


def test_what_the_kernel_keeps_is_told_once_and_holds_up_no_other(caplog):
    kernel = Kernel(SCTP, socket.IPPROTO_UDP, SCTP, socket.IPPROTO_TCP, refuses={SCTP})
    assert conntrack.forget(kernel, [FUNCTION]) == 2
    assert len(kernel.asked) == 4
    (told,) = caplog.messages
    assert told.startswith("2 tracked connections stay")
    assert f"protocol {SCTP} from {FUNCTION} to {WORLD}" in told


def test_what_ended_by_itself_meanwhile_is_nobodys_trouble(caplog):
    kernel = Kernel(socket.IPPROTO_UDP, refuses={socket.IPPROTO_UDP}, why=errno.ENOENT)
    assert conntrack.forget(kernel, [FUNCTION]) == 0
    assert not caplog.messages
