"""Carries netlink messages: batches and their acknowledgements, lists, events of the host.

pyroute2 packs the messages and reads the kernel's (`rtnetlink`, `conntrack`, `sockets`). Its own
sockets are not used: each brings an event loop with three more descriptors, waits without a
deadline, and costs a fifth of a slot to open (DECISIONS 37). A socket belongs to the network
namespace of the thread that made it, for ever. Blocking, with a bound on every wait: used on the
network thread, never on the loop, except to listen.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

from pyroute2.netlink import (
    NETLINK_EXT_ACK,
    NETLINK_GET_STRICT_CHK,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    SOL_NETLINK,
    nlmsg,
    nlmsgerr,
)

# Not among pyroute2's names: a refusal repeats the request's header only (linux/netlink.h).
_CAP_ACK = 10
# length, type, flags, sequence number, port (struct nlmsghdr)
_HEADER = struct.Struct("=IHHII")
_FLAGS_SEQUENCE = struct.Struct("=HI")
_FLAGS_AT = 6
_CODE = struct.Struct("=i")
_RECEIVE_BYTES = 1 << 16
# The kernel answers at once; only a broken kernel is slower than this.
_TIMEOUT_S = 5.0
_DUMP_TRIES = 5


class NetlinkError(OSError):
    """The kernel refused a message; `errno` says why, the text adds what the kernel said."""


class _Refusal(nlmsg):  # type: ignore[misc]  # pyroute2 has no types
    """An answer that repeats a header, which pyroute2's own (nlmsgerr) reads as attributes."""

    fields = (("error", "i"), ("request", "16s"))
    nla_map = nlmsgerr.nla_map


class Netlink:
    """One netlink socket in the namespace of the thread that makes it.

    With `groups` it only listens: it never waits, and `drain` empties it.
    """

    def __init__(self, protocol: int, groups: int = 0) -> None:
        self._sock = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol
        )
        try:
            self._sock.settimeout(0 if groups else _TIMEOUT_S)
            for option in (NETLINK_EXT_ACK, _CAP_ACK, NETLINK_GET_STRICT_CHK):
                self._sock.setsockopt(SOL_NETLINK, option, 1)
            self._sock.bind((0, groups))
        except BaseException:
            self._sock.close()
            raise
        self._sequence = 0

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; safe to call twice."""
        self._sock.close()

    def fileno(self) -> int:
        """Return the descriptor, for a loop that watches multicast groups."""
        return self._sock.fileno()

    def drain(self) -> bool:
        """Throw away what multicast groups have sent; say whether there was anything."""
        heard = False
        while True:
            try:
                self._sock.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return heard
            except OSError:  # ENOBUFS: events were lost, which is news too
                heard = True
                continue
            heard = True

    def send(self, what: str, requests: bytes) -> None:
        """Send packed requests as one batch and wait until the kernel has done each.

        `what` they are about is for the error. Raises NetlinkError for the first that failed; the
        others have been done nevertheless.
        """
        batch = bytearray(requests)
        first = self._sequence + 1
        headers = list(_headers(batch))
        for at, flags in headers:
            # The kernel works in order and reports refusals unasked: the last one's is enough.
            wanted = NLM_F_ACK if at == headers[-1][0] else 0
            self._number(batch, at, flags & ~NLM_F_ACK | wanted)
        self._sock.send(batch)
        failed: NetlinkError | None = None
        answered = first - 1
        while answered < self._sequence:
            for kind, _, sequence, message in self._receive():
                if kind == NLMSG_ERROR and sequence >= first:
                    failed = failed or _refused(what, message)
                    answered = sequence
        if failed is not None:
            raise failed

    def dump(
        self, what: str, request: bytes, answer: type[Any], wanted: Callable[[bytes], bool] = bool
    ) -> list[Any]:
        """Return every object the kernel lists for a request, read as `answer`.

        Objects whose bytes are not `wanted` are left out unread: to read one takes 50 us. A list
        that changed while it was read is read again. Raises NetlinkError.
        """
        for _ in range(_DUMP_TRIES):
            found, whole = self._dump_once(what, bytearray(request))
            if whole:
                return [_read(answer, message) for message in found if wanted(message)]
        raise NetlinkError(errno.EAGAIN, f"{what}: the list keeps changing while it is read")

    def _dump_once(self, what: str, request: bytearray) -> tuple[list[bytes], bool]:
        self._number(request, 0, NLM_F_REQUEST | NLM_F_DUMP)
        self._sock.send(request)
        found: list[bytes] = []
        whole = True
        while True:
            for kind, flags, sequence, message in self._receive():
                if sequence != self._sequence:
                    continue
                whole = whole and not flags & NLM_F_DUMP_INTR
                if kind in {NLMSG_DONE, NLMSG_ERROR}:
                    failed = _refused(what, message)
                    if failed is not None:
                        raise failed
                    return found, whole
                found.append(message)

    def _number(self, batch: bytearray, at: int, flags: int) -> None:
        self._sequence += 1
        _FLAGS_SEQUENCE.pack_into(batch, at + _FLAGS_AT, flags, self._sequence)

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Give type, flags, sequence number and bytes of each message of the next datagram."""
        data = self._sock.recv(_RECEIVE_BYTES)
        for at, flags in _headers(data):
            size, kind, _, sequence, _ = _HEADER.unpack_from(data, at)
            yield kind, flags, sequence, data[at : at + size]


def _headers(data: bytes | bytearray) -> Iterator[tuple[int, int]]:
    """Give where each message starts, and its flags."""
    at = 0
    while at + _HEADER.size <= len(data):
        size, _, flags, _, _ = _HEADER.unpack_from(data, at)
        if size < _HEADER.size:
            return
        yield at, flags
        at += size + (-size % 4)


def _read(answer: type[Any], message: bytes) -> Any:
    found = answer(message)
    found.decode()
    return found


def _refused(what: str, message: bytes) -> NetlinkError | None:
    (code,) = _CODE.unpack_from(message, _HEADER.size)
    if code == 0:
        return None
    said = None
    if len(message) >= _HEADER.size + _CODE.size + _HEADER.size:
        said = _read(_Refusal, message).get_attr("NLMSGERR_ATTR_MSG")
    return NetlinkError(-code, f"{what}: {os.strerror(-code)}" + (f" ({said})" if said else ""))
