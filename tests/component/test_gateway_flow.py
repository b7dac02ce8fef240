"""Back-pressure both ways, and requests cut into arbitrary pieces."""

from __future__ import annotations

import asyncio
import socket
from itertools import pairwise

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.aio.tasks import spawn
from agent.gateway.wire.dechunk import BadChunk, Dechunker
from tests.component.function_house import at_rest, until
from tests.component.gateway_house import (
    FakeTarget,
    Instance,
    echo,
    house,
    http,
    read_reply,
    read_request,
    within,
)

PIECE = bytes(65536)


def held_bytes(door):
    """Return what the gateway's transports hold to be written."""
    clients = [c._transport.get_write_buffer_size() for c in door.gateway._connections]
    upstreams = [c._transport.get_write_buffer_size() for c in door.connector.connections]
    return max(clients + upstreams, default=0)


async def test_a_slow_reader_stops_the_instance():
    sent = 0

    async def serve(reader, writer):
        nonlocal sent
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (400 * len(PIECE)))
        for _ in range(400):
            writer.write(PIECE)
            await writer.drain()
            sent += 1
        await reader.read()

    one = await Instance(serve).start()
    async with house(FakeTarget(one.port)) as door:
        reader, writer = await door.connect(limit=65536)
        writer.write(b"GET /http/f/ HTTP/1.1\r\nHost: h\r\n\r\n")
        _, _headers, _ = await read_reply(reader, head_only=True)
        assert await at_rest(lambda: sent) < 400
        assert held_bytes(door) < 1 << 20
        total = 0
        while total < 400 * len(PIECE):
            data = await within(reader.read(1 << 20), 5)
            total += len(data)
            assert held_bytes(door) < 1 << 20
        await door.settled()
        assert len(door.target.endpoint.idle) == 1


async def test_a_slow_instance_stops_the_caller():
    gate = asyncio.Event()

    async def serve(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"Content-Length: %d\r\n" % (400 * len(PIECE)) in head
        await gate.wait()
        total = 0
        while total < 400 * len(PIECE):
            total += len(await reader.read(1 << 20))
        writer.write(http(b"%d" % total))
        await reader.read()

    class Narrow(Instance):
        async def _connected(self, reader, writer):
            reader._limit = 65536
            await super()._connected(reader, writer)

    one = await Narrow(serve).start()
    async with house(FakeTarget(one.port)) as door:
        reader, writer = await door.connect()
        writer.write(
            b"POST /http/f/ HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (400 * len(PIECE))
        )
        sent = 0

        async def send():
            nonlocal sent
            for _ in range(400):
                writer.write(PIECE)
                await writer.drain()
                sent += 1

        sender = spawn("test", send())
        assert await at_rest(lambda: sent) < 400
        assert held_bytes(door) < 1 << 20
        gate.set()
        await sender
        assert (await read_reply(reader))[2] == b"%d" % (400 * len(PIECE))


async def test_a_body_waits_while_its_call_is_queued():
    one = await Instance(echo).start()
    target = FakeTarget(one.port)
    target.closed = True
    async with house(target) as door:
        reader, writer = await door.connect()
        body = bytes(range(256)) * 40_000
        writer.write(b"POST /http/f/ HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body))
        writer.write(body)
        await until(lambda: target.queue and door.gateway.shared.buffered_bytes)
        assert 0 < await at_rest(lambda: door.gateway.shared.buffered_bytes) < 1 << 20
        target.closed = False
        target.open()
        _, _, got = await read_reply(reader)
        assert got.endswith(b"\n\n" + body)


async def test_a_caller_that_never_reads_pipelined_replies_is_not_served_on():
    async def serve(reader, writer):
        while True:
            await read_request(reader)
            writer.write(http(PIECE))

    one = await Instance(serve).start()
    async with house(FakeTarget(one.port)) as door:
        sock = socket.create_connection(("127.0.0.1", door.port))
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(sock, b"GET /http/f/ HTTP/1.1\r\nHost: h\r\n\r\n" * 2000)
        assert await at_rest(lambda: len(door.target.released)) < 1000
        assert held_bytes(door) < 1 << 20
        total = 0
        while len(door.target.released) < 2000:
            total += len(await loop.sock_recv(sock, 1 << 20))
        sock.close()


# -- arbitrary pieces

REQUESTS = (
    b"GET /http/f/a HTTP/1.1\r\nHost: h\r\n\r\n"
    b"\r\n"
    b"POST /http/f/b HTTP/1.1\r\nHost: h\r\nContent-Length: 11\r\n\r\nhello world"
    b"POST /http/f/c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5;x=y\r\nhello\r\n6\r\n world\r\n0\r\nT: 1\r\n\r\n"
    b"GET /nowhere HTTP/1.1\r\nHost: h\r\n\r\n"
    b"POST /invoke/f HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    b"HEAD /http/f/d HTTP/1.1\r\nHost: h\r\n\r\n"
    b"GET /http/f/e HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
)


async def answers_to(pieces):
    """Send the pieces one read apart; return what each request was answered, ids left out."""
    one = await Instance(echo).start()
    async with house(FakeTarget(one.port)) as door:
        reader, writer = await door.connect()

        async def send():
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0)
                await asyncio.sleep(0)

        sender = spawn("test", send())
        answers = []
        for head_only in (False, False, False, False, False, True, False):
            status, headers, body = await read_reply(reader, head_only=head_only)
            lines = [
                line
                for line in body.split(b"\n")
                if not line.startswith((b"trace", b"x-fc-request-id", b'{"error"'))
            ]
            answers.append((status, sorted(set(headers) - {b"x-fc-max-memory-usage"}), lines))
        assert await within(reader.read(), 5) == b""
        await sender
        await door.settled()
        assert len(door.target.released) == 6
    return answers


def pieces_of(cuts):
    edges = [0, *sorted(cuts), len(REQUESTS)]
    return [REQUESTS[a:b] for a, b in pairwise(edges) if a != b]


@pytest.fixture(scope="module")
def whole():
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(answers_to([REQUESTS]))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cuts=st.sets(st.integers(1, len(REQUESTS) - 1), max_size=40))
def test_any_cutting_of_the_request_bytes_gives_the_same_answers(whole, cuts):
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(answers_to(pieces_of(cuts))) == whole


def test_byte_by_byte_gives_the_same_answers(whole):
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        pieces = [REQUESTS[n : n + 1] for n in range(len(REQUESTS))]
        assert runner.run(answers_to(pieces)) == whole


@given(
    body=st.binary(max_size=300),
    sizes=st.lists(st.integers(1, 50), max_size=20),
    cut=st.lists(st.integers(1, 17), min_size=1, max_size=50),
    after=st.binary(max_size=20),
)
def test_dechunking_finds_the_body_and_its_end(body, sizes, cut, after):
    raw, at = b"", 0
    for size in [*sizes, 300]:
        piece = body[at : at + size]
        at += len(piece)
        if piece:
            raw += b"%x\r\n%b\r\n" % (len(piece), piece)
    raw += b"0\r\n\r\n" + after
    dechunker, got, at, turn = Dechunker(), b"", 0, 0
    while not dechunker.done:
        step = raw[at : at + cut[turn % len(cut)]]
        piece, used = dechunker.feed(step)
        got += piece
        at += used
        turn += 1
    assert (got, raw[at:]) == (body, after)


@given(st.binary(max_size=200))
def test_dechunking_nonsense_raises_or_waits_but_never_invents(data):
    dechunker = Dechunker()
    try:
        piece, used = dechunker.feed(data)
    except BadChunk:
        return
    assert used <= len(data)
    assert len(piece) <= len(data)
    assert dechunker.done or used == len(data)


@pytest.mark.parametrize(
    "raw",
    [
        b"\r\n",
        b"-1\r\n",
        b"+1\r\n",
        b"1 1\r\n",
        b"0x1\r\n",
        b"1\n",
        b"1\r\nab\r\n",
        b"f" * 17 + b"\r\n",
        b"5;" + b"x" * 300,
        b"0\r\n" + b"a: b\r\n" * 5000,
        b"_1\r\n",
    ],
)
def test_bad_chunks(raw):
    with pytest.raises(BadChunk):
        Dechunker().feed(raw)
