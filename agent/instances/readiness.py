"""Waiting until an instance listens, by connecting to the container's own address.

Connecting to loopback would say nothing: a server that listens on 127.0.0.1 only must fail its
start. The connection that succeeds is not thrown away but becomes the first pooled one, because a
server that serves one connection at a time would otherwise be busy with ours. Refused attempts come
back at once; the pause between them starts at 0.3 ms and grows for slow starters.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

FIRST_PAUSE_S = 0.0003
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
    loop = asyncio.get_running_loop()
    pause_s = FIRST_PAUSE_S
    while not exited.done():
        sock = await open_socket()
        try:
            async with asyncio.timeout_at(min(deadline, loop.time() + ATTEMPT_S)):
                await loop.sock_connect(sock, (address, port))
        except (OSError, TimeoutError) as error:
            sock.close()
            if loop.time() >= deadline:
                raise TimeoutError(f"nothing listens on {address}:{port}") from error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
        await asyncio.wait({exited}, timeout=min(pause_s, max(0.0, deadline - loop.time())))
        pause_s = min(pause_s * GROWTH, LONGEST_PAUSE_S)
    return None
