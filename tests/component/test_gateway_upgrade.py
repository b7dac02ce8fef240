"""Upgrades: what asks for a WebSocket passes, every other request is a plain one.

A function that answers 101 to whatever names a protocol stands behind each row: were the upgrade
passed on, the caller would get a tunnel, in which nobody looks at headers.
"""

from __future__ import annotations

import pytest

from agent.model.failure import FailureKind
from tests.component.gateway_house import (
    GET,
    FakeTarget,
    failure_kinds,
    house,
    http,
    read_reply,
    read_request,
    served,
    within,
)

TUNNEL = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %b\r\n\r\n"
TWO = TUNNEL[:-2] % b"websocket" + b"Upgrade: h2c\r\n\r\n"
FORGED = b"x-fc-account-id: FORGED\r\n\r\n"


async def eager(reader, writer):
    """Switch to whatever is asked for; answer with the request's fields and body otherwise."""
    while True:
        line, headers, body = await read_request(reader)
        if upgrade := headers.get(b"upgrade"):
            writer.write(TUNNEL % upgrade.split(b",")[0].strip() + b"tunnel:")
            while data := await reader.read(65536):
                writer.write(data)
            return
        names = b"\n".join(sorted(headers))
        writer.write(http(line + b"\n" + names + b"\n\n" + body))


def asking(protocols, *, options=b"Upgrade, HTTP2-Settings", line=b"GET /http/f/ HTTP/1.1", n=0):
    """Return a head as Java's HttpClient sends it with every first request, or a variant."""
    lines = [line, b"Host: h", b"HTTP2-Settings: AAMAAABkAAQAAP__"]
    if options:
        lines.append(b"Connection: " + options)
    lines += [b"Upgrade: " + protocol for protocol in protocols]
    if n:
        lines.append(b"Content-Length: %d" % n)
    return b"\r\n".join(lines) + b"\r\n\r\n"


@pytest.mark.parametrize(
    "raw",
    [
        asking([b"h2c"]),
        asking([b"H2C"], options=b"upgrade,http2-settings"),
        asking([b"h2c"], options=b"Upgrade"),
        asking([b"TLS/1.0, HTTP/1.1"]),
        asking([b"echo"]),
        asking([b"xwebsocket"]),
        asking([b"websocket2, h2c"]),
        asking([b"websocket/13"]),
        asking([b"h2c", b"echo"]),
        asking([b"websocket"], options=b""),
        asking([b"websocket"], options=b"keep-alive"),
        asking([b"websocket"], line=b"GET /http/f/ HTTP/1.0"),
        asking([b"h2c"], line=b"GET /http/f/ HTTP/1.0"),
        asking([b"websocket"], line=b"POST /http/f/ HTTP/1.1"),
        asking([b"h2c"], line=b"OPTIONS /http/f/ HTTP/1.1"),
        asking([]),
    ],
)
async def test_a_request_for_another_protocol_is_answered_as_a_plain_one(raw):
    one = await served(eager)
    async with house(FakeTarget(one.port)) as door:
        reader, writer = await door.connect()
        writer.write(raw)
        status, headers, body = await read_reply(reader)
        assert status == 200
        assert b"upgrade" not in headers
        for name in (b"upgrade", b"connection", b"http2-settings"):
            assert name not in body.split(b"\n")
        writer.write(FORGED)  # would be the tunnel's first bytes: here it is no request
        rest = await within(reader.read(), 5)
        assert rest == b"" or rest.startswith(b"HTTP/1.1 400 ")
        assert b"tunnel" not in rest


@pytest.mark.parametrize("method", [b"GET", b"POST", b"PUT"])
@pytest.mark.parametrize("size", [1, 17, 300_000])
async def test_the_body_of_a_request_for_h2c_arrives_whole(method, size):
    body = bytes(n % 251 for n in range(size))
    one = await served(eager)
    async with house(FakeTarget(one.port)) as door:
        reader, writer = await door.connect()
        for _ in range(3):  # the third has a head that is known
            writer.write(asking([b"h2c"], line=method + b" /http/f/ HTTP/1.1", n=size) + body)
            status, headers, answer = await read_reply(reader)
            assert (status, headers.get(b"connection")) == (200, None)
            assert answer.partition(b"\n\n")[2] == body


async def test_a_chunked_body_beside_a_request_for_h2c_arrives_whole():
    raw = asking([b"h2c"], line=b"POST /http/f/ HTTP/1.1")[:-2]
    raw += b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    one = await served(eager)
    async with house(FakeTarget(one.port)) as door:
        reader, writer = await door.connect()
        for _ in range(2):
            writer.write(raw)
            assert (await read_reply(reader))[2].endswith(b"\n\nabcde")


@pytest.mark.parametrize(
    ("protocols", "options"),
    [
        ([b"websocket"], b"Upgrade"),
        ([b"WebSocket"], b"upgrade"),
        ([b"h2c, websocket"], b"Upgrade, HTTP2-Settings"),
        ([b"h2c", b" WEBSOCKET ,echo"], b"keep-alive, UPGRADE"),
    ],
)
async def test_a_websocket_passes_and_nothing_else_with_it(protocols, options):
    seen = []

    async def serve(reader, writer):
        _, headers, _ = await read_request(reader)
        seen.append(headers)
        writer.write(TUNNEL % b"WebSocket")
        while data := await reader.read(65536):
            writer.write(data.upper())

    one = await served(serve)
    async with house(FakeTarget(one.port)) as door:
        reader, writer = await door.connect()
        writer.write(asking(protocols, options=options))
        status, headers, _ = await read_reply(reader)
        assert (status, headers[b"upgrade"]) == (101, b"WebSocket")
        assert (seen[0][b"upgrade"], seen[0][b"connection"]) == (b"websocket", b"Upgrade")
        assert b"http2-settings" not in seen[0]
        writer.write(b"frame")
        assert await within(reader.readexactly(5), 5) == b"FRAME"


@pytest.mark.parametrize(
    ("raw", "answer"),
    [
        (GET, TUNNEL % b"websocket"),
        (GET, TUNNEL % b"h2c"),
        (asking([b"h2c"]), TUNNEL % b"h2c"),
        (asking([b"h2c"]), TUNNEL % b"websocket"),
        (asking([b"websocket"], line=b"POST /http/f/ HTTP/1.1"), TUNNEL % b"websocket"),
        (asking([b"websocket"], n=1) + b"x", TUNNEL % b"websocket"),
        (asking([b"websocket"]), TUNNEL % b"h2c"),
        (asking([b"websocket, h2c"]), TUNNEL % b"h2c"),
        (asking([b"websocket"]), TUNNEL % b"websocket, h2c"),
        (
            asking([b"websocket"]),
            TUNNEL.replace(b"\r\n\r\n", b"\r\nUpgrade: h2c\r\n\r\n") % b"websocket",
        ),
        (asking([b"websocket"]), b"HTTP/1.1 101 Switching Protocols\r\n\r\n"),
    ],
)
async def test_a_101_that_was_not_asked_for_is_a_broken_reply(raw, answer):
    async def serve(reader, writer):
        await read_request(reader)
        writer.write(answer + b"tunnel")
        await reader.read()

    one = await served(serve)
    async with house(FakeTarget(one.port)) as door:
        reader, writer = await door.connect()
        writer.write(raw)
        status, _, body = await read_reply(reader)
        assert status == 502
        assert b"101" in body
        await door.settled()
        assert failure_kinds(door) == [FailureKind.BAD_RESPONSE]


@pytest.mark.parametrize(
    "raw",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
        b"GET /http/f/ HTTP/2.0\r\nHost: h\r\n\r\n",
        b"CONNECT f:80 HTTP/1.1\r\nHost: f:80\r\n\r\n" + FORGED,
        b"CONNECT /http/f/ HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\n"
        b"Upgrade: websocket\r\n\r\n" + FORGED,
    ],
)
async def test_no_other_way_opens_a_tunnel(raw):
    one = await served(eager)
    async with house(FakeTarget(one.port), domain="fn.test") as door:
        answer = await door.ask(raw)
        assert answer.split()[1] in (b"400", b"404", b"405", b"501", b"505")
        assert answer.count(b"HTTP/1.1 ") == 1
        assert b"\r\nConnection: close\r\n" in answer
        assert not one.connections
