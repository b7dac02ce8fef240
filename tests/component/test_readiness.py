"""Waiting for a server to listen, on real loopback sockets."""

from __future__ import annotations

import asyncio
import socket

import pytest

from agent.instances import readiness


async def open_socket():
    sock = socket.socket()
    sock.setblocking(False)
    return sock


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def connect(port, *, within_s=5.0, exited=None, make=open_socket):
    loop = asyncio.get_running_loop()
    return readiness.connect(
        make,
        "127.0.0.1",
        port,
        deadline=loop.time() + within_s,
        exited=exited or loop.create_future(),
    )


class Sockets:
    """Hands out sockets; `begin` is called before the given one."""

    def __init__(self, at=0, begin=None):
        self.made = []
        self._at = at
        self._begin = begin

    async def __call__(self):
        if len(self.made) == self._at and self._begin is not None:
            await self._begin()
        sock = await open_socket()
        self.made.append(sock)
        return sock


async def test_the_connection_that_succeeds_is_returned_open():
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    sock = await connect(port)
    assert sock.getpeername() == ("127.0.0.1", port)
    sock.close()
    server.close()


async def test_it_tries_until_the_server_listens_and_closes_what_failed():
    port, servers = free_port(), []

    async def begin():
        servers.append(await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", port))

    make = Sockets(4, begin)
    sock = await connect(port, make=make)
    assert len(make.made) == 5
    assert sock is make.made[-1]
    assert [made.fileno() for made in make.made[:-1]] == [-1] * 4
    sock.close()
    servers[0].close()


async def test_nobody_listening_is_a_timeout_and_leaves_no_socket():
    make = Sockets()
    with pytest.raises(TimeoutError, match="nothing listens"):
        await connect(free_port(), within_s=0.02, make=make)
    assert all(made.fileno() == -1 for made in make.made)


async def test_an_exit_ends_the_waiting_with_none():
    exited = asyncio.get_running_loop().create_future()

    async def exit():
        exited.set_result(1)

    make = Sockets(3, exit)
    assert await connect(free_port(), exited=exited, make=make) is None
    assert len(make.made) == 4
    assert all(made.fileno() == -1 for made in make.made)


async def test_a_process_that_has_exited_already_is_not_even_tried():
    exited = asyncio.get_running_loop().create_future()
    exited.set_result(1)
    make = Sockets()
    assert await connect(free_port(), exited=exited, make=make) is None
    assert make.made == []


async def test_cancellation_closes_the_socket_in_hand(monkeypatch):
    hanging = asyncio.Event()

    class Loop:
        """The running loop, whose connects hang."""

        def __init__(self, loop):
            self.time = loop.time

        async def sock_connect(self, sock, address):
            hanging.set()
            await asyncio.Event().wait()

    make = Sockets()
    real = asyncio.get_running_loop()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: Loop(real))
    waiting = real.create_task(connect(1, make=make, exited=real.create_future()))
    await hanging.wait()
    monkeypatch.undo()
    waiting.cancel()
    await asyncio.wait({waiting})
    assert waiting.cancelled()
    assert make.made[0].fileno() == -1


async def test_a_network_without_sockets_is_an_error_not_a_wait():
    async def none():
        raise OSError(24, "too many open files")

    with pytest.raises(OSError, match="too many"):
        await connect(1, make=none)
