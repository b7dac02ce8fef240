"""The Date of a reply: one in every reply, the function's own where its contract passes it on."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime

import pytest

from agent.gateway.wire import date
from tests.component.gateway_house import (
    GET,
    POST,
    FakeTarget,
    house,
    http,
    read_request,
    served,
    within,
)

OWN = b"Sun, 06 Nov 1994 08:49:37 GMT"
EVENT = b"POST /invoke/f HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx"


def dates(answer):
    """Return the Date values of the last head in an answer."""
    head = answer.partition(b"\r\n\r\n")[0]
    rows = [row.partition(b": ")[::2] for row in head.split(b"\r\n")[1:]]
    return [value for name, value in rows if name.lower() == b"date"]


def is_now(value):
    seen = parsedate_to_datetime(value.decode()).timestamp()
    return value.endswith(b" GMT") and abs(time.time() - seen) < 60


def says(answer):
    async def serve(reader, writer):
        while True:
            await read_request(reader)
            writer.write(answer)

    return serve


async def last_of(door, raw, times):
    """Ask several times on one connection: from the third on head and reply are known."""
    reader, writer = await door.connect()
    for _ in range(times - 1):
        writer.write(raw)
        head = await within(reader.readuntil(b"\r\n\r\n"), 5)
        for row in head.lower().split(b"\r\n"):
            if row.startswith(b"content-length: ") and not raw.startswith(b"HEAD"):
                await within(reader.readexactly(int(row[16:])), 5)
    writer.write(raw)
    return await within(reader.readuntil(b"\r\n\r\n"), 5)


@pytest.mark.parametrize("contract", ["fc", "fc2", "scf-web", "vercel"])
@pytest.mark.parametrize("raw", [GET, POST, EVENT, GET.replace(b"GET", b"HEAD")])
@pytest.mark.parametrize(
    "answer",
    [
        http(b"hello"),
        http(b"", b"204 No Content"),
        b"HTTP/1.1 304 Not Modified\r\n\r\n",
        http(b"no", b"500 Oops"),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
    ],
)
async def test_a_reply_without_a_date_gets_ours(contract, raw, answer):
    if raw.startswith(b"HEAD"):
        answer = answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    one = await served(says(answer))
    kind = "event" if raw == EVENT else "http"
    if contract == "vercel":
        kind = "http"
    async with house(FakeTarget(one.port, contract=contract, kind=kind)) as door:
        for times in (1, 5) if answer.find(b"chunked") < 0 else (1,):
            (value,) = dates(await last_of(door, raw, times))
            assert is_now(value)


@pytest.mark.parametrize("times", [1, 5])
@pytest.mark.parametrize(
    ("contract", "passes"), [("fc", False), ("fc2", False), ("scf-web", True), ("vercel", True)]
)
@pytest.mark.parametrize("name", [b"Date", b"date", b"DATE"])
async def test_the_functions_own_date_stays_where_its_contract_passes_it(
    contract, passes, name, times
):
    one = await served(says(http(b"hello", extra=b"%b: %b\r\n" % (name, OWN))))
    async with house(FakeTarget(one.port, contract=contract)) as door:
        (value,) = dates(await last_of(door, GET, times))
        assert value == OWN if passes else is_now(value)


@pytest.mark.parametrize("times", [1, 5])
async def test_of_two_dates_the_first_passes(times):
    extra = b"Date: %b\r\nX-Own: 1\r\ndate: Mon, 07 Nov 1994 08:49:37 GMT\r\n" % OWN
    one = await served(says(http(b"hello", extra=extra)))
    async with house(FakeTarget(one.port, contract="vercel")) as door:
        answer = await last_of(door, GET, times)
        assert dates(answer) == [OWN]
        assert b"X-Own: 1" in answer


@pytest.mark.parametrize(
    "raw",
    [
        b"junk\r\n\r\n",
        b"GET /nowhere HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
        b"GET /http/none HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
        b"PUT /http/f/ HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999\r\n\r\n",
        b"GET /http/f/ HTTP/1.0\r\n\r\n",
        GET[:-2] + b"Connection: close\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nX-TC-Action: Invoke\r\nX-TC-Version: 2018-04-16\r\n"
        b"Connection: close\r\nContent-Length: 2\r\n\r\n{}",
    ],
)
async def test_what_the_gateway_answers_itself_has_a_date(raw):
    async def dies(reader, writer):
        await read_request(reader)

    one = await served(dies)
    async with house(FakeTarget(one.port)) as door:
        (value,) = dates(await door.ask(raw))
        assert is_now(value)


async def test_a_continue_and_a_switch_have_none_of_ours():
    async def serve(reader, writer):
        line, _, _ = await read_request(reader)
        if line.startswith(b"PUT"):
            writer.write(http(b"ok"))
            return
        writer.write(b"HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        await reader.read()

    one = await served(serve)
    async with house(FakeTarget(one.port)) as door:
        reader, writer = await door.connect()
        writer.write(GET[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        assert dates(await within(reader.readuntil(b"\r\n\r\n"), 5)) == []
        writer.close()
        reader, writer = await door.connect()
        head = b"PUT /http/f/ HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n"
        writer.write(head + b"Content-Length: 1\r\n\r\n")
        assert dates(await within(reader.readuntil(b"\r\n\r\n"), 5)) == []
        writer.write(b"x")
        assert len(dates(await within(reader.readuntil(b"\r\n\r\n"), 5))) == 1


async def test_a_reply_that_is_known_says_the_second_it_goes_out(monkeypatch):
    one = await served(says(http(b"hello")))
    async with house(FakeTarget(one.port)) as door:
        await last_of(door, GET, 5)
        monkeypatch.setattr(date, "time", lambda: 784111777.9)
        assert dates(await last_of(door, GET, 2)) == [OWN]
        monkeypatch.setattr(date, "time", lambda: 784111778.0)
        assert dates(await last_of(door, GET, 2)) == [OWN.replace(b"37", b"38")]
