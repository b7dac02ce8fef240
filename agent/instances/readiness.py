"""Waiting until an instance listens, by connecting to the container's own address.

Connecting to loopback would say nothing: a server that listens on 127.0.0.1 only must fail its
start. The connection that succeeds is not thrown away but becomes the first pooled one, because a
server that serves one connection at a time would otherwise be busy with ours. Refused attempts come
back at once; the pause between them starts at a fifth of a millisecond, which no timer of the loop
can make, and grows for slow starters: no event tells that somebody in there has begun to listen.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from agent.aio.pause import FinePauses

FIRST_PAUSE_S = 0.0002
COARSE_S = 0.002  # from here on the loop's own timers will do, and the exit is waited for as well
LONGEST_PAUSE_S = 0.05
GROWTH = 1.15
ATTEMPT_S = 1.0  # a SYN may be lost while the container's interface comes up


async def connect(
    open_socket: Callable[[], Awaitable[socket.socket]],
    address: str,
    port: int,
    *,
    deadline: float,
    exited: asyncio.Future[Any],
) -> socket.socket | None:
    """Return a connected non-blocking socket, or None if the process exited first.

    `open_socket` makes a socket in the functions' network. `deadline` is absolute loop time.
    Raises TimeoutError when nothing listened by then.
    """
    with FinePauses() as pauses:
        return await _connect(open_socket, (address, port), deadline, exited, pauses)


async def _connect(
    open_socket: Callable[[], Awaitable[socket.socket]],
    place: tuple[str, int],
    deadline: float,
    exited: asyncio.Future[Any],
    pauses: FinePauses,
) -> socket.socket | None:
    loop = asyncio.get_running_loop()
    pause_s = FIRST_PAUSE_S
    while not exited.done():
        sock = await open_socket()
        try:
            async with asyncio.timeout_at(min(deadline, loop.time() + ATTEMPT_S)):
                await loop.sock_connect(sock, place)
        except (OSError, TimeoutError) as error:
            sock.close()
            if loop.time() >= deadline:
                raise TimeoutError(f"nothing listens on {place[0]}:{place[1]}") from error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
        if pause_s < COARSE_S:
            await pauses.pause(pause_s)
        else:
            left_s = max(0.0, deadline - loop.time())
            await asyncio.wait({exited}, timeout=min(pause_s, left_s))
        pause_s = min(pause_s * GROWTH, LONGEST_PAUSE_S)
    return None
