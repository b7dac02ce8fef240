"""The pump between the held socket and the private one: bytes, half-close, pressure, limits."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import random
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent.aio import tasks
from agent.control.pump import Pump
from tests.component.control_door import listener
from tests.component.function_house import at_rest

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
def run() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="kd") as path:
        yield Path(path)


@asynccontextmanager
async def pumped(run: Path, serve: Serve, max_links: int = 8) -> AsyncIterator[Pump]:
    server = await asyncio.start_unix_server(serve, run / "private")
    with listener(run / "held") as held:
        pump = Pump("test", held, str(run / "private"), max_links)
        pump.start()
        try:
            yield pump
        finally:
            await pump.close()
            server.close()
            await server.wait_closed()


async def connect(run: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_unix_connection(run / "held")


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not true():  # noqa: ASYNC110 - the pump tells nobody, on purpose
            await asyncio.sleep(0.002)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


async def test_bytes_go_both_ways_unchanged(run: Path) -> None:
    data = random.Random(1).randbytes(4 << 20)
    async with pumped(run, echo) as pump:
        reader, writer = await connect(run)

        async def send() -> None:
            writer.write(data)
            await writer.drain()
            writer.write_eof()

        sender = tasks.spawn("send", send())
        came = await reader.read(-1)
        await sender
        assert hashlib.sha256(came).digest() == hashlib.sha256(data).digest()
        writer.close()
        await until(lambda: pump.links == 0)


async def test_a_half_close_leaves_the_other_direction_open(run: Path) -> None:
    async def answer_after_the_end(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        asked = await reader.read(-1)
        writer.write(b"after the end: " + asked)
        writer.close()

    async with pumped(run, answer_after_the_end):
        reader, writer = await connect(run)
        writer.write(b"question")
        writer.write_eof()
        assert await reader.read(-1) == b"after the end: question"
        writer.close()


async def test_a_server_that_speaks_first_loses_nothing(run: Path) -> None:
    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    async with pumped(run, greet) as pump:
        for _ in range(50):
            reader, writer = await connect(run)
            assert await reader.read(-1) == b"hello"
            writer.close()
        await until(lambda: pump.links == 0)


async def test_a_caller_that_does_not_read_stops_the_server(run: Path) -> None:
    written = 0

    async def flood(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        for _ in range(1000):
            writer.write(b"x" * 65536)
            written += 65536
            await writer.drain()
        writer.close()

    async with pumped(run, flood):
        caller = socket.socket(socket.AF_UNIX)
        caller.connect(str(run / "held"))
        await until(lambda: written > 0)
        # 64 MB are on their way, buffers hold well under 8.
        assert await at_rest(lambda: written) < 8 << 20
        reader, writer = await asyncio.open_unix_connection(sock=caller)
        assert len(await reader.read(-1)) == 1000 * 65536
        writer.close()


async def test_beyond_the_limit_callers_wait_and_are_not_refused(run: Path) -> None:
    async with pumped(run, echo, max_links=2) as pump:
        first, second, third = [await connect(run) for _ in range(3)]
        await until(lambda: pump.links == 2)
        third[1].write(b"patience")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await third[0].read(8)
        assert "full" in repr(pump)
        first[1].close()
        assert await third[0].readexactly(8) == b"patience"
        for _, writer in (second, third):
            writer.close()
        await until(lambda: pump.links == 0)
        assert "accepting" in repr(pump)


@pytest.mark.parametrize("side", ["caller", "server"])
async def test_a_reset_ends_both_ends_and_no_task_is_left(run: Path, side: str) -> None:
    writers: list[asyncio.StreamWriter] = []
    ended = asyncio.Event()

    async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await reader.read(-1)
        ended.set()
        writer.close()

    before = asyncio.all_tasks()
    async with pumped(run, keep) as pump:
        reader, writer = await connect(run)
        writer.write(b"x")
        await until(lambda: bool(writers))
        (writer if side == "caller" else writers[0]).transport.abort()
        if side == "caller":
            await asyncio.wait_for(ended.wait(), 5)  # noqa: TID251
        else:
            assert await reader.read(-1) == b""
            writer.close()
        await until(lambda: pump.links == 0)
    await until(lambda: asyncio.all_tasks() <= before)


async def test_close_ends_open_links_and_leaves_the_held_socket_alone(run: Path) -> None:
    with listener(run / "held") as held:
        server = await asyncio.start_unix_server(echo, run / "private")
        pump = Pump("test", held, str(run / "private"), 8)
        pump.start()
        reader, writer = await connect(run)
        writer.write(b"x")
        assert await reader.read(1) == b"x"
        await pump.close()
        assert await reader.read(-1) == b""
        assert pump.links == 0
        assert (run / "held").exists()
        later_reader, later = await connect(run)  # waits in the kernel's queue
        later.write(b"y")
        successor = Pump("next", held, str(run / "private"), 8)
        successor.start()
        assert await later_reader.read(1) == b"y"
        await successor.close()
        for one in (writer, later):
            one.close()
        server.close()
        await server.wait_closed()


async def test_without_a_server_the_caller_is_told_and_nothing_stays(run: Path) -> None:
    with listener(run / "held") as held:
        pump = Pump("test", held, str(run / "nobody"), 8)
        pump.start()
        reader, writer = await connect(run)
        assert await reader.read(-1) == b""
        writer.close()
        await until(lambda: pump.links == 0)
        await pump.close()


async def _close_after(turns: int, run: Path) -> None:
    async with pumped(run, echo) as pump:
        callers = [socket.socket(socket.AF_UNIX) for _ in range(5)]
        for caller in callers:
            caller.connect(str(run / "held"))
        for _ in range(turns):
            await asyncio.sleep(0)
        await pump.close()
        assert pump.links == 0
        for caller in callers:
            caller.close()
    for name in ("held", "private"):
        (run / name).unlink(missing_ok=True)


def _sockets() -> int:
    links = Path("/proc/self/fd").iterdir()
    return sum(link.is_socket() for link in links)


async def test_closing_at_any_moment_of_a_links_opening_leaks_nothing(run: Path) -> None:
    await _close_after(8, run)  # the loop opens what it needs for itself
    before = _sockets()
    for turns in range(8):
        await _close_after(turns, run)
        await until(lambda: _sockets() <= before)


async def test_accept_errors_are_waited_out(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.control.pump.PAUSE_S", 0.01)

    class Exhausted(socket.socket):
        failures = 2

        def accept(self) -> tuple[socket.socket, object]:
            if self.failures:
                self.failures -= 1
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    server = await asyncio.start_unix_server(echo, run / "private")
    with Exhausted(socket.AF_UNIX) as held:
        held.bind(str(run / "held"))
        held.listen(8)
        pump = Pump("test", held, str(run / "private"), 8)
        pump.start()
        reader, writer = await connect(run)
        writer.write(b"z")
        assert await reader.read(1) == b"z"
        assert held.failures == 0
        writer.close()
        await pump.close()
    server.close()
    await server.wait_closed()


async def test_binary_junk_on_the_grpc_socket_ends_only_its_own_link(run: Path) -> None:
    from agent._pb.worker.v1 import worker_pb2 as pb
    from tests.component.control_door import open_doors

    async with open_doors(run) as doors:
        for junk in (b"\x00" * 100, b"GET / HTTP/1.1\r\n\r\n", random.Random(2).randbytes(5000)):
            reader, writer = await asyncio.open_unix_connection(run / "a.sock")
            writer.write(junk)
            writer.write_eof()
            async with asyncio.timeout(5):
                await reader.read(-1)
            writer.close()
        await doors.admin.List(pb.ListRequest())
        assert doors.node.seen == [("functions",)]
