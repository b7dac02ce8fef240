"""Small messages between the processes of the house, in systemd's notify protocol.

`supervise` tells `run` through a datagram socket in the run directory (descriptors do not survive
rootlesskit reliably, a path does); `run` passes what systemd should know on to NOTIFY_SOCKET.
Sending never blocks and never fails the sender. Log lines are made here too.
"""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

READY = "READY=1"
# `supervise` obeys signals from now on; until then they would be lost on the way, or end it.
LISTENING = "LISTENING=1"
# `supervise` asks `run` for a reload, because somebody asked the worker for one.
RELOAD = "RELOAD=1"
# A reload has succeeded: the configuration on disk is the one in force.
RELOADED = "RELOADED=1"
# Nothing we send is longer; a longer datagram is cut.
_MAX_BYTES = 4096


def say(who: str, sentence: str) -> None:
    """Write one sentence to stderr with the time and the speaker."""
    stamp = datetime.now(UTC).astimezone().isoformat(timespec="milliseconds")
    with suppress(OSError, ValueError):
        sys.stderr.write(f"{stamp} {who}: {sentence}\n")
        sys.stderr.flush()


def listen(path: Path) -> socket.socket:
    """Open the datagram socket of `run`, for the owner only; replaces a stale one."""
    path.unlink(missing_ok=True)
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    before = os.umask(0o177)
    try:
        receiver.bind(str(path))
    except BaseException:
        receiver.close()
        raise
    finally:
        os.umask(before)
    return receiver


def receive(receiver: socket.socket) -> list[str]:
    """Return all lines that have arrived."""
    lines: list[str] = []
    with suppress(BlockingIOError):
        while True:
            lines += receiver.recv(_MAX_BYTES).decode("utf-8", "replace").split("\n")
    return [line for line in lines if line]


def send(path: str, *lines: str) -> None:
    """Send lines to a datagram socket; a receiver that is gone or full is not our failure.

    A leading "@" means the abstract namespace, as in NOTIFY_SOCKET (sd_notify(3)).
    """
    if not path:
        return
    target = f"\0{path[1:]}" if path.startswith("@") else path
    with (
        suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender,
    ):
        sender.sendto("\n".join(lines).encode()[:_MAX_BYTES], target)
