"""Whether an instance has read what was sent on a connection that it closed: the kernel knows.

A connection at rest may be closed before its loop has been told, and a request may cross the close
on its way. Only a request that surely was not read may be made again, if making it twice differs
from making it once (RFC 9110 section 9.2.2).
"""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
from typing import Final

TCP_CLOSE: Final = 7
"""A connection that was reset (include/net/tcp_states.h)."""
_INT: Final = struct.Struct("i")


def is_open(sock: socket.socket) -> bool:
    """Say whether a non-blocking connection at rest is neither closed by its peer nor talks."""
    try:
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def was_unread(sock: socket.socket, request_bytes: int) -> bool:
    """Say whether a peer that closed before it answered has read nothing of the last request.

    Called when the peer's FIN has come, and true only if a reset came behind it while none of the
    request was acknowledged: the peer's kernel had no byte of it when the FIN was made, and from
    then on answers with a reset and gives nothing to the program (tcp_rcv_state_process()). A FIN
    that was made after a byte was read acknowledges that byte. False where it cannot be told.
    """
    try:
        state = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(_INT.size))
    except OSError:
        return False
    unacknowledged: int = _INT.unpack(answer)[0]
    return state == TCP_CLOSE and unacknowledged == request_bytes
