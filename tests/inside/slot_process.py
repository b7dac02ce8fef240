"""Stands for a function: a process in a network slot and in a user namespace of its own.

Serves HTTP on port 9000 and does what it is told on standard input, one JSON line after another:
try to reach addresses, change the network, leave sockets behind. Standard library only.
"""

from __future__ import annotations

import ctypes
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

TIMEOUT_S = 0.7
NEW_USER, NEW_NET = 0x10000000, 0x40000000
libc = ctypes.CDLL(None, use_errno=True)
kept: list[socket.socket] = []


class Hello(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = f"hello {self.client_address[0]}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def enter(path: str) -> None:
    """Join the slot by the path a runtime would use, then give up all rights over it."""
    fd = os.open(path, os.O_RDONLY)
    assert libc.setns(fd, NEW_NET) == 0, os.strerror(ctypes.get_errno())
    os.close(fd)
    assert libc.unshare(NEW_USER) == 0, os.strerror(ctypes.get_errno())
    for file, line in (("setgroups", "deny"), ("uid_map", "0 0 1"), ("gid_map", "0 0 1")):
        Path("/proc/self", file).write_text(line)


def tcp(host: str, port: int) -> str:
    try:
        with socket.create_connection((host, port), TIMEOUT_S):
            return "open"
    except TimeoutError:
        return "silent"
    except OSError as error:
        return os.strerror(error.errno or 0)


def udp(host: str, port: int, payload: str = "00") -> str:
    """Send a datagram and say what came back: data, an error, or nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(TIMEOUT_S)
        sock.connect((host, port))
        try:
            sock.send(bytes.fromhex(payload))
            return "answer" if sock.recv(4096) else "empty"
        except TimeoutError:
            return "silent"
        except OSError as error:
            return os.strerror(error.errno or 0)


def udp_lite(host: str, port: int) -> str:
    """Send a datagram of a protocol that has ports and is neither TCP nor UDP (RFC 3828)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_UDPLITE) as sock:
        sock.sendto(b"kindling", (host, port))
    return "sent"


def get(host: str, port: int) -> str:
    try:
        with socket.create_connection((host, port), TIMEOUT_S) as sock:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            data = b""
            while chunk := sock.recv(4096):
                data += chunk
            return data.decode().rpartition("\r\n\r\n")[2]
    except TimeoutError:
        return "silent"
    except OSError as error:
        return os.strerror(error.errno or 0)


def shell(command: str) -> list[Any]:
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    return [done.returncode, (done.stdout + done.stderr).strip()]


def hang_up_first(port: int) -> str:
    """Serve one connection and close it before the client does: TIME_WAIT stays on our side."""
    listener = socket.create_server(("0.0.0.0", port))
    kept.append(listener)

    def serve() -> None:
        connection, _ = listener.accept()
        connection.recv(100)
        connection.close()

    threading.Thread(target=serve, daemon=True).start()
    return "listening"


def ping(host: str) -> str:
    """An ICMP echo through the unprivileged ping socket."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as sock:
        sock.settimeout(TIMEOUT_S)
        try:
            sock.sendto(b"\x08\0\0\0\0\0\0\x01kindling", (host, 0))
            return "answer" if sock.recv(200) else "empty"
        except TimeoutError:
            return "silent"
        except OSError as error:
            return os.strerror(error.errno or 0)


COMMANDS: dict[str, Callable[..., object]] = {
    "tcp": tcp,
    "udp": udp,
    "udp_lite": udp_lite,
    "get": get,
    "shell": shell,
    "hang_up_first": hang_up_first,
    "ping": ping,
}


def main() -> None:
    enter(sys.argv[1])
    server = http.server.ThreadingHTTPServer(("0.0.0.0", 9000), Hello)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        name, *args = json.loads(line)
        print(json.dumps(COMMANDS[name](*args)), flush=True)


if __name__ == "__main__":
    main()
