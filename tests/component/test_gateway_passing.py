"""A hand-over between two gateways: what has reached no instance goes on at the next one.

Both run in one loop; the socket pair between them is the one that the supervisor holds.
"""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import asynccontextmanager

import pytest

from agent.gateway.wire.passing import INLINE_BYTES
from tests.component.function_house import turns, until
from tests.component.gateway_house import (
    GET,
    FakeTarget,
    Instance,
    echo,
    house,
    http,
    read_reply,
    read_request,
    within,
)

CHUNKED = (
    b"POST /http/f/up HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nTrailer: t\r\n\r\n"
)
TENCENT_BODY = json.dumps({"FunctionName": "f", "ClientContext": "{}"}).encode()
TENCENT_HEAD = (
    b"POST / HTTP/1.1\r\nHost: h\r\nX-TC-Action: Invoke\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n" % len(TENCENT_BODY)
)
HEAD_BYTES = CHUNKED.index(b"\r\n\r\n") + 4


@asynccontextmanager
async def two(port, serve=echo, **fields):
    """Two houses whose second takes over from the first; the first one's instances are busy."""
    one = await Instance(serve).start()
    old, new = FakeTarget(port or one.port, **fields), FakeTarget(one.port, **fields)
    taking, passing = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (taking, passing):
        end.setblocking(False)
    async with house(old) as before, house(new) as after:
        before.passing = passing
        await after.gateway.serve([], taking)
        yield before, after
    taking.close()
    passing.close()


def hand_over(before):
    before.gateway.hand_over(before.passing)


async def passed_on(before):
    """Ask again and again, as the worker does, until no connection is left."""

    def nobody_left():
        before.gateway.pass_on()
        return not before.gateway.connections

    await until(nobody_left, within_s=10)


async def queued(before, count=1):
    await until(lambda: len(before.target.queue) >= count)


async def connected(before):
    await until(lambda: before.gateway.connections)


async def test_an_idle_connection_goes_on_at_the_next_worker():
    async with two(0) as (before, after):
        reader, writer = await before.connect()
        writer.write(GET)
        assert (await read_reply(reader))[0] == 200
        hand_over(before)
        await passed_on(before)
        writer.write(GET)
        status, headers, _ = await read_reply(reader)
        assert (status, b"connection" in headers) == (200, False)
        assert len(after.target.released) == 1


async def test_a_connection_that_has_sent_nothing_yet_is_passed_on():
    async with two(0) as (before, after):
        reader, writer = await before.connect()
        await connected(before)
        hand_over(before)
        await passed_on(before)
        writer.write(GET)
        assert (await read_reply(reader))[0] == 200
        assert len(after.target.released) == 1


async def test_half_a_head_is_passed_on_when_the_rest_has_come():
    async with two(0) as (before, after):
        reader, writer = await before.connect()
        writer.write(GET[:20])
        await until(lambda: any(c._requests.tail for c in before.gateway._connections))
        hand_over(before)
        before.gateway.pass_on()
        assert before.gateway.connections == 1
        writer.write(GET[20:] + GET)
        for _ in range(2):
            assert (await read_reply(reader))[0] == 200
        assert len(after.target.released) == 2


async def test_a_request_that_comes_after_the_hand_over_is_served_by_the_next_worker():
    async with two(0) as (before, after):
        reader, writer = await before.connect()
        await connected(before)
        before.gateway._passing = before.passing
        for client in before.gateway._connections:
            client.leaving = True
        writer.write(b"POST /http/f/x HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbo")
        await passed_on(before)
        writer.write(b"dy")
        assert (await read_reply(reader))[2].endswith(b"\n\nbody")
        assert len(after.target.released) == 1


@pytest.mark.parametrize(
    ("raw", "rest", "body"),
    [
        (GET, b"", b""),
        (b"GET /http/f/ HTTP/1.0\r\n\r\n", b"", b""),
        (b"POST /http/f/ HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbody", b"", b"body"),
        (b"POST /http/f/ HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbo", b"dy", b"body"),
        (b"POST /http/f/ HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\n", b"body", b"body"),
        (
            b"POST /http/f/ HTTP/1.1\r\nHost: h\r\nContent-Length: 200000\r\n\r\n" + b"x" * 150_000,
            b"y" * 50_000,
            b"x" * 150_000 + b"y" * 50_000,
        ),
        (
            b"POST /http/f/ HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % INLINE_BYTES
            + b"x" * INLINE_BYTES,
            b"",
            b"x" * INLINE_BYTES,
        ),
    ],
    ids=["get", "old", "whole", "half", "none", "large", "inline"],
)
async def test_a_call_that_waits_for_an_instance_waits_on_at_the_next_worker(raw, rest, body):
    async with two(0) as (before, after):
        before.target.room = 0
        reader, writer = await before.connect()
        writer.write(raw)
        await queued(before)
        hand_over(before)
        await passed_on(before)
        assert before.target.abandoned == 1
        writer.write(rest)
        status, _, echoed = await read_reply(reader)
        assert (status, echoed.partition(b"\n\n")[2]) == (200, body)
        assert len(after.target.released) == 1


@pytest.mark.parametrize("cut", range(HEAD_BYTES, len(CHUNKED) + 1))
async def test_a_chunked_body_is_passed_on_wherever_it_was_cut(cut):
    async with two(0) as (before, after):
        before.target.room = 0
        reader, writer = await before.connect()
        writer.write(CHUNKED[:cut])
        await queued(before)
        await turns()  # what was sent with the head may come in a read of its own
        hand_over(before)
        await passed_on(before)
        writer.write(CHUNKED[cut:] + GET)
        assert (await read_reply(reader))[2].endswith(b"\n\nhello world")
        assert (await read_reply(reader))[0] == 200
        assert len(after.target.released) == 2


async def test_requests_sent_ahead_go_along():
    async with two(0) as (before, after):
        before.target.room = 0
        reader, writer = await before.connect()
        writer.write(GET * 3)
        await queued(before)
        hand_over(before)
        await passed_on(before)
        for _ in range(3):
            assert (await read_reply(reader))[0] == 200
        assert len(after.target.released) == 3


@pytest.mark.parametrize(("kind", "path"), [("event", b"/invoke/f"), ("http", b"/http/f/")])
async def test_who_was_told_to_go_on_with_the_body_is_not_told_twice(kind, path):
    head = (
        b"POST %b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n"
        b"Expect: 100-continue\r\n\r\n" % path
    )
    async with two(0, kind=kind) as (before, after):
        before.target.room = 0
        reader, writer = await before.connect()
        writer.write(head)
        if kind == "event":  # its body is collected before it waits for an instance
            assert (await read_reply(reader))[0] == 100
        else:
            await queued(before)
        hand_over(before)
        await passed_on(before)
        if kind == "http":
            assert (await read_reply(reader))[0] == 100
        writer.write(b"4\r\nbody\r\n0\r\n\r\n")
        status, _, body = await read_reply(reader)
        assert (status, body.endswith(b"\n\nbody")) == (200, True)
        assert len(after.target.released) == 1


async def test_tencents_form_is_passed_on_while_its_body_comes_and_while_it_waits():
    head, inner = TENCENT_HEAD, TENCENT_BODY
    async with two(0, contract="scf-web") as (before, after):
        before.target.room = 0
        reader, writer = await before.connect()
        writer.write(head + inner)
        await queued(before)
        again, other = await before.connect()
        other.write(head + inner[:5])
        await until(lambda: before.gateway.connections == 2)
        await turns()
        hand_over(before)
        await passed_on(before)
        other.write(inner[5:])
        for stream in (reader, again):
            status, _, body = await read_reply(stream)
            assert (status, "Result" in json.loads(body)["Response"]) == (200, True)
        assert len(after.target.released) == 2


async def test_a_call_in_flight_ends_where_it_is_and_its_connection_follows():
    go = asyncio.Event()

    async def serve(reader, writer):
        while True:
            line, _, _ = await read_request(reader)
            if b"slow" in line:
                await go.wait()
            writer.write(http(b"answer"))

    async with two(0, serve) as (before, after):
        reader, writer = await before.connect()
        writer.write(b"GET /http/f/slow HTTP/1.1\r\nHost: h\r\n\r\n")
        await until(lambda: before.target.leases)
        hand_over(before)
        before.gateway.pass_on()
        assert before.gateway.connections == 1
        go.set()
        status, headers, body = await read_reply(reader)
        assert (status, body, b"connection" in headers) == (200, b"answer", False)
        await passed_on(before)
        writer.write(GET)
        assert (await read_reply(reader))[2] == b"answer"
        assert (len(before.target.released), len(after.target.released)) == (1, 1)


async def test_a_stream_and_an_upgraded_connection_go_on_where_they_are():
    more = asyncio.Event()

    async def serve(reader, writer):
        line, _, _ = await read_request(reader)
        if b"ws" in line:
            writer.write(b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            while data := await reader.read(100):
                writer.write(data.upper())
            return
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        await more.wait()
        writer.write(b"3\r\ntwo\r\n0\r\n\r\n")

    async with two(0, serve, concurrency=10) as (before, _):
        stream, one = await before.connect()
        one.write(GET)
        head = await within(stream.readuntil(b"one\r\n"), 5)
        socket_reader, other = await before.connect()
        other.write(
            b"GET /http/f/ws HTTP/1.1\r\nHost: h\r\n"
            b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        )
        assert b"101" in await within(socket_reader.readuntil(b"\r\n\r\n"), 5)
        hand_over(before)
        before.gateway.pass_on()
        other.write(b"hello")
        assert await within(socket_reader.readexactly(5), 5) == b"HELLO"
        more.set()
        assert b"200" in head
        assert await within(stream.readuntil(b"0\r\n\r\n"), 5) == b"3\r\ntwo\r\n0\r\n\r\n"
        other.close()
        await passed_on(before)


async def test_a_caller_that_still_reads_the_last_reply_is_passed_on_when_it_has():
    size = 30 << 20

    async def serve(reader, writer):
        while True:
            await read_request(reader)
            writer.write(http(b"x" * size))
            await writer.drain()

    async with two(0, serve) as (before, after):
        reader, writer = await before.connect(limit=1 << 16)
        writer.write(GET)
        await within(reader.readuntil(b"\r\n\r\n"), 5)
        hand_over(before)
        before.gateway.pass_on()
        assert before.gateway.connections == 1
        assert len(await within(reader.readexactly(size), 20)) == size
        await passed_on(before)
        writer.write(GET)
        assert len((await read_reply(reader))[2]) == size
        assert len(after.target.released) == 1


@pytest.mark.parametrize("raw", [GET, TENCENT_HEAD + TENCENT_BODY], ids=["plain", "enveloped"])
async def test_what_a_call_has_waited_goes_along(raw):
    async with two(0, contract="scf-web") as (before, after):
        before.target.room = after.target.room = 0
        _, writer = await before.connect()
        writer.write(raw)
        await queued(before)
        before.target.queue[0].waited_s = 7.0
        hand_over(before)
        await passed_on(before)
        await queued(after)
        assert 7.0 <= after.target.queue[0].waited_s < 17.0
        after.target.room = 1
        after.target.open()
        await after.settled()


@pytest.mark.parametrize(
    "first",
    [
        b"GET /nowhere HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /http/nobody/ HTTP/1.1\r\nHost: h\r\n\r\n",
        TENCENT_HEAD + TENCENT_BODY,
    ],
    ids=["no door", "no function", "enveloped"],
)
async def test_what_one_request_has_waited_is_not_counted_for_the_next(first):
    async with two(0, contract="scf-web") as (before, after):
        reader, writer = await before.connect()
        await connected(before)
        (client,) = before.gateway._connections
        client._passing = (first, 7.0)
        hand_over(before)
        await passed_on(before)
        await read_reply(reader)
        after.target.room = 0
        writer.write(GET)
        await queued(after)
        assert not after.target.queue[0].waited_s
        after.target.room = 1
        after.target.open()
        assert (await read_reply(reader))[0] == 200


async def test_half_an_enveloped_request_that_is_passed_on_again_keeps_what_it_has_waited():
    async with two(0, contract="scf-web") as (before, after):
        await before.connect()
        await connected(before)
        (client,) = before.gateway._connections
        client._passing = (TENCENT_HEAD + TENCENT_BODY[:5], 7.0)
        hand_over(before)
        await passed_on(before)
        await until(lambda: any(c.sink is not None for c in after.gateway._connections))
        (client,) = after.gateway._connections
        assert client._withdraw() == (TENCENT_HEAD + TENCENT_BODY[:5], 7.0)


async def test_without_a_next_worker_connections_close_behind_their_calls():
    async with two(0) as (before, _):
        idle, _ = await before.connect()
        before.target.room = 0
        reader, writer = await before.connect()
        writer.write(GET)
        await queued(before)
        before.gateway.hand_over(None)
        assert await within(idle.read(), 5) == b""
        before.target.room = 1
        before.target.open()
        _, headers, _ = await read_reply(reader)
        assert headers[b"connection"] == b"close"
        assert await within(reader.read(), 5) == b""


@pytest.mark.parametrize(
    "junk", [b"", b"x", b"{}\n", b'{"waited_s": "long"}\n', b'{"waited_s": 1}\n']
)
async def test_what_is_no_connection_is_told_and_the_next_one_is_taken(junk, caplog):
    async with two(0) as (before, after):
        before.passing.send(junk or b"\n")
        reader, writer = await before.connect()
        await connected(before)
        hand_over(before)
        await passed_on(before)
        writer.write(GET)
        assert (await read_reply(reader))[0] == 200
        assert len(after.target.released) == 1
    assert "passed on" in caplog.text
