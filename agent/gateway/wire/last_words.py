"""What an instance said before its connection broke, and nobody has read yet.

A server that answers early and closes with our body unread resets the connection (RFC 9112 section
9.6), and a write that meets the reset ends it for us before its answer is read. The answer is in
the socket all the same: Linux drops what is to be sent on a reset, not what has come. `upstream.py`
asks while its transport still holds the socket.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Final

PIECE_BYTES: Final = 262144
LAST_BYTES: Final = 16 << 20
"""More than a socket's buffer holds (tcp_rmem, tcp(7): 6 MiB at most unless a host says more)."""


def last_words(sock: socket.socket) -> Iterator[bytes]:
    """Read what a non-blocking socket still holds, piece by piece, and wait for nothing."""
    read_bytes = 0
    while read_bytes < LAST_BYTES:
        try:
            piece = sock.recv(PIECE_BYTES)
        except OSError:  # no more of it, by EAGAIN or by the reset itself
            return
        if not piece:
            return
        read_bytes += len(piece)
        yield piece
