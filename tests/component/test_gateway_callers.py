"""What goes wrong with a call: junk, half requests, limits, callers that go away, a full queue.

The house checks after each test that every lease came back exactly once and nothing is left open.
"""

from __future__ import annotations

import asyncio
import socket

import pytest

from agent.aio.tasks import spawn
from agent.model.failure import Failure, FailureKind
from tests.component.function_house import turns, until
from tests.component.gateway_house import (
    GET,
    PATIENCE_S,
    POST,
    FakeTarget,
    Instance,
    echo,
    failure_kinds,
    house,
    http,
    read_reply,
    read_request,
    served,
    silent,
    within,
)


@pytest.fixture
async def instance():
    return await Instance(echo).start()


# -- what is no request


@pytest.mark.parametrize(
    "junk",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x00" * 100,
        b"hello\r\n\r\n",
        b"GET / HTTP/1.1\nHost: h\n\n",
        b"GET / HTTP/2.0\r\nHost: h\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n c\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /http/f/ HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
        b"POST /http/f/ HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n",
        b"POST /http/f/ HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /http/f/ HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST /http/f/ HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    ],
)
async def test_junk_gets_400_in_our_shape_and_the_connection_ends(instance, junk):
    async with house(FakeTarget(instance.port)) as door:
        reader, writer = await door.connect()
        writer.write(junk)
        status, headers, body = await read_reply(reader)
        assert status == 400
        assert b'"fault": "caller"' in body
        assert headers[b"connection"] == b"close"
        assert await within(reader.read(), 5) == b""
        assert not door.target.released


async def test_a_broken_chunk_after_the_call_began_ends_the_call(instance):
    async with house(FakeTarget(instance.port)) as door:
        reader, writer = await door.connect()
        writer.write(
            b"POST /http/f/ HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
        )
        await until(lambda: door.target.leases)
        writer.write(b"nonsense\r\n")
        assert (await read_reply(reader))[0] == 400
        assert await within(reader.read(), 5) == b""
        await door.settled()
        assert failure_kinds(door) == [FailureKind.CLIENT_CANCELLED]


async def test_too_large_heads_are_431(instance):
    async with house(FakeTarget(instance.port)) as door:
        for filler in (b"A: " + b"x" * 70_000 + b"\r\n", b"A: b\r\n" * 400):
            reader, writer = await door.connect()
            writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n" + filler + b"\r\n")
            assert (await read_reply(reader))[0] == 431


async def test_half_a_head_times_out_and_an_idle_connection_is_closed(instance):
    async with house(FakeTarget(instance.port), head_timeout_s=0.3, idle_timeout_s=0.5) as door:
        for start in (b"GET /http/f", b"", GET + b"GET /"):
            reader, writer = await door.connect()
            writer.write(start)
            data = await within(reader.read(), 5)
            if start.endswith(b"\r\n\r\n"):
                assert data.startswith(b"HTTP/1.1 200")
            if start and not start.endswith(b"\n"):
                assert b"HTTP/1.1 408 " in data


async def test_half_a_head_and_then_the_end_is_400(instance):
    async with house(FakeTarget(instance.port)) as door:
        reader, writer = await door.connect()
        writer.write(b"GET /http/f/ HT")
        writer.write_eof()
        assert (await within(reader.read(), 5)).startswith(b"HTTP/1.1 400 ")


async def test_a_body_that_stops_before_there_is_an_instance_is_408(instance):
    target = FakeTarget(instance.port)
    async with house(target, idle_timeout_s=0.4) as door:
        reader, writer = await door.connect()
        writer.write(
            b"POST /invoke/f HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc"
        )
        assert (await read_reply(reader))[0] == 408
        assert not target.released


async def test_connections_over_the_limit_are_turned_away(instance):
    async with house(FakeTarget(instance.port), max_connections=2) as door:
        first = [await door.connect() for _ in range(2)]
        for reader, writer in first:
            writer.write(GET)
            assert (await read_reply(reader))[0] == 200
        data = await door.ask(b"")
        assert data.startswith(b"HTTP/1.1 503 ")
        first[0][1].close()
        await until(lambda: door.metrics.calls.connections < 2)
        reader, writer = await door.connect()
        writer.write(GET)
        assert (await read_reply(reader))[0] == 200


# -- limits of the contract


async def test_bodies_over_the_limit_are_413_known_or_not(instance):
    async with house(FakeTarget(instance.port)) as door:
        reader, writer = await door.connect()
        writer.write(
            b"POST /http/f/ HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (33 << 20)
        )
        status, _, body = await read_reply(reader)
        assert (status, b"EntityTooLarge" in body) == (413, True)
        assert not door.target.released
        reader, writer = await door.connect()
        writer.write(b"POST /http/f/ HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
        piece = b"100000\r\n" + bytes(1 << 20) + b"\r\n"

        async def send():
            for _ in range(40):
                writer.write(piece)
                await writer.drain()

        sender = spawn("test", send())
        status, _, body = await read_reply(reader)
        assert (status, b"EntityTooLarge" in body) == (413, True)
        sender.cancel()
        await asyncio.wait([sender])
        await door.settled()
        assert failure_kinds(door) == [FailureKind.REQUEST_TOO_LARGE]


async def test_large_heads_and_targets_are_refused_in_the_contracts_words(instance):
    async with house(FakeTarget(instance.port)) as door:
        reader, writer = await door.connect()
        writer.write(b"GET /http/f/ HTTP/1.1\r\nHost: h\r\nA: %b\r\n\r\n" % (b"x" * 9000))
        status, headers, body = await read_reply(reader)
        assert 400 <= status < 500
        assert b'"RequestId"' in body
        assert b"x-kindling-request-id" in headers
        writer.write(b"GET /http/f/%b HTTP/1.1\r\nHost: h\r\n\r\n" % (b"x" * 5000))
        assert 400 <= (await read_reply(reader))[0] < 500
        assert not door.target.released
        writer.write(GET)
        assert (await read_reply(reader))[0] == 200


@pytest.mark.parametrize("event", [True, False])
async def test_replies_over_the_limit(event):
    async def serve(reader, writer):
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (40 << 20))
        await reader.read()

    one = await served(serve)
    async with house(FakeTarget(one.port)) as door:
        reader, writer = await door.connect()
        writer.write(POST.replace(b"/http/f/", b"/invoke/f") if event else POST)
        status, _, _ = await read_reply(reader)
        assert status >= 400 or event
        await door.settled()
        assert failure_kinds(door) == [FailureKind.RESPONSE_TOO_LARGE]


async def test_a_streamed_reply_over_the_limit_is_broken_off():
    async def serve(reader, writer):
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(40):
            writer.write(b"100000\r\n" + bytes(1 << 20) + b"\r\n")
            await writer.drain()

    one = await served(serve)
    async with house(FakeTarget(one.port)) as door:
        reader, writer = await door.connect()
        writer.write(GET)
        data = await within(reader.read(), PATIENCE_S)
        assert data.startswith(b"HTTP/1.1 200 ")
        assert not data.endswith(b"0\r\n\r\n")
        await door.settled()
        assert failure_kinds(door) == [FailureKind.RESPONSE_TOO_LARGE]


async def test_reply_headers_over_the_limit_are_502():
    async def serve(reader, writer):
        await read_request(reader)
        writer.write(http(b"", extra=b"A: %b\r\n" % (b"x" * 9000)))
        await reader.read()

    one = await served(serve)
    async with house(FakeTarget(one.port)) as door:
        data = await door.ask(b"GET /http/f/ HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        assert data.startswith(b"HTTP/1.1 502 ")


# -- the caller goes away


async def test_a_caller_gone_from_the_queue_is_forgotten():
    target = FakeTarget()
    target.closed = True
    async with house(target) as door:
        _reader, writer = await door.connect()
        writer.write(GET)
        await until(lambda: len(target.queue) == 1)
        writer.close()
        await until(lambda: target.abandoned == 1)
        assert not target.queue


@pytest.mark.parametrize("policy", ["keep", "signal", "recycle"])
async def test_a_caller_gone_while_running(policy):
    begun, gate, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def serve(reader, writer):
        await read_request(reader)
        begun.set()
        if policy == "keep":
            await gate.wait()
            writer.write(http(b"late"))
        assert await reader.read() == b""
        ended.set()

    one = await served(serve)
    target = FakeTarget(one.port, on_client_cancel=policy)
    async with house(target) as door:
        _reader, writer = await door.connect()
        writer.write(GET)
        await within(begun.wait(), 5)
        writer.close()
        await until(lambda: not door.metrics.calls.connections)
        if policy == "keep":
            assert len(target.leases) == 1
            gate.set()
            await door.settled()
            assert len(target.endpoint.idle) == 1
        else:
            await within(ended.wait(), 5)
        await door.settled()
        assert failure_kinds(door) == [FailureKind.CLIENT_CANCELLED]
        assert target.released[0][2] is (policy == "recycle")


async def test_a_caller_gone_in_the_middle_of_its_body():
    begun = asyncio.Event()

    async def serve(reader, writer):
        assert await reader.readuntil(b"\r\n\r\n")
        begun.set()
        await reader.read()

    one = await served(serve)
    async with house(FakeTarget(one.port)) as door:
        _reader, writer = await door.connect()
        writer.write(b"POST /http/f/ HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nsome")
        await within(begun.wait(), 5)
        writer.close()
        await door.settled()
        assert failure_kinds(door) == [FailureKind.CLIENT_CANCELLED]
        assert not door.target.endpoint.idle


async def test_a_caller_gone_while_connecting(instance):
    asked, hold = asyncio.Event(), asyncio.Event()

    async def make():
        asked.set()
        await hold.wait()
        sock = socket.socket()
        sock.setblocking(False)
        return sock

    async with house(FakeTarget(instance.port), take_socket=lambda: None) as door:
        door.connector._make_socket = make
        _reader, writer = await door.connect()
        writer.write(GET)
        await within(asked.wait(), 5)
        writer.close()
        await until(lambda: not door.metrics.calls.connections)
        hold.set()
        await door.settled()
        assert failure_kinds(door) == [FailureKind.CLIENT_CANCELLED]
        assert len(door.target.endpoint.idle) == 1


async def test_a_caller_gone_in_the_middle_of_a_streamed_reply():
    async def serve(reader, writer):
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(400):
            writer.write(b"10000\r\n" + bytes(65536) + b"\r\n")
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await reader.read()

    one = await served(serve)
    async with house(FakeTarget(one.port, on_client_cancel="keep")) as door:
        reader, writer = await door.connect()
        writer.write(GET)
        await reader.readexactly(1000)
        writer.transport.abort()
        await door.settled()
        assert failure_kinds(door) == [FailureKind.CLIENT_CANCELLED]
        assert len(door.target.endpoint.idle) == 1


# -- the queue


async def test_queue_full_and_refusals_say_when_to_come_back():
    target = FakeTarget(queue=1)
    target.closed = True
    async with house(target) as door:
        waiting_reader, waiting = await door.connect()
        waiting.write(GET)
        await until(lambda: len(target.queue) == 1)
        reader, writer = await door.connect()
        writer.write(GET)
        status, headers, _ = await read_reply(reader)
        assert status == 429
        assert headers[b"retry-after"] == b"2"
        target.queue.popleft().refused(Failure(FailureKind.QUEUE_TIMEOUT, retry_after_s=1.0))
        status, headers, _ = await read_reply(waiting_reader)
        assert status in (429, 503)
        assert b"retry-after" in headers
        assert not target.released


async def test_queued_calls_run_when_an_instance_is_free(instance):
    target = FakeTarget(instance.port)
    target.closed = True
    async with house(target) as door:
        pairs = [await door.connect() for _ in range(5)]
        for _, writer in pairs:
            writer.write(POST)
        await until(lambda: len(target.queue) == 5)
        target.closed = False
        target.open()
        for reader, _ in pairs:
            assert (await read_reply(reader))[2].endswith(b"\n\nbody")
        assert instance.connections == 1


async def test_close_ends_what_waits_and_what_runs():
    one = await served(silent)
    target = FakeTarget(one.port)
    async with house(target) as door:
        pairs = [await door.connect() for _ in range(3)]
        for _, writer in pairs:
            writer.write(GET)
        await until(lambda: (len(target.leases), len(target.queue)) == (1, 2))
        assert await door.gateway.drain(0.1) == 3
        await door.gateway.close()
        for reader, _ in pairs:
            assert (await within(reader.read(), 5)).startswith(b"HTTP/1.1 5")
        assert failure_kinds(door) == [FailureKind.DRAINING]


async def test_drain_waits_for_calls_and_says_close():
    begun, gate = asyncio.Event(), asyncio.Event()

    async def serve(reader, writer):
        await read_request(reader)
        begun.set()
        await gate.wait()
        writer.write(http(b"done"))
        await reader.read()

    one = await served(serve)
    async with house(FakeTarget(one.port)) as door:
        idle_reader, _ = await door.connect()
        reader, writer = await door.connect()
        writer.write(GET)
        await within(begun.wait(), 5)
        drained = spawn("test", door.gateway.drain(5))
        await turns()
        gate.set()
        status, headers, body = await read_reply(reader)
        assert (status, headers[b"connection"], body) == (200, b"close", b"done")
        assert await drained == 0
        assert await within(idle_reader.read(), 5) == b""
        with pytest.raises(OSError, match=r"refused|Connect call failed"):
            await door.connect()
