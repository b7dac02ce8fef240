"""Speaks netlink: packs messages, sends them in batches, reads acknowledgements and dumps.

Knows the framing only (netlink(7)); what is said stands in `rtnetlink`, `conntrack` and `sockets`.
A socket belongs to the network namespace of the thread that made it, for ever. Blocking, with a
bound on every wait: used on the network thread, never on the loop.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

ROUTE = 0
SOCK_DIAG = 4
NETFILTER = 12

REQUEST, ACK, DUMP = 0x1, 0x4, 0x300
CREATE, EXCLUDE, REPLACE = 0x400, 0x200, 0x100
_DUMP_INTERRUPTED = 0x10
_ERROR, _DONE = 2, 3
_SOL_NETLINK, _EXT_ACK, _CAP_ACK, _STRICT_CHECK = 270, 11, 10, 12
_NESTED = 0x8000
_EXT_ACK_TEXT = 1

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_RECEIVE_BYTES = 1 << 16
# The kernel answers at once; only a broken kernel is slower than this.
_TIMEOUT_S = 5.0
_DUMP_TRIES = 5


class NetlinkError(OSError):
    """The kernel refused a message; `errno` says why, the text adds what the kernel said."""


@dataclass(frozen=True, slots=True)
class Message:
    """One request without its netlink header; `flags` come on top of REQUEST."""

    kind: int
    body: bytes
    flags: int = 0
    what: str = ""
    """What it is about, for the error text."""


def blob(kind: int, value: bytes) -> bytes:
    """Return one attribute: length, type, value, padding to four bytes."""
    size = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(size, kind) + value + bytes(-size % 4)


def text(kind: int, value: str) -> bytes:
    """Return an attribute that holds a NUL-terminated string."""
    return blob(kind, value.encode() + b"\0")


def u8(kind: int, value: int) -> bytes:
    """Return an attribute that holds one byte."""
    return blob(kind, struct.pack("=B", value))


def u32(kind: int, value: int) -> bytes:
    """Return an attribute that holds 32 bits in the host's order."""
    return blob(kind, struct.pack("=I", value))


def nest(kind: int, *parts: bytes) -> bytes:
    """Return an attribute that holds attributes."""
    return blob(kind | _NESTED, b"".join(parts))


def attributes(data: bytes) -> dict[int, bytes]:
    """Return the attributes in `data` by type, flags of the type removed; the last one wins."""
    found: dict[int, bytes] = {}
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        size, kind = _ATTRIBUTE.unpack_from(data, offset)
        if size < _ATTRIBUTE.size:
            break
        found[kind & 0x3FFF] = data[offset + _ATTRIBUTE.size : offset + size]
        offset += size + (-size % 4)
    return found


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
            self._sock.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
            self._sock.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
            self._sock.setsockopt(_SOL_NETLINK, _STRICT_CHECK, 1)
            self._sock.bind((0, groups))
        except BaseException:
            self._sock.close()
            raise
        self._sequence = 0

    def __enter__(self) -> Netlink:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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

    def send(self, *messages: Message) -> None:
        """Send messages as one batch and wait until the kernel has done each.

        Raises NetlinkError for the first that failed; the others have been done nevertheless.
        """
        if not messages:
            return
        first = self._sequence + 1
        self._sock.send(b"".join(self._pack(message, ACK) for message in messages))
        failed: NetlinkError | None = None
        waiting = len(messages)
        while waiting:
            for kind, _, sequence, body in _split(self._sock.recv(_RECEIVE_BYTES)):
                if kind != _ERROR or sequence < first:
                    continue
                waiting -= 1
                error = _error(body, messages[sequence - first])
                failed = failed or error
        if failed is not None:
            raise failed

    def dump(self, message: Message) -> list[bytes]:
        """Return every object the kernel lists for a request, each without its netlink header.

        A list that changed while it was read is read again. Raises NetlinkError.
        """
        for _ in range(_DUMP_TRIES):
            found, whole = self._dump_once(message)
            if whole:
                return found
        raise NetlinkError(11, f"{message.what}: the list keeps changing while it is read")

    def _dump_once(self, message: Message) -> tuple[list[bytes], bool]:
        self._sock.send(self._pack(message, DUMP))
        found: list[bytes] = []
        whole = True
        while True:
            for kind, flags, sequence, body in _split(self._sock.recv(_RECEIVE_BYTES)):
                if sequence != self._sequence:
                    continue
                whole = whole and not flags & _DUMP_INTERRUPTED
                if kind == _ERROR or (kind == _DONE and body[:4] != b"\0\0\0\0"):
                    error = _error(body, message)
                    if error is not None:
                        raise error
                if kind in {_DONE, _ERROR}:
                    return found, whole
                found.append(body)

    def _pack(self, message: Message, flags: int) -> bytes:
        self._sequence += 1
        size = _HEADER.size + len(message.body)
        header = _HEADER.pack(
            size, message.kind, REQUEST | flags | message.flags, self._sequence, 0
        )
        return header + message.body + bytes(-size % 4)


def _split(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    offset = 0
    while offset + _HEADER.size <= len(data):
        size, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if size < _HEADER.size:
            return
        yield kind, flags, sequence, data[offset + _HEADER.size : offset + size]
        offset += size + (-size % 4)


def _error(body: bytes, message: Message) -> NetlinkError | None:
    (code,) = struct.unpack_from("=i", body)
    if code == 0:
        return None
    # int error, then the header of the refused message (NETLINK_CAP_ACK), then what it says
    said = attributes(body[4 + _HEADER.size :]).get(_EXT_ACK_TEXT, b"").rstrip(b"\0").decode()
    reason = os.strerror(-code) + (f" ({said})" if said else "")
    return NetlinkError(-code, f"{message.what or f'netlink message {message.kind}'}: {reason}")
