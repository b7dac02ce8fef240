"""Corners of HTTP where a gateway that only copies bytes would say something untrue."""

from __future__ import annotations

import asyncio
import json
import math

import pytest

from agent.contracts.base import CallReport
from agent.errors import RuntimeUnavailable
from agent.model.failure import FailureKind
from agent.model.records import ColdStart, Meters
from tests.component.function_house import until
from tests.component.gateway_house import (
    GET,
    FakeTarget,
    Instance,
    apart,
    echo,
    failure_kinds,
    house,
    http,
    read_reply,
    read_request,
    served,
)


def says(*answers):
    """Return a server that gives each request the next of these answers."""
    left = list(answers)

    async def serve(reader, writer):
        while left:
            await read_request(reader)
            answer = left.pop(0)
            for piece in answer if isinstance(answer, list) else [answer]:
                writer.write(piece)
                await writer.drain()
                await apart()

    return serve


# -- what callers send


@pytest.mark.parametrize(
    "lines",
    [
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip\r\n",
    ],
)
async def test_a_coding_that_nobody_takes_off_is_refused(lines):
    one = await served(echo)
    async with house(FakeTarget(one.port)) as door:
        raw = b"POST /http/f/ HTTP/1.1\r\nHost: h\r\n" + lines + b"\r\n1\r\na\r\n0\r\n\r\n"
        answer = await door.ask(raw)
        assert answer.split()[1] in (b"400", b"501")
        assert not one.connections


@pytest.mark.parametrize("host", [b"a b", b"a/b", b"a@b", b'"', b"a\xffb"])
async def test_a_host_that_is_none_is_refused(host):
    one = await served(echo)
    async with house(FakeTarget(one.port)) as door:
        answer = await door.ask(b"GET /http/f/ HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"Host" in answer.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize(
    "host", [b"", b"h", b"h:80", b"[::1]:8080", b"a_b.c", b"f%41", b"a!$&'()*+;=~", b" h "]
)
async def test_a_host_that_is_one_passes(host):
    one = await served(echo)
    async with house(FakeTarget(one.port)) as door:
        reader, writer = await door.connect()
        writer.write(b"GET /http/f/ HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
        status, _, body = await read_reply(reader)
        assert status == 200
        assert b"\nhost=%b\n" % (host.strip() or b"localhost:9000") in body


async def test_the_host_of_an_absolute_target_is_what_the_instance_gets():
    one = await served(echo)
    async with house(FakeTarget(one.port, contract="vercel"), domain="fn.test") as door:
        reader, writer = await door.connect()
        for _ in range(3):
            writer.write(b"GET http://f.fn.test:81/a?b HTTP/1.1\r\nHost: other\r\n\r\n")
            _, _, body = await read_reply(reader)
            assert body.startswith(b"GET /a?b HTTP/1.1\n")
            assert b"\nhost=f.fn.test:81\n" in body
            assert b"\nx-forwarded-host=f.fn.test:81\n" in body


async def test_connect_is_no_door():
    one = await served(echo)
    async with house(FakeTarget(one.port), domain="fn.test") as door:
        answer = await door.ask(b"CONNECT f.fn.test:80 HTTP/1.1\r\nHost: f.fn.test\r\n\r\n")
        assert answer.split()[1] in (b"404", b"405", b"501")
        assert not one.connections


async def test_an_upgrade_over_http_1_0_is_not_passed_on():
    one = await served(echo)
    async with house(FakeTarget(one.port)) as door:
        raw = b"GET /http/f/ HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        answer = await door.ask(raw)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"keep-alive" not in answer.lower()
        assert b"upgrade" not in answer.lower()


async def test_close_beside_an_upgrade_that_is_refused_is_honoured():
    one = await served(echo)
    async with house(FakeTarget(one.port)) as door:
        raw = (
            b"GET /http/f/ HTTP/1.1\r\nHost: h\r\nConnection: close, Upgrade\r\n"
            b"Upgrade: websocket\r\n\r\n"
        )
        assert b"\r\nConnection: close\r\n" in await door.ask(raw)


@pytest.mark.parametrize("junk", [b"junk\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"GET / HT"])
async def test_a_refusal_after_a_head_request_has_its_body(junk):
    one = await served(echo)
    async with house(FakeTarget(one.port), head_timeout_s=0.2) as door:
        reader, writer = await door.connect()
        writer.write(GET.replace(b"GET", b"HEAD"))
        await read_reply(reader, head_only=True)
        writer.write(junk)
        status, _, body = await read_reply(reader)
        assert status in (400, 408)
        assert json.loads(body)["error"]["fault"] == "caller"


async def test_the_preface_of_http_2_is_refused():
    async with house() as door:
        answer = await door.ask(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
        assert answer.startswith(b"HTTP/1.1 400 ")


# -- what instances send


STATUS_LINES = {
    "HTTP/1.1 000 x": None,
    "HTTP/1.1 099 x": None,
    "HTTP/1.1 100 Continue": 200,
    "HTTP/1.1 103 Early Hints": 200,
    "HTTP/1.1 199 x": 200,
    "HTTP/1.1 200 OK": 200,
    "HTTP/1.1 200": 200,
    "HTTP/1.0 200 OK": 200,
    "HTTP/1.1 299 x": 299,
    "HTTP/1.1 599 x": 599,
    "HTTP/1.1 600 x": None,
    "HTTP/1.1 999 x": None,
    "HTTP/1.1 1000 x": None,
    "HTTP/1.1 2000 x": None,
    "HTTP/1.1 20": None,
    "HTTP/1.1 20 x": None,
    "HTTP/1.1 +200 x": None,
    "HTTP/1.1 -20 x": None,
    "HTTP/1.1 2x0 x": None,
    "HTTP/1.1 abc x": None,
    "HTTP/1.1  200 x": None,
    "HTTP/1.1 200OK": None,
    "HTTP/1.1 x": None,
    "HTTP/1.1": None,
    "200 OK": None,
}
"""What a function's status line becomes for the caller; None is 502, as the answer is no HTTP.

RFC 9110, section 15: status codes are 100 to 599, and who gets another one takes it for a 5xx. An
informational one is not the answer: the one after it is.
"""


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("line", STATUS_LINES)
async def test_a_status_line_that_is_none_is_relayed(line, known):
    wanted = STATUS_LINES[line]
    answer = http(b"hi").replace(b"HTTP/1.1 200 OK", line.encode())
    if " 1" in line[8:10] and wanted:
        answer = line.encode() + b"\r\n\r\n" + http(b"hi")
    one = await served(says(*[answer] * 4))
    body = b""
    async with house(FakeTarget(one.port)) as door:
        for _ in range(4 if known and wanted else 1):  # heads that come again go another way
            reader, writer = await door.connect()
            writer.write(GET)
            status, _, body = await read_reply(reader)
            assert status == (wanted or 502)
        if wanted:
            assert body == b"hi"
            assert set(failure_kinds(door)) == {None}
        else:
            assert failure_kinds(door) == [FailureKind.BAD_RESPONSE]


async def test_a_status_that_is_none_is_named():
    one = await served(says(http(b"hi", b"000 x")))
    async with house(FakeTarget(one.port)) as door:
        reader, writer = await door.connect()
        writer.write(GET)
        _, _, body = await read_reply(reader)
        assert b"status is 000; HTTP has 100 to 599" in body


@pytest.mark.parametrize("lines", [b"", b"Upgrade: websocket\r\n", b"Connection: Upgrade\r\n"])
@pytest.mark.parametrize("asked", [True, False])
async def test_a_101_that_names_no_protocol_is_a_bad_response(lines, asked):
    one = await served(says(b"HTTP/1.1 101 Switching Protocols\r\n" + lines + b"\r\n"))
    async with house(FakeTarget(one.port)) as door:
        ask = b"Connection: Upgrade\r\nUpgrade: websocket\r\n" if asked else b""
        reader, writer = await door.connect()
        writer.write(GET[:-2] + ask + b"\r\n")
        status, _, _ = await read_reply(reader)
        assert status == 502
        assert failure_kinds(door) == [FailureKind.BAD_RESPONSE]


async def test_a_101_with_too_large_a_head_is_answered():
    large = b"X: %b\r\n" % (b"y" * 9000)
    answer = b"HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" + large + b"\r\n"
    one = await served(says(answer))
    async with house(FakeTarget(one.port)) as door:
        reader, writer = await door.connect()
        writer.write(GET[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        assert (await read_reply(reader))[0] == 502
        assert failure_kinds(door) == [FailureKind.RESPONSE_HEADERS_TOO_LARGE]


async def test_an_event_call_never_switches():
    answer = b"HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nraw"
    one = await served(says(answer))
    async with house(FakeTarget(one.port, kind="event")) as door:
        reader, writer = await door.connect()
        writer.write(
            b"POST /invoke/f HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\n\r\n"
        )
        assert (await read_reply(reader))[0] == 502


async def test_the_cold_start_is_told_on_a_switch_too():
    answer = b"HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    one = await served(says(answer))
    async with house(FakeTarget(one.port, cold=ColdStart(total_ms=7.0))) as door:
        reader, writer = await door.connect()
        writer.write(GET[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        status, headers, _ = await read_reply(reader)
        assert status == 101
        assert b"x-kindling-cold-start" in headers


@pytest.mark.parametrize("coding", [b"gzip, chunked", b"gzip"])
async def test_a_reply_in_a_coding_that_nobody_takes_off_is_a_bad_response(coding):
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: %b\r\n\r\n1\r\na\r\n0\r\n\r\n" % coding
    one = await served(says(answer))
    async with house(FakeTarget(one.port)) as door:
        reader, writer = await door.connect()
        writer.write(GET)
        status, _, body = await read_reply(reader)
        assert status == 502
        assert coding in body
        assert failure_kinds(door) == [FailureKind.BAD_RESPONSE]


async def test_empty_lines_before_a_reply_are_no_head():
    answer = b"\r\n\r\n" + http(b"abc", extra=b"X: y\r\n")
    one = await served(says(*[answer] * 4))
    async with house(FakeTarget(one.port)) as door:
        reader, writer = await door.connect()
        for _ in range(4):
            writer.write(GET)
            assert (await read_reply(reader))[2] == b"abc"


# -- what is counted


@pytest.mark.parametrize(
    "answer",
    [
        http(b"abc", b"500 No"),
        [http(b"abc", b"500 No")[:-2], b"bc"],
        [b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n", b"0\r\n\r\n"],
        b"HTTP/1.1 500 No\r\nConnection: close\r\n\r\nabc",
    ],
)
async def test_a_reply_is_counted_by_its_status_however_it_comes(answer):
    one = await served(says(answer))
    async with house(FakeTarget(one.port)) as door:
        reader, writer = await door.connect()
        writer.write(GET)
        assert (await read_reply(reader))[0] == 500
        await door.settled()
        counters = door.metrics.calls.functions["f"]
        assert counters.classes == [0, 0, 0, 0, 0, 1, 0, 0, 0, 0]


async def test_a_job_call_is_counted_by_the_status_it_was_answered_with():
    target = FakeTarget(contract="scf-job", kind="job")
    async with house(target) as door:
        reader, writer = await door.connect()
        writer.write(b"POST /invoke/f HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}")
        assert (await read_reply(reader))[0] == 200
        assert door.metrics.calls.functions["f"].classes[2] == 1


async def test_counters_of_removed_functions_are_forgotten():
    one = await served(echo)
    async with house(FakeTarget(one.port), FakeTarget(one.port, name="g")) as door:
        reader, writer = await door.connect()
        for path in (GET, GET.replace(b"/f/", b"/g/")):
            writer.write(path)
            await read_reply(reader)
        assert set(door.metrics.calls.functions) == {"f", "g"}
        del door.gateway._catalog.targets["g"]
        door.gateway._catalog.generation += 1
        door.gateway._swept_at = -1e9
        await until(lambda: set(door.metrics.calls.functions) == {"f"})


# -- what the house itself fails at


async def answered_without_a_socket(make):
    """Have a call need a socket that `make` is to give; it must be answered, and given back."""
    one = await Instance(echo).start()
    async with house(FakeTarget(one.port), take_socket=lambda: None) as door:
        door.connector._make_socket = make
        reader, writer = await door.connect()
        writer.write(GET)
        status, _, _ = await read_reply(reader)
        assert status >= 500
        await door.settled()


@pytest.mark.parametrize("error", [RuntimeUnavailable("no thread"), ValueError("a bug")])
async def test_a_socket_that_cannot_be_made_ends_the_call(error):
    async def make():
        raise error

    await answered_without_a_socket(make)


async def test_a_socket_that_never_comes_ends_the_call(monkeypatch):
    monkeypatch.setattr("agent.gateway.exchanges.background.CONNECT_S", 0.2)

    async def make():
        await asyncio.get_running_loop().create_future()

    await answered_without_a_socket(make)


# -- ends


async def test_a_queued_call_that_is_refused_for_its_body_is_granted_no_more():
    one = await served(echo)
    async with house(FakeTarget(one.port)) as door:
        door.gateway.shared.buffered_most_bytes = 100
        door.target.room = 0
        reader, writer = await door.connect()
        writer.write(b"POST /http/f/ HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n")
        await until(lambda: door.target.queue)
        writer.write(b"x" * 500)
        assert (await read_reply(reader))[0] == 503
        assert not door.target.queue
        door.target.room = 1
        door.target.open()
        assert not door.target.leases
        assert not one.connections


async def test_an_empty_line_behind_a_request_is_no_begun_head():
    one = await served(echo)
    async with house(FakeTarget(one.port), head_timeout_s=0.2, idle_timeout_s=60.0) as door:
        reader, writer = await door.connect()
        for ends in (b"\r\n", b"\r\n\r\n"):
            writer.write(GET + ends)
            assert (await read_reply(reader))[0] == 200
            (client,) = door.gateway._connections
            await until(lambda client=client: client._since)  # the clock has looked at it
            client.check(client._since + 30.0, 0.2, 60.0)
            assert not reader.at_eof()
            assert not door.metrics.calls.requests_refused
        writer.write(GET)
        assert (await read_reply(reader))[0] == 200


@pytest.mark.parametrize("contract", ["fc", "scf-web", "vercel"])
async def test_an_instance_cannot_speak_in_our_name(contract):
    forged = b"X-Kindling-Request-Id: forged\r\nx_kindling_cold_start: 1\r\nX-Own: 1\r\n"
    one = await served(says(*[http(b"abc", extra=forged)] * 4))
    async with house(FakeTarget(one.port, contract=contract)) as door:
        reader, writer = await door.connect()
        for _ in range(4):
            writer.write(GET)
            _, headers, _ = await read_reply(reader)
            assert headers[b"x-kindling-request-id"] != b"forged"
            assert headers[b"x-own"] == b"1"
            assert not any(b"cold" in name for name in headers)
            assert b"forged" not in b"".join(headers.values())


@pytest.mark.parametrize("more", [b"HTTP/1.1 200 OK\r\nX-Of: another\r\n", b"H", b"HTTP/1.1 2"])
async def test_the_beginning_of_a_second_reply_spoils_the_connection(more):
    async def serve(reader, writer):
        await read_request(reader)
        writer.write(http(b"ab") + more)
        await reader.read()

    one = await served(serve)
    async with house(FakeTarget(one.port)) as door:
        reader, writer = await door.connect()
        for count in (1, 2, 3, 4):
            writer.write(GET)
            assert (await read_reply(reader))[2] == b"ab"
            await door.settled()
            assert one.connections == count
            assert not door.target.endpoint.idle


UPGRADE = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"


async def test_an_event_passed_on_as_http_asks_for_no_upgrade():
    one = await served(echo)
    async with house(FakeTarget(one.port, contract="vercel")) as door:
        reader, writer = await door.connect()
        for _ in range(3):
            writer.write(b"POST /invoke/f HTTP/1.1\r\nHost: h\r\nX-Own: 1\r\n" + UPGRADE + b"\r\n")
            _, _, body = await read_reply(reader)
            assert b"upgrade" not in body.lower()
            assert b"\nx-own=1\n" in body


@pytest.mark.parametrize("kind", ["http", "event"])
async def test_a_call_in_memory_asks_for_no_upgrade(kind):
    one = await served(echo)
    async with house(FakeTarget(one.port, contract="vercel")) as door:
        headers = [(b"Connection", b"Upgrade"), (b"Upgrade", b"x"), (b"X-Own", b"1")]
        result = await door.gateway.call("f", kind=kind, headers=headers)
        assert b"upgrade" not in result.body.lower()
        assert b"\nx-own=1\n" in result.body


async def test_a_reply_that_a_dialect_cannot_make_is_answered_as_our_fault():
    class Unbillable(FakeTarget):
        def report(self, lease):
            return CallReport(Meters(wall_ms=math.nan))  # nobody can round it up

    one = await served(echo)
    async with house(Unbillable(one.port, kind="event")) as door:
        reader, writer = await door.connect()
        for _ in range(2):
            writer.write(b"POST /invoke/f HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx")
            assert (await read_reply(reader))[0] == 500
        assert len(door.target.released) == 2
