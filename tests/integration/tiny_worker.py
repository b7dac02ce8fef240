"""A worker for tests of the house: answers on the inherited sockets and obeys the signals.

Standard library only, so that a test of `supervise` tests nothing else. Every reply tells its pid.
It also leaves a shim-like orphan behind when asked to (POST /orphan), to see that it is found.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys


def main() -> None:
    doors = json.loads(os.environ["KINDLING_FDS"])
    wake, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno())
    signal.signal(signal.SIGTERM, lambda *_: None)
    selector = selectors.DefaultSelector()
    selector.register(wake, selectors.EVENT_READ)
    for name, descriptor in doors.items():
        if not name.startswith("passing"):
            selector.register(socket.socket(fileno=descriptor), selectors.EVENT_READ)
    tell, hear = (int(os.environ[f"KINDLING_{name}_FD"]) for name in ("TELL", "HEAR"))
    os.write(tell, b"PREPARED\n")
    assert os.read(hear, 100) == b"GO\n"
    os.write(tell, b"READY\n")
    selector.register(hear, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is wake:
                sys.exit(0)
            if key.fileobj == hear:
                os.write(tell, b"HANDED_OVER\n")
                sys.exit(0)
            assert isinstance(key.fileobj, socket.socket)
            answer(key.fileobj)


def answer(listener: socket.socket) -> None:
    try:
        client, _ = listener.accept()
    except BlockingIOError:
        return
    with client:
        client.settimeout(5)
        request = client.recv(4096)
        if b"/orphan" in request:
            subprocess.Popen(
                ["sleep", "1000"], start_new_session=True, stdin=-3, stdout=-3, stderr=-3
            )
        body = json.dumps({"pid": os.getpid(), "uid": os.getuid()}).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        client.sendall(head.encode() + body)


main()
