"""A small house for gateway tests: targets in memory, real instances on loopback sockets.

`FakeTarget` keeps the ports' promises (leases, a queue, exactly-once release, which it checks);
`Instance` is a raw asyncio server whose behaviour a test writes as a coroutine.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from contextlib import asynccontextmanager
from typing import Any, ClassVar

from agent.calls.ports import Lease
from agent.config import InvokeSettings, LimitsSettings, NodeConfig
from agent.contracts.base import Call, CallReport, NodeFacts, Reply
from agent.contracts.bind import bind
from agent.errors import Bug, FunctionFailed, NotFound
from agent.gateway.doors.server import Gateway
from agent.gateway.wire.upstream import UpstreamConnector
from agent.instances.endpoint import Endpoint
from agent.model.failure import Failure, FailureKind
from agent.model.records import FunctionVersion, Meters
from agent.model.spec_parse import parse_spec
from agent.telemetry.metrics import AgentMetrics
from tests.component.function_house import until

GET = b"GET /http/f/ HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST /http/f/ HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbody"
# A bound, not an expectation: a slow machine sends 33 MB through three Python servers in it.
PATIENCE_S = 30.0


async def within(awaitable, seconds):
    """Await something that a test must not wait for longer."""
    async with asyncio.timeout(seconds):
        return await awaitable


async def apart():
    """Let the other end read what was written before more is: on one loop a few turns do."""
    for _ in range(5):
        await asyncio.sleep(0)


def spec(**fields):
    data = {"name": "f", "image": "x:1", "contract": "fc", "kind": "http"}
    return parse_spec({**data, **fields})


class FakeTarget:
    """One instance behind one function; at most `spec.concurrency` leases at a time."""

    def __init__(self, port=0, *, cold=None, queue=10, **fields):
        record = FunctionVersion(
            fields.get("name", "f"), 1, spec(**fields), None, "Ready", created_ns=0
        )
        self.version = record
        self.contract = bind(record, NodeFacts())
        self.endpoint = Endpoint("f-00000001", "127.0.0.1", port)
        self.room = record.spec.concurrency
        self.queue: deque[Any] = deque()
        self.max_queue = queue
        self.leases: set[Lease] = set()
        self.released: list[tuple[Lease, Failure | None, bool]] = []
        self.abandoned = 0
        self.cold = cold
        self.explanation = Failure(FailureKind.EXITED, exit_code=3)
        self.explained = 0
        self.jobs: list[bytes] = []
        self.job = None
        self.closed = False
        self.calls: list[Call] = []

    def acquire(self, waiter):
        if len(self.leases) < self.room and not self.closed:
            return self._lease()
        if len(self.queue) >= self.max_queue:
            raise FunctionFailed(Failure(FailureKind.QUEUE_FULL, retry_after_s=2.0))
        self.queue.append(waiter)
        return None

    def _lease(self):
        cold, self.cold = self.cold, None
        lease = Lease(self.endpoint, asyncio.get_running_loop().time(), cold)
        self.leases.add(lease)
        return lease

    def abandon(self, waiter):
        if waiter in self.queue:
            self.queue.remove(waiter)
            self.abandoned += 1

    def release(self, lease, call, failure=None, *, recycle=False):
        if lease not in self.leases:
            raise Bug("released twice")
        self.leases.remove(lease)
        self.released.append((lease, failure, recycle))
        self.calls.append(call)
        self.open()

    def report(self, lease):
        return CallReport(Meters(wall_ms=1.0), lease.cold_start, b"tail", lease.endpoint.id)

    def open(self):
        """Grant to those who wait, as far as there is room."""
        while self.queue and len(self.leases) < self.room and not self.closed:
            self.queue.popleft().granted(self._lease())

    async def explain(self, lease, waited_s):
        self.explained += 1
        await asyncio.sleep(0)
        return self.explanation

    async def run_job(self, call, event):
        self.jobs.append(event)
        if self.job is not None:
            return await self.job(call, event), CallReport(Meters())
        return Reply(200, [(b"X-Job", b"yes")], b"done"), CallReport(Meters())


class FakeCatalog:
    def __init__(self, *targets):
        self.targets = {target.version.name: target for target in targets}
        self.generation = 0

    def find(self, name, qualifier):
        target = self.targets.get(name)
        if target is None or qualifier not in ("LATEST", "1"):
            raise NotFound(f"function '{name}' is not deployed")
        return target


class Instance:
    """A server on loopback. `serve(reader, writer)` runs once per connection."""

    live: ClassVar[set[Instance]] = set()

    def __init__(self, serve):
        self.serve = serve
        self.connections = 0
        self.port = 0
        self._writers = set()

    async def start(self):
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, limit=1 << 24)
        self.port = self._server.sockets[0].getsockname()[1]
        Instance.live.add(self)
        return self

    async def _connected(self, reader, writer):
        self.connections += 1
        self._writers.add(writer)
        try:
            await self.serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def stop(self):
        Instance.live.discard(self)
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0)


async def read_request(reader):
    """Read one request; return (request line, headers, body)."""
    head = await reader.readuntil(b"\r\n\r\n")
    line, *rows = head[:-4].split(b"\r\n")
    headers = {}
    for row in rows:
        name, _, value = row.partition(b": ")
        headers[name.lower()] = value
    if headers.get(b"transfer-encoding") == b"chunked":
        body = b""
        while size := int((await reader.readuntil(b"\r\n"))[:-2], 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
    else:
        body = await reader.readexactly(int(headers.get(b"content-length", 0)))
    return line, headers, body


def http(body, status=b"200 OK", extra=b""):
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n%b\r\n%b" % (status, len(body), extra, body)


async def echo(reader, writer):
    """Answer each request with its line, its sorted headers and its body."""
    while True:
        line, headers, body = await read_request(reader)
        text = line + b"\n" + b"\n".join(b"%b=%b" % pair for pair in sorted(headers.items()))
        text += b"\n\n" + body
        writer.write(http(b"" if line.startswith(b"HEAD ") else text))


async def silent(reader, writer):
    """Take the request and never answer."""
    await read_request(reader)
    await reader.read()


async def served(serve):
    return await Instance(serve).start()


class Door:
    """A running gateway on loopback, and what tests want to know of it."""

    def __init__(self, gateway, targets, connector, metrics, port):
        self.gateway, self.targets, self.connector = gateway, targets, connector
        self.metrics, self.port = metrics, port
        self.writers = []

    @property
    def target(self):
        return self.targets[0]

    async def connect(self, limit=1 << 24):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=limit)
        self.writers.append(writer)
        return reader, writer

    async def ask(self, raw, *, close=True):
        """Send bytes; return everything that comes until the gateway closes."""
        reader, writer = await self.connect()
        writer.write(raw)
        data = await within(reader.read(), PATIENCE_S)
        writer.close()
        return data

    async def settled(self):
        """Wait until no lease is out and no exchange is open."""
        shared, targets = self.gateway.shared, self.targets
        await until(lambda: not shared.open_calls() and not any(t.leases for t in targets))


def tcp_socket():
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    return sock


@asynccontextmanager
async def house(*targets, domain="", zombie_s=30.0, take_socket=tcp_socket, **invoke):
    config = NodeConfig(
        invoke=InvokeSettings(domain=domain, **invoke), limits=LimitsSettings(zombie_s=zombie_s)
    )
    metrics = AgentMetrics()
    connector = UpstreamConnector(take_socket)
    gateway = Gateway(config, FakeCatalog(*targets), connector, metrics.calls)
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    await gateway.serve([listener])
    door = Door(gateway, targets, connector, metrics, listener.getsockname()[1])
    try:
        yield door
    finally:
        for writer in door.writers:
            writer.transport.abort()
        await gateway.close()
        connector.close()
        for instance in list(Instance.live):
            await instance.stop()
        for _ in range(5):
            await asyncio.sleep(0)
        for target in targets:
            assert not target.leases, f"leases left: {target.leases}"
        assert not gateway.shared.open_calls()
        assert not gateway.shared.buffered_bytes
        assert not gateway.calls_running


async def read_reply(reader, *, head_only=False):
    """Read one reply; return (status, headers, body)."""
    head = await within(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
    line, *rows = head[:-4].split(b"\r\n")
    status = int(line.split()[1])
    headers = {}
    for row in rows:
        name, _, value = row.partition(b": ")
        headers[name.lower()] = value
    if head_only or status in (204, 304) or 100 <= status < 200:
        return status, headers, b""
    if headers.get(b"transfer-encoding") == b"chunked":
        body = b""
        while size := int((await within(reader.readuntil(b"\r\n"), PATIENCE_S))[:-2], 16):
            body += await within(reader.readexactly(size), PATIENCE_S)
            await reader.readexactly(2)
        await reader.readexactly(2)
    elif b"content-length" in headers:
        body = await within(reader.readexactly(int(headers[b"content-length"])), PATIENCE_S)
    else:
        body = await within(reader.read(), PATIENCE_S)
    return status, headers, body


def failure_kinds(door):
    return [failure.kind if failure else None for _, failure, _ in door.target.released]
