"""Callers of every kind at once, and a function for them: what no reload under load may disturb.

`APP` is the function: it sleeps, streams, echoes and speaks another protocol, over HTTP/1.1 with
keep-alive. `Storm` calls it for a while and notes everything that went wrong.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

APP = r"""
import asyncio
async def serve(reader, writer):
    while True:
        head = await reader.readuntil(b"\r\n\r\n")
        line, *rows = head.decode("latin-1").split("\r\n")
        fields = {r.partition(":")[0].lower(): r.partition(":")[2].strip() for r in rows if r}
        body = await reader.readexactly(int(fields.get("content-length") or 0))
        path = line.split()[1]
        number = float(path.rpartition("=")[2]) if "=" in path else 0.0
        if path.startswith("/ws"):
            writer.write(b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            while data := await reader.read(100):
                writer.write(data.upper())
            break
        if path.startswith("/stream"):
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for n in range(int(number)):
                writer.write(b"5\r\nchunk\r\n")
                await asyncio.sleep(0.1)
            writer.write(b"0\r\n\r\n")
            continue
        await asyncio.sleep(number)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    writer.close()
async def main():
    async def safely(reader, writer):
        try:
            await serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()
    server = await asyncio.start_server(safely, "0.0.0.0", 9000, backlog=1024)
    await server.serve_forever()
asyncio.run(main())
"""

PATIENCE_S = 90.0
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Storm:
    """Calls at a steady rate, whatever becomes of them, on one port of loopback."""

    def __init__(self, port: int, seed: int = 7) -> None:
        self.wrong: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self._port = port
        self._random = random.Random(seed)
        self._kept: list[Connection] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, kind: str, call: Coroutine[Any, Any, None]) -> None:
        """Make a call beside all others; what goes wrong with it is noted under its kind."""
        task = asyncio.get_running_loop().create_task(self._noted(kind, call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _noted(self, kind: str, call: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                await call
        except (OSError, EOFError, AssertionError) as error:  # TimeoutError is one
            self.wrong[f"{kind}: {type(error).__name__} {error}"[:300]] += 1
        else:
            self.done[kind] += 1

    async def ended(self) -> None:
        """Wait for the end of every call, and close what was kept."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))
        for _, writer in self._kept:
            writer.close()
        self._kept.clear()

    async def blow(self, for_s: float, per_s: float, extra: Callable[[int], None]) -> None:
        """Begin `per_s` mixed calls a second for a while; `extra` is told each second's number."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        for n in range(int(for_s * per_s)):
            if n % int(per_s) == 0:
                extra(n // int(per_s))
            self._one()
            pause_s = max(0.0, began + (n + 1) / per_s - loop.time())
            await asyncio.sleep(pause_s)  # sleeps: a steady rate

    def _one(self) -> None:
        dice = self._random.random()
        if dice < 0.45:
            self.begin("kept", self.kept("/http/web/sleep?s=0.001"))
        elif dice < 0.70:
            self.begin("quick", self.get(f"/http/web/sleep?s={self._random.uniform(0, 0.05):.4f}"))
        elif dice < 0.80:
            self.begin(
                "post", self.post("/http/web/echo", b"x" * self._random.randrange(1, 200_000))
            )
        elif dice < 0.88:
            self.begin("event", self.post("/invoke/event", b"e" * self._random.randrange(1, 5000)))
        elif dice < 0.92:
            self.begin("single", self.get("/http/single/sleep?s=0.01"))
        elif dice < 0.96:
            self.begin("seconds", self.get(f"/http/web/sleep?s={self._random.uniform(0.2, 3):.3f}"))
        elif dice < 0.99:
            self.begin("stream", self.stream(self._random.randrange(10, 60)))
        else:
            self.begin("long", self.get(f"/http/web/sleep?s={self._random.uniform(10, 30):.2f}"))

    # -- kinds of calls

    async def get(self, path: str) -> None:
        """Call on a connection of its own, closed behind it."""
        reader, writer = await self._connect()
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
            await self._reply(reader)
        finally:
            writer.close()

    async def kept(self, path: str) -> None:
        """Call on a connection that others have used and will use."""
        connection = self._kept.pop() if self._kept else await self._connect()
        reader, writer = connection
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
            head, _ = await self._reply(reader)
        except BaseException:
            writer.close()
            raise
        if b"close" in head.lower():
            writer.close()
        else:
            self._kept.append(connection)

    async def post(self, path: str, body: bytes) -> None:
        """Send a body in two pieces and get it back."""
        reader, writer = await self._connect()
        try:
            head = f"POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n\r\n"
            half = len(body) // 2
            writer.write(head.encode() + body[:half])
            await asyncio.sleep(0.005)  # sleeps: a body that comes in two pieces
            writer.write(body[half:])
            _, back = await self._reply(reader)
            assert back == body, f"{len(back)} of {len(body)} bytes came back"
        finally:
            writer.close()

    async def stream(self, chunks: int) -> None:
        """Read a stream to its end."""
        reader, writer = await self._connect()
        try:
            writer.write(f"GET /http/web/stream?n={chunks} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
            _, body = await self._reply(reader)
            assert body == b"chunk" * chunks, f"{len(body)} bytes of a stream"
        finally:
            writer.close()

    async def talk(self, until: asyncio.Event) -> None:
        """Speak another protocol on one connection all the while."""
        reader, writer = await self._connect()
        try:
            writer.write(
                b"GET /http/web/ws HTTP/1.1\r\nHost: h\r\n"
                b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
            )
            head = await reader.readuntil(b"\r\n\r\n")
            assert b" 101 " in head, head
            while not until.is_set():
                writer.write(b"hello")
                assert await reader.readexactly(5) == b"HELLO"
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.3):
                        await until.wait()
        finally:
            writer.close()

    # -- the wire

    async def _connect(self) -> Connection:
        return await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 22)

    async def _reply(self, reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
        head = await reader.readuntil(b"\r\n\r\n")
        body = b""
        fields = dict(
            line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line
        )
        if fields.get(b"transfer-encoding") == b"chunked":
            while size := int(await reader.readuntil(b"\r\n"), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readexactly(2)
        else:
            body = await reader.readexactly(int(fields.get(b"content-length", 0)))
        assert b" 200 " in head.partition(b"\r\n")[0], (head.partition(b"\r\n")[0], body[:200])
        return head, body
