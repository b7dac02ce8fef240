"""Another machine, as far as functions can tell: a namespace behind a veth."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# TEST-NET-3 and a benchmark network: nobody's real addresses.
OUTSIDE_HOST_SIDE = "198.18.77.1"
OUTSIDE = "198.18.77.2"
FAR_OUTSIDE = "203.0.113.77"


@contextmanager
def other_machine(*more: str) -> Iterator[int]:
    """Serve TCP there, at addresses that are nobody's and `more`; yields the port."""
    serve = (
        "import http.server,sys;"
        "h=http.server.ThreadingHTTPServer(('0.0.0.0',0),http.server.SimpleHTTPRequestHandler);"
        "print(h.server_port,flush=True);h.serve_forever()"
    )
    process = subprocess.Popen(
        ["unshare", "--net", sys.executable, "-c", serve],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/usr/share/doc",
        text=True,
    )
    device = f"kdt{os.getpid() % 100000}"
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        there = ["nsenter", f"--net=/proc/{process.pid}/ns/net", "ip"]
        for command in (
            [
                "ip",
                "link",
                "add",
                device,
                "type",
                "veth",
                "peer",
                "eth0",
                "netns",
                str(process.pid),
            ],
            ["ip", "address", "add", f"{OUTSIDE_HOST_SIDE}/30", "dev", device],
            ["ip", "link", "set", device, "up"],
            [*there, "address", "add", f"{OUTSIDE}/30", "dev", "eth0"],
            [*there, "link", "set", "eth0", "up"],
            [*there, "route", "add", "default", "via", OUTSIDE_HOST_SIDE],
        ):
            subprocess.run(command, check=True)
        far = (FAR_OUTSIDE, *more)
        for address in far:
            subprocess.run([*there, "address", "add", f"{address}/32", "dev", "eth0"], check=True)
            subprocess.run(["ip", "route", "add", f"{address}/32", "via", OUTSIDE], check=True)
        for address in (OUTSIDE, *far):
            socket.create_connection((address, port), 2).close()
        yield port
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
        subprocess.run(["ip", "link", "delete", device], check=False, capture_output=True)
