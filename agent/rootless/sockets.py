"""The listening sockets: opened once by the supervisor, inherited by every worker.

A worker may die at any time; callers then wait in the kernel's queue instead of being refused.
Opening and comparing only: who accepts on them is the worker's matter.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterable
from contextlib import suppress

from agent.errors import FailedPrecondition
from agent.rootless.settings import Listener

# Callers who may wait while a worker is replaced; the kernel cuts it at net.core.somaxconn.
BACKLOG = 4096
# struct sockaddr_un holds 108 bytes with the NUL (unix(7)).
_MAX_UNIX_PATH = 107

OpenSockets = dict[str, tuple[str, int]]
"""Listener's name to (address, descriptor)."""


def open_all(doors: Iterable[Listener], held: OpenSockets) -> OpenSockets:
    """Return the open descriptors of `doors`, those of `held` where the address is the same.

    Nothing of `held` is closed. Raises FailedPrecondition naming the address that is taken or
    wrong; nothing is open then that was not before.
    """
    opened: OpenSockets = {}
    try:
        for door in doors:
            if held.get(door.name, ("",))[0] == door.address:
                opened[door.name] = held[door.name]
            else:
                opened[door.name] = (door.address, open_door(door).detach())
    except BaseException:
        close_others(opened, held)
        raise
    return opened


def close_others(held: OpenSockets, kept: OpenSockets) -> None:
    """Close what is in `held` and not in `kept`; the paths of unix sockets go as well."""
    descriptors = {descriptor for _, descriptor in kept.values()}
    for _, descriptor in held.values():
        if descriptor not in descriptors:
            os.close(descriptor)
    unlink(paths_left(held, kept))


def paths_left(held: OpenSockets, kept: OpenSockets) -> list[str]:
    """Return the paths of unix sockets in `held` that `kept` has none at."""
    addresses = {address for address, _ in kept.values()}
    return [at for at, _ in held.values() if at.startswith("/") and at not in addresses]


def unlink(paths: Iterable[str]) -> None:
    """Remove these sockets' paths, if they are there."""
    for path in paths:
        with suppress(FileNotFoundError):
            os.unlink(path)


def passing_pair() -> OpenSockets:
    """Return the two ends over which workers pass connections on (agent/gateway/wire/passing.py).

    Held here, so that what is on its way when nobody reads is not lost.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    theirs.setblocking(False)
    return {"passing_in": ("", ours.detach()), "passing_out": ("", theirs.detach())}


def open_door(door: Listener) -> socket.socket:
    """Open one listening socket, non-blocking and close-on-exec."""
    try:
        return _open_unix(door) if door.is_unix else _open_tcp(door)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise FailedPrecondition(
            f"cannot listen on {door.address} ({door.name}): {reason}; "
            f"'ss -ltnp' shows who does, the configuration can name another"
        ) from error


def parse(address: str) -> tuple[str, int]:
    """Split "host:port" or "[v6]:port"; raises ValueError saying what is wrong."""
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{address!r} is not host:port")
    return host.removeprefix("[").removesuffix("]") or "0.0.0.0", int(port)


def _open_tcp(door: Listener) -> socket.socket:
    host, port = parse(door.address)
    # Numeric addresses only: a name would need DNS, and may change between two starts.
    family, kind, protocol, _, target = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST | socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(target)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _open_unix(door: Listener) -> socket.socket:
    if len(door.address.encode()) > _MAX_UNIX_PATH:
        raise ValueError(f"the path is longer than {_MAX_UNIX_PATH} bytes")
    with suppress(FileNotFoundError):
        # We hold the run directory's lock: a socket there is of an agent that is gone.
        if stat.S_ISSOCK(os.lstat(door.address).st_mode):
            os.unlink(door.address)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o777)
    try:
        listener.bind(door.address)
        # Nobody can connect before listen(), and the mode is right by then.
        os.chmod(door.address, door.mode)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(before)
    return listener
