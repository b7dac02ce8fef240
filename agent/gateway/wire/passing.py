"""Connections of callers on their way from one worker to the next.

A worker that has handed over gives away every connection that waits for no instance's answer: idle
ones, and those whose request has reached no instance yet, together with the bytes that were read of
them. The descriptor travels over a socket pair that the supervisor holds, so that it is safe there
while no worker reads. The caller notices nothing.

Message: one line of JSON, then the bytes read so far, in the message itself or, if they are many,
in a memory file that comes as a second descriptor (unix(7), memfd_create(2)).
"""

from __future__ import annotations

import json
import logging
import os
import socket
from dataclasses import dataclass
from typing import Final

from agent.gateway.wire.dechunk import Dechunker
from agent.gateway.wire.head import RequestHead
from agent.gateway.wire.http1 import LAST_CHUNK, chunk

log = logging.getLogger(__name__)

INLINE_BYTES: Final = 32768
"""A message up to here fits into a socket's buffer together with many others (socket(7))."""
MESSAGE_BYTES: Final = INLINE_BYTES + 4096
TAKEN_AT_ONCE: Final = 32
"""Connections taken over in one turn of the loop."""


@dataclass(frozen=True, slots=True)
class Passed:
    """A caller's connection, what was read of it, and how long its request has waited, seconds."""

    sock: socket.socket
    data: bytes
    waited_s: float


def send(passing: socket.socket, connection: socket.socket, data: bytes, waited_s: float) -> bool:
    """Give a connection away; False when there is no room now. Close our side of it after."""
    line = json.dumps({"waited_s": round(waited_s, 3)}).encode() + b"\n"
    descriptors = [os.dup(connection.fileno())]
    try:
        if len(data) > INLINE_BYTES:
            descriptors.append(os.memfd_create("kindling-request", os.MFD_CLOEXEC))
            with os.fdopen(os.dup(descriptors[1]), "wb") as file:
                file.write(data)
            data = b""
        socket.send_fds(passing, [line + data], descriptors, socket.MSG_DONTWAIT)
    except OSError as error:
        if not isinstance(error, BlockingIOError):
            log.warning("a connection is not passed on: %s", error)
        return False
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return True


def receive(passing: socket.socket) -> Passed | None:
    """Take one connection over; None when there is none. Raises ValueError for junk."""
    try:
        message, descriptors, _, _ = socket.recv_fds(
            passing, MESSAGE_BYTES, 2, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        )
    except BlockingIOError:
        return None
    try:
        line, _, data = message.partition(b"\n")
        waited_s = float(json.loads(line)["waited_s"])
        if len(descriptors) > 1:
            size = os.fstat(descriptors[1]).st_size
            data = os.pread(descriptors[1], size, 0)
        sock = socket.socket(fileno=os.dup(descriptors[0]))
    except (LookupError, TypeError, ValueError, OSError) as error:
        raise ValueError(f"no connection was passed on: {error}") from error
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    sock.setblocking(False)
    return Passed(sock, data, waited_s)


def as_sent(
    head: RequestHead, body: list[bytes], dechunker: Dechunker | None, asked: bool
) -> bytes:
    """Return a request as its caller has sent it so far: the head, and `body` framed as it came.

    `asked` says that the caller was told to go on (100 Continue): it must not be told twice.
    """
    version = b"1.0" if head.old else b"1.1"
    lines = [b"%b %b HTTP/%b\r\n" % (head.method, head.target, version)]
    for name, value in head.headers:
        if not (asked and name.lower() == b"expect"):
            lines.append(b"%b: %b\r\n" % (name, value))
    lines.append(b"\r\n")
    data = b"".join(body)
    if dechunker is None:
        lines.append(data)
    elif dechunker.done:
        lines += [chunk(data) if data else b"", LAST_CHUNK]
    else:
        lines.append(dechunker.restored(data))
    return b"".join(lines)
