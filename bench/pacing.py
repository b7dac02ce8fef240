"""Callers who call at a pace, and how long each waited: `python -m bench.pacing` prints it as JSON.

A few kept connections call a warm function, one every few milliseconds each, as callers do who have
something else to do as well: what they wait beyond the usual is the worker's being busy. One more
asks for a function that is not there, which the worker answers within one turn of its loop: the
longest of these waits is how long the loop was held at most. Standard library only, one thread.
"""

from __future__ import annotations

import argparse
import gc
import json
import selectors
import socket
import time
from dataclasses import dataclass, field

PACE_S = 0.002
PROBE_PACE_S = 0.001
WARM_UP_S = 0.1
SPIN_S = 0.0002  # a selector may wake later than it was asked to
REPLY_BYTES = 65536


@dataclass(eq=False)
class Caller:
    """One connection. `due` is when it calls next, `sent` when it did last; 0 while it rests."""

    sock: socket.socket
    request: bytes
    status: bytes
    pace_s: float
    due: float
    sent: float = 0.0
    waited_ms: list[float] = field(default_factory=list)

    def call(self, now: float) -> None:
        """Send the next request."""
        self.due = now + self.pace_s
        self.sent = time.perf_counter()
        self.sock.sendall(self.request)

    def answered(self) -> None:
        """Take the reply: these are so small that they come whole."""
        reply = self.sock.recv(REPLY_BYTES)
        self.waited_ms.append((time.perf_counter() - self.sent) * 1000)
        self.sent = 0.0
        if not reply.startswith(b"HTTP/1.1 " + self.status):
            raise SystemExit(f"not {self.status.decode()}: {reply[:200]!r}")


def measure(port: int, path: str, seconds: float, connections: int) -> dict[str, list[float]]:
    """Call for so long; return the milliseconds that calls and probes have waited."""
    began = time.perf_counter()
    callers = [
        _caller(port, path, b"200", PACE_S, began + n * PACE_S / connections)
        for n in range(connections)
    ]
    probe = _caller(port, "/http/nobody-is-here/", b"404", PROBE_PACE_S, began)
    everyone = [*callers, probe]
    gc.disable()  # its pauses are not the worker's
    with selectors.DefaultSelector() as selector:
        for one in everyone:
            selector.register(one.sock, selectors.EVENT_READ, one)
        _run(selector, everyone, began + WARM_UP_S)
        for one in everyone:
            one.waited_ms.clear()
        _run(selector, everyone, began + WARM_UP_S + seconds)
    for one in everyone:
        one.sock.close()
    return {
        "calls": [waited for one in callers for waited in one.waited_ms],
        "probes": probe.waited_ms,
    }


def _caller(port: int, path: str, status: bytes, pace_s: float, due: float) -> Caller:
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    request = f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()
    return Caller(sock, request, status, pace_s, due)


def _run(selector: selectors.BaseSelector, everyone: list[Caller], until: float) -> None:
    """Call until then, and take the replies that are still to come."""
    while True:
        now = time.perf_counter()
        waiting = [one for one in everyone if one.sent]
        if now < until:
            for one in everyone:
                if not one.sent and one.due <= now:
                    one.call(now)
            rest = min((one.due for one in everyone if not one.sent), default=until) - now
        elif not waiting:
            return
        else:
            rest = 1.0
        for key, _ in selector.select(max(0.0, rest - SPIN_S)):
            key.data.answered()


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m bench.pacing", description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("path")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--connections", type=int, default=4)
    given = parser.parse_args()
    print(json.dumps(measure(given.port, given.path, given.seconds, given.connections)))


if __name__ == "__main__":
    main()
