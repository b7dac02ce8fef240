"""What goes wrong with an instance: it dies, talks nonsense, closes a kept connection, is late.

The house checks after each test that every lease came back exactly once and nothing is left open.
"""

from __future__ import annotations

import asyncio
import socket

import pytest

from agent.model.failure import Failure, FailureKind
from tests.component.function_house import until
from tests.component.gateway_house import (
    GET,
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


# -- the instance dies


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome"],
)
async def test_an_instance_that_dies_in_each_phase_is_explained(answer):
    async def serve(reader, writer):
        await read_request(reader)
        writer.write(answer)
        await writer.drain()

    one = await served(serve)
    async with house(FakeTarget(one.port)) as door:
        reader, writer = await door.connect()
        writer.write(GET)
        data = await within(reader.read(), 5) if b"some" in answer else None
        if data is not None:
            assert data.endswith(b"some")
        else:
            assert (await read_reply(reader))[0] >= 500
        await door.settled()
        assert failure_kinds(door) == [FailureKind.EXITED]
        assert door.target.released[0][2] is True


async def test_broken_replies_above_one_call_per_instance_do_not_recycle():
    async def serve(reader, writer):
        await read_request(reader)

    one = await served(serve)
    async with house(FakeTarget(one.port, concurrency=5)) as door:
        reader, writer = await door.connect()
        writer.write(GET)
        assert (await read_reply(reader))[0] >= 500
        assert door.target.released[0][2] is False


@pytest.mark.parametrize(
    "answer",
    [
        b"220 smtp ready\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * 300_000,
    ],
)
async def test_an_answer_that_is_no_http_is_a_bad_response(answer):
    async def serve(reader, writer):
        await read_request(reader)
        writer.write(answer)
        await reader.read()

    one = await served(serve)
    async with house(FakeTarget(one.port)) as door:
        reader, writer = await door.connect()
        writer.write(GET)
        status, _, _body = await read_reply(reader)
        assert status == 502
        await door.settled()
        assert failure_kinds(door) == [FailureKind.BAD_RESPONSE]
        assert not door.target.explained


async def test_of_a_coding_nobody_knows_only_the_beginning_is_repeated():
    async def serve(reader, writer):
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: %b\r\n\r\n" % (b"x" * 200_000))
        await reader.read()

    one = await served(serve)
    async with house(FakeTarget(one.port)) as door:
        reader, writer = await door.connect()
        writer.write(GET)
        status, headers, body = await read_reply(reader)
        await door.settled()
        assert status == 502
        assert b"x" * 64 + b"..., not chunked" in body
        ((_, failure, _),) = door.target.released
        told = (failure.message, body.decode(), *(value.decode() for value in headers.values()))
        assert all(len(text) < 400 for text in told)


async def test_nobody_listens(instance):
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    async with house(FakeTarget(port)) as door:
        reader, writer = await door.connect()
        writer.write(GET)
        assert (await read_reply(reader))[0] >= 500
        await door.settled()
        assert failure_kinds(door) == [FailureKind.EXITED]


async def test_no_socket_of_the_functions_network(instance):
    async with house(FakeTarget(instance.port), take_socket=lambda: None) as door:
        reader, writer = await door.connect()
        writer.write(GET)
        assert (await read_reply(reader))[0] >= 500


# -- dead pooled connections


def dies_on_second(answers):
    """Serve one request per connection, then die when the second has been read."""

    async def serve(reader, writer):
        await read_request(reader)
        writer.write(http(b"first"))
        answers.append(1)
        await read_request(reader)
        answers.append(2)
        writer.transport.abort()

    return serve


async def test_a_dead_pooled_connection_is_tried_again_once_for_get():
    answers: list[int] = []
    one = await served(dies_on_second(answers))
    async with house(FakeTarget(one.port)) as door:
        reader, writer = await door.connect()
        for _ in range(3):
            writer.write(GET)
            assert (await read_reply(reader))[::2] == (200, b"first")
        assert answers == [1, 2, 1, 2, 1]
        assert door.metrics.calls.upstream_retries == 2
        assert failure_kinds(door) == [None, None, None]


@pytest.mark.parametrize(
    "request_",
    [
        POST,
        b"DELETE /http/f/ HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /http/f/ HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx",
        b"POST /invoke/f HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx",
    ],
)
async def test_others_are_never_tried_again(request_):
    answers: list[int] = []
    one = await served(dies_on_second(answers))
    async with house(FakeTarget(one.port)) as door:
        door.target.explanation = Failure(FailureKind.BAD_RESPONSE)
        reader, writer = await door.connect()
        writer.write(GET)
        await read_reply(reader)
        writer.write(request_)
        status, _, _ = await read_reply(reader)
        assert status == 502 or request_.startswith(b"POST /invoke")
        assert answers == [1, 2]
        assert failure_kinds(door) == [None, FailureKind.BAD_RESPONSE]


async def test_a_get_with_reply_bytes_is_not_tried_again():
    count = []

    async def serve(reader, writer):
        await read_request(reader)
        writer.write(http(b"first"))
        await read_request(reader)
        count.append(1)
        writer.write(b"HTTP/1.1 2")
        await writer.drain()

    one = await served(serve)
    async with house(FakeTarget(one.port)) as door:
        reader, writer = await door.connect()
        writer.write(GET)
        await read_reply(reader)
        writer.write(GET)
        assert (await read_reply(reader))[0] >= 500
        assert one.connections == 1


async def test_idle_connections_that_close_or_talk_leave_the_pool():
    gate = asyncio.Event()

    async def serve(reader, writer):
        line, _, _ = await read_request(reader)
        writer.write(http(b"x"))
        await gate.wait()
        gate.clear()
        if b"talk" in line:
            writer.write(b"HTTP/1.1 408 Timeout\r\n\r\n")
            await reader.read()

    one = await served(serve)
    async with house(FakeTarget(one.port)) as door:
        reader, writer = await door.connect()
        for path in (b"talk", b"close"):
            writer.write(b"GET /http/f/%b HTTP/1.1\r\nHost: h\r\n\r\n" % path)
            await read_reply(reader)
            assert len(door.target.endpoint.idle) == 1
            gate.set()
            await until(lambda: not door.target.endpoint.idle)
            await until(lambda: not door.connector.connections)


async def test_more_than_one_reply_spoils_the_connection():
    async def serve(reader, writer):
        await read_request(reader)
        writer.write(http(b"one") + http(b"two"))
        await reader.read()

    one = await served(serve)
    async with house(FakeTarget(one.port)) as door:
        reader, writer = await door.connect()
        for _ in range(2):
            writer.write(GET)
            assert (await read_reply(reader))[2] == b"one"
        assert one.connections == 2


async def test_idle_connections_are_swept_before_fifteen_minutes(instance):
    async with house(FakeTarget(instance.port)) as door:
        reader, writer = await door.connect()
        writer.write(GET)
        await read_reply(reader)
        now = asyncio.get_running_loop().time()
        assert door.connector.sweep(now + 800) == 0
        assert door.connector.sweep(now + 860) == 1
        assert not door.target.endpoint.idle


async def test_a_server_of_one_connection_at_a_time_is_not_blocked_by_an_idle_one():
    turn = asyncio.Lock()

    async def serve(reader, writer):
        async with turn:
            while True:
                line, _, _ = await read_request(reader)
                await until(lambda: one.connections == 2)
                writer.write(http(line))

    one = await served(serve)
    async with house(FakeTarget(one.port, concurrency=2)) as door:
        pairs = [await door.connect() for _ in range(2)]
        for _, writer in pairs:
            writer.write(GET)
        for reader, _ in pairs:
            assert (await read_reply(reader))[0] == 200
        assert one.connections == 2
        assert failure_kinds(door) == [None, None]


# -- time


async def test_a_timed_out_call_at_concurrency_one_recycles():
    one = await served(silent)
    async with house(FakeTarget(one.port, timeout_s=1)) as door:
        reader, writer = await door.connect()
        writer.write(GET)
        status, _headers, _ = await read_reply(reader)
        assert status >= 500 or status == 412
        assert door.target.released[0][1].kind is FailureKind.TIMEOUT
        assert door.target.released[0][2] is True


async def test_above_one_the_slot_is_held_until_the_exchange_ends():
    gate = asyncio.Event()

    async def serve(reader, writer):
        while True:
            await read_request(reader)
            await gate.wait()
            writer.write(http(b"late"))

    one = await served(serve)
    async with house(FakeTarget(one.port, timeout_s=1, concurrency=2)) as door:
        reader, writer = await door.connect()
        writer.write(GET)
        await read_reply(reader)
        assert not door.target.released
        assert len(door.target.leases) == 1
        gate.set()
        await door.settled()
        assert failure_kinds(door) == [FailureKind.TIMEOUT]
        assert door.target.released[0][2] is False
        writer.write(GET)
        assert (await read_reply(reader))[2] == b"late"
        assert one.connections == 1


async def test_a_zombie_is_given_up_after_zombie_s():
    one = await served(silent)
    async with house(FakeTarget(one.port, timeout_s=1, concurrency=2), zombie_s=0.3) as door:
        reader, writer = await door.connect()
        writer.write(GET)
        await read_reply(reader)
        assert len(door.target.leases) == 1
        await door.settled()
        assert failure_kinds(door) == [FailureKind.TIMEOUT]
        assert door.target.released[0][2] is False


@pytest.mark.parametrize("concurrency", [1, 2])
async def test_a_timeout_in_the_middle_of_the_reply_breaks_it_off(concurrency):
    async def serve(reader, writer):
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await reader.read()

    one = await served(serve)
    async with house(
        FakeTarget(one.port, timeout_s=1, concurrency=concurrency), zombie_s=0.2
    ) as door:
        data = await door.ask(GET)
        assert data.endswith(b"\r\n\r\nhalf")
        await door.settled()
        assert failure_kinds(door) == [FailureKind.TIMEOUT]
