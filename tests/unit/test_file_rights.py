"""Capabilities on files: which of them an instance cannot have."""

from __future__ import annotations

import struct

import pytest

from agent.core.file_rights import out_of_reach
from agent.core.oci import CAPABILITIES


def value(*bits: int, effective: bool = True, inheritable: int = 0) -> bytes:
    permitted = sum(1 << bit for bit in bits)
    low, high = permitted & 0xFFFFFFFF, permitted >> 32
    return struct.pack("<IIIII", 0x02000000 | effective, low, inheritable, high, 0)


@pytest.mark.parametrize(
    ("attribute", "found"),
    [
        (value(10), ()),  # NET_BIND_SERVICE
        (value(13, 10), ()),
        (value(21), ("CAP_SYS_ADMIN",)),
        (value(12, 13), ("CAP_NET_ADMIN",)),
        (value(39, 40), ("CAP_BPF", "CAP_CHECKPOINT_RESTORE")),
        (value(21) + bytes(4), ("CAP_SYS_ADMIN",)),  # revision 3: a root id follows
        (value(21, effective=False), ()),
        (value(inheritable=1 << 21), ()),
        (b"", ()),
        (b"\1\0\0\2", ()),
    ],
)
def test_what_is_out_of_reach(attribute, found):
    assert out_of_reach(attribute, CAPABILITIES) == found
