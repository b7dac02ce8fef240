"""The one client of all cold benches: from a mark to the first byte of a reply, on a raw socket.

The same few lines measure Kindling and its peers, in the same process. A peer's mark is the start
of its command; it is asked again and again until something listens. Kindling's mark is the moment
the request is sent. Standard library only: it runs wherever the peers run.
"""

from __future__ import annotations

import socket
import time

PAUSE_S = 0.0002
REPLY_BYTES = 65536


class NoReply(Exception):
    """Nothing answered in time, or the answer was not 200."""


def request(path: str, host: str = "bench") -> bytes:
    """Return a GET that asks for the phases of a cold start."""
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\nX-Kindling-Trace: 1\r\n\r\n".encode()


def call(port: int, path: str, within_s: float) -> tuple[float, bytes]:
    """Send one request over a new connection.

    Returns the milliseconds from sending it to the first byte of the reply, and the reply.
    """
    deadline = time.perf_counter() + within_s
    with _connected(port, deadline) as sock:
        mark = time.perf_counter()
        return _ask(sock, path, mark, deadline)


def call_when_up(port: int, mark: float, within_s: float, path: str = "/") -> tuple[float, bytes]:
    """Send one request as soon as something listens.

    Returns the milliseconds from `mark` (time.perf_counter) to the first byte of the reply.
    """
    deadline = mark + within_s
    with _connected(port, deadline) as sock:
        return _ask(sock, path, mark, deadline)


def _ask(sock: socket.socket, path: str, mark: float, deadline: float) -> tuple[float, bytes]:
    sock.settimeout(max(0.001, deadline - time.perf_counter()))
    sock.sendall(request(path))
    first = sock.recv(1)
    took_ms = (time.perf_counter() - mark) * 1000
    if not first:
        raise NoReply("the connection was closed without a reply")
    reply = first + sock.recv(REPLY_BYTES)
    if not reply.startswith(b"HTTP/1.1 200"):
        raise NoReply(reply.decode("utf-8", "replace")[:2000])
    return took_ms, reply


def _connected(port: int, deadline: float) -> socket.socket:
    while True:
        sock = socket.socket()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            sock.connect(("127.0.0.1", port))
        except OSError as error:
            sock.close()
            if time.perf_counter() >= deadline:
                raise NoReply(f"nothing listens on port {port}: {error}") from error
            time.sleep(PAUSE_S)
        else:
            return sock


def phases(reply: bytes) -> dict[str, float]:
    """Return the milliseconds of each phase of a cold start from a reply's Server-Timing."""
    head = reply.partition(b"\r\n\r\n")[0].decode("latin-1")
    found: dict[str, float] = {}
    for line in head.split("\r\n"):
        name, _, value = line.partition(":")
        if name.lower() == "server-timing":
            for entry in value.split(","):
                metric, _, rest = entry.strip().partition(";dur=")
                if metric.startswith("start-") and rest:
                    found[metric.removeprefix("start-")] = float(rest)
    return found
