"""HTTP calls through the gateway: framing, keep-alive, pipelining, routing, headers."""

from __future__ import annotations

import asyncio

import pytest

from agent.model.records import ColdStart
from tests.component.gateway_house import (
    FakeTarget,
    Instance,
    apart,
    echo,
    house,
    http,
    read_reply,
    read_request,
    within,
)

GET = b"GET /http/f/a%20b?x=%2F HTTP/1.1\r\nHost: h\r\n\r\n"


@pytest.fixture
async def instance():
    return await Instance(echo).start()


async def served(serve):
    return await Instance(serve).start()


async def test_path_passes_byte_for_byte_and_connections_are_kept(instance):
    async with house(FakeTarget(instance.port)) as door:
        reader, writer = await door.connect()
        for _ in range(5):
            writer.write(GET)
            status, headers, body = await read_reply(reader)
            assert status == 200
            assert body.startswith(b"GET /a%20b?x=%2F HTTP/1.1\n")
            assert headers[b"x-kindling-request-id"].startswith(b"1-")
            assert b"x-kindling-cold-start" not in headers
        assert instance.connections == 1
        assert len(door.target.released) == 5
        assert len(door.target.endpoint.idle) == 1
        writer.close()


async def test_raw_high_bytes_are_no_target(instance):
    async with house(FakeTarget(instance.port)) as door:
        data = await door.ask(b"GET /http/f/\xc3\xa9 HTTP/1.1\r\nHost: h\r\n\r\n")
        assert data.startswith(b"HTTP/1.1 400 ")
        assert not door.target.released


async def test_pipelined_requests_are_answered_one_after_the_other(instance):
    async with house(FakeTarget(instance.port)) as door:
        reader, writer = await door.connect()
        count = 100
        writer.write(
            b"".join(
                b"POST /http/f/%d HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc" % n
                for n in range(count)
            )
        )
        for n in range(count):
            _, _, body = await read_reply(reader)
            assert body.startswith(b"POST /%d HTTP/1.1\n" % n)
            assert body.endswith(b"\n\nabc")
            assert len(door.target.leases) <= 1
        writer.close()


async def test_many_pipelined_refusals_do_not_recurse(instance):
    async with house(FakeTarget(instance.port)) as door:
        reader, writer = await door.connect()
        writer.write(b"GET /nowhere HTTP/1.1\r\nHost: h\r\n\r\n" * 3000)
        for _ in range(3000):
            status, _, _ = await read_reply(reader)
            assert status == 404
        writer.close()


async def test_chunked_both_ways():
    async def serve(reader, writer):
        while True:
            _, headers, body = await read_request(reader)
            assert headers[b"transfer-encoding"] == b"chunked"
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for at in range(0, len(body), 5):
                piece = body[at : at + 5]
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                await apart()
            writer.write(b"0\r\nX-Trailer: 1\r\n\r\n")

    one = await served(serve)
    async with house(FakeTarget(one.port)) as door:
        reader, writer = await door.connect()
        for _ in range(3):
            writer.write(
                b"POST /http/f/ HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
                b"5;ext=1\r\nhello\r\n"
            )
            await apart()
            writer.write(b"6\r\n world\r\n0\r\nTrailer: x\r\n\r\n")
            status, headers, body = await read_reply(reader)
            assert (status, body) == (200, b"hello world")
            assert headers[b"transfer-encoding"] == b"chunked"
        assert one.connections == 1
        writer.close()


async def test_http_1_0_closes_and_gets_no_chunks():
    async def serve(reader, writer):
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await apart()
        writer.write(b"3\r\ndef\r\n0\r\n\r\n")

    one = await served(serve)
    async with house(FakeTarget(one.port)) as door:
        data = await door.ask(b"GET /http/f/ HTTP/1.0\r\n\r\n")
        head, _, body = data.partition(b"\r\n\r\n")
        assert body == b"abcdef"
        assert b"Transfer-Encoding" not in head
        assert b"Connection: close" in head


async def test_http_1_0_keep_alive_is_said_and_kept(instance):
    async with house(FakeTarget(instance.port)) as door:
        reader, writer = await door.connect()
        for _ in range(2):
            writer.write(b"GET /http/f/ HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            status, headers, _ = await read_reply(reader)
            assert status == 200
            assert headers[b"connection"] == b"keep-alive"
        writer.close()


async def test_connection_close_is_honoured_on_both_sides():
    async def serve(reader, writer):
        await read_request(reader)
        writer.write(http(b"bye", extra=b"Connection: close\r\n"))

    one = await served(serve)
    async with house(FakeTarget(one.port)) as door:
        for _ in range(2):
            data = await door.ask(b"GET /http/f/ HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            assert data.endswith(b"\r\n\r\nbye")
            assert data.count(b"Connection: close") == 1
        assert one.connections == 2
        assert not door.target.endpoint.idle


async def test_reply_without_length_ends_with_the_connection():
    async def serve(reader, writer):
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nuntil ")
        await apart()
        writer.write(b"close")

    one = await served(serve)
    async with house(FakeTarget(one.port)) as door:
        reader, writer = await door.connect()
        for _ in range(2):
            writer.write(GET)
            assert (await read_reply(reader))[::2] == (200, b"until close")
        assert not door.target.explained
        writer.close()


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
async def test_replies_without_a_body_keep_both_connections(status):
    async def serve(reader, writer):
        while True:
            await read_request(reader)
            extra = b"Content-Length: 7\r\n" if status.startswith(b"304") else b""
            writer.write(b"HTTP/1.1 %b\r\n%b\r\n" % (status, extra))

    one = await served(serve)
    async with house(FakeTarget(one.port)) as door:
        reader, writer = await door.connect()
        for _ in range(3):
            writer.write(GET)
            got, headers, _ = await read_reply(reader)
            assert got == int(status[:3])
            assert headers.get(b"content-length") == (b"7" if got == 304 else None)
        assert one.connections == 1
        writer.close()


async def test_head_passes_the_length_but_no_body():
    async def serve(reader, writer):
        while True:
            line, _, _ = await read_request(reader)
            assert line.startswith(b"HEAD ")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")

    one = await served(serve)
    async with house(FakeTarget(one.port)) as door:
        reader, writer = await door.connect()
        for _ in range(3):
            writer.write(b"HEAD /http/f/ HTTP/1.1\r\nHost: h\r\n\r\n")
            status, headers, _ = await read_reply(reader, head_only=True)
            assert (status, headers[b"content-length"]) == (200, b"1000")
        assert one.connections == 1
        writer.write(b"HEAD /nowhere HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        status, headers, _ = await read_reply(reader, head_only=True)
        assert status == 404
        assert await reader.read() == b""
        writer.close()


async def test_expect_100_continue_is_answered_by_the_gateway():
    async def serve(reader, writer):
        while True:
            _, headers, body = await read_request(reader)
            assert b"expect" not in headers
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n" + http(body))

    one = await served(serve)
    async with house(FakeTarget(one.port)) as door:
        reader, writer = await door.connect()
        for _ in range(2):
            writer.write(
                b"PUT /http/f/ HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n"
                b"Content-Length: 4\r\n\r\n"
            )
            assert (await read_reply(reader))[0] == 100
            writer.write(b"data")
            assert (await read_reply(reader))[::2] == (200, b"data")
        writer.close()


async def test_a_refused_call_is_not_told_to_continue(instance):
    async with house(FakeTarget(instance.port)) as door:
        data = await door.ask(
            b"PUT /http/f/ HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n"
            b"Content-Length: 99999999\r\n\r\n"
        )
        assert data.startswith(b"HTTP/1.1 413 ")
        assert b"100 Continue" not in data
        assert b"Connection: close" in data
        assert not door.target.released


async def test_upgrade_passes_bytes_both_ways():
    async def serve(reader, writer):
        _, headers, _ = await read_request(reader)
        assert headers[b"upgrade"] == b"websocket"
        assert headers[b"connection"] == b"Upgrade"
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\n\r\nhi"
        )
        while data := await reader.read(65536):
            writer.write(data.upper())

    one = await served(serve)
    async with house(FakeTarget(one.port)) as door:
        reader, writer = await door.connect()
        writer.write(
            b"GET /http/f/ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\n\r\n"
        )
        status, headers, _ = await read_reply(reader)
        assert status == 101
        assert headers[b"upgrade"] == b"websocket"
        assert headers[b"connection"].lower() == b"upgrade"
        assert await reader.readexactly(2) == b"hi"
        for text in (b"abc", b"x" * 300_000):
            writer.write(text)
            assert await within(reader.readexactly(len(text)), 5) == text.upper()
        writer.close()
        await door.settled()
        assert door.target.released[0][1] is None


async def test_upgrade_refused_by_the_instance_is_an_ordinary_reply(instance):
    async with house(FakeTarget(instance.port)) as door:
        reader, writer = await door.connect()
        for _ in range(2):
            writer.write(
                b"GET /http/f/ HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\n"
                b"Upgrade: websocket\r\n\r\n"
            )
            assert (await read_reply(reader))[0] == 200
        writer.close()


async def test_upgrade_nobody_asked_for_is_a_bad_response():
    async def serve(reader, writer):
        await read_request(reader)
        writer.write(b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        await reader.read()

    one = await served(serve)
    async with house(FakeTarget(one.port)) as door:
        reader, writer = await door.connect()
        writer.write(GET)
        assert (await read_reply(reader))[0] == 502
        writer.close()


async def test_server_sent_events_arrive_one_by_one():
    gate: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def serve(reader, writer):
        await read_request(reader)
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        while (event := await gate.get()) is not None:
            writer.write(b"%x\r\n%b\r\n" % (len(event), event))
        writer.write(b"0\r\n\r\n")

    one = await served(serve)
    async with house(FakeTarget(one.port)) as door:
        reader, writer = await door.connect()
        writer.write(GET)
        await read_reply(reader, head_only=True)
        for n in range(5):
            event = b"data: %d\n\n" % n
            gate.put_nowait(event)
            expected = b"%x\r\n%b\r\n" % (len(event), event)
            got = await within(reader.readexactly(len(expected)), 5)
            assert got == expected
        gate.put_nowait(None)
        assert await within(reader.readexactly(5), 5) == b"0\r\n\r\n"
        writer.close()


async def test_cold_start_and_trace_headers_only_where_they_belong(instance):
    cold = ColdStart(total_ms=12.5, queue_ms=1.0, start_ms=11.5)
    async with house(FakeTarget(instance.port, cold=cold)) as door:
        reader, writer = await door.connect()
        writer.write(b"GET /http/f/ HTTP/1.1\r\nHost: h\r\nX-Kindling-Trace: 1\r\n\r\n")
        _, headers, _ = await read_reply(reader)
        assert headers[b"x-kindling-cold-start"] == b"12.500"
        assert b"start-start;dur=11.500" in headers[b"server-timing"]
        writer.write(GET)
        _, headers, _ = await read_reply(reader)
        assert b"x-kindling-cold-start" not in headers
        assert b"server-timing" not in headers
        writer.close()


async def test_host_domain_routes_and_then_nothing_else(instance):
    async with house(FakeTarget(instance.port), domain="fn.test") as door:
        reader, writer = await door.connect()
        writer.write(b"GET /http/f/x HTTP/1.1\r\nHost: f.fn.test:8080\r\n\r\n")
        assert (await read_reply(reader))[2].startswith(b"GET /http/f/x HTTP/1.1\n")
        writer.write(b"POST /invoke/f HTTP/1.1\r\nHost: g.fn.test\r\nContent-Length: 0\r\n\r\n")
        status, _headers, body = await read_reply(reader)
        assert status == 404
        assert b"'g'" in body
        writer.close()


async def test_unknown_door_and_unknown_function_have_our_own_shape(instance):
    async with house(FakeTarget(instance.port)) as door:
        reader, writer = await door.connect()
        for path in (b"/", b"/http/g/x"):
            writer.write(b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % path)
            status, headers, body = await read_reply(reader)
            assert status == 404
            assert b'"error"' in body
            assert headers[b"x-kindling-request-id"] in body
        writer.close()


async def test_unix_socket_serves_too(instance, tmp_path):
    import socket

    path = str(tmp_path / "invoke.sock")
    async with house(FakeTarget(instance.port)) as door:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        await door.gateway.serve([listener])
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(GET)
        assert (await read_reply(reader))[0] == 200
        writer.close()
    assert (tmp_path / "invoke.sock").exists()


async def test_forged_platform_headers_do_not_reach_the_instance(instance):
    async with house(FakeTarget(instance.port)) as door:
        data = await door.ask(
            b"GET /http/f/ HTTP/1.1\r\nHost: h\r\nX-Fc-Control-Path: /invoke\r\n"
            b"Connection: close\r\n\r\n"
        )
        assert b"x-fc-control-path=/http-invoke" in data
        assert b"=/invoke\n" not in data
