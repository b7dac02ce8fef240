"""Heads that come again: what is remembered must never change what is said."""

from __future__ import annotations

import os
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.contracts.base import Call, CallReport, NodeFacts
from agent.contracts.bind import bind
from agent.core.counters import FunctionCounters
from agent.gateway.exchanges.shared import Callee
from agent.gateway.exchanges.template import reply_template, template
from agent.gateway.wire.date import framed_head
from agent.gateway.wire.head import KEPT_HEAD_BYTES, KEPT_HEADS, HeadCache, ReplyHead
from agent.model.records import FunctionVersion, Meters
from tests.component.function_house import until
from tests.component.gateway_house import (
    FakeTarget,
    Instance,
    apart,
    echo,
    house,
    http,
    read_reply,
    read_request,
    spec,
    within,
)

GET = b"GET /http/f/a HTTP/1.1\r\nHost: h\r\nX-Own: 1\r\n\r\n"


async def ask(reader, writer, raw):
    writer.write(raw)
    return await read_reply(reader)


def lines_of(body):
    return dict(line.partition(b"=")[::2] for line in body.split(b"\n") if b"=" in line)


async def test_repeated_calls_get_ids_and_traces_of_their_own():
    one = await Instance(echo).start()
    async with house(FakeTarget(one.port)) as door:
        reader, writer = await door.connect()
        answers = [await ask(reader, writer, GET) for _ in range(8)]
        seen = [lines_of(body) for _, _, body in answers]
        ids = [headers[b"x-kindling-request-id"] for _, headers, _ in answers]
        assert len(set(ids)) == 8
        for request_id, (_, headers, _), lines in zip(ids, answers, seen, strict=True):
            assert headers[b"x-fc-request-id"] == lines[b"x-fc-request-id"] == request_id
            trace = request_id.replace(b"-", b"")[-32:].rjust(32, b"0")
            assert lines[b"traceparent"] == b"00-%b-%b-01" % (trace, trace[-16:])
            assert lines[b"x-own"] == b"1"
        varying = {b"x-fc-request-id", b"traceparent", b"tracestate"}
        fixed = [{k: v for k, v in lines.items() if k not in varying} for lines in seen]
        assert all(lines == fixed[0] for lines in fixed)
        assert len({tuple(sorted(headers)) for _, headers, _ in answers}) == 1


async def test_a_callers_own_trace_is_passed_on_every_time():
    one = await Instance(echo).start()
    raw = GET[:-2] + b"traceparent: 00-aaaa-bb-01\r\n\r\n"
    async with house(FakeTarget(one.port)) as door:
        reader, writer = await door.connect()
        for _ in range(4):
            _, _, body = await ask(reader, writer, raw)
            assert b"traceparent=00-aaaa-bb-01\n" in body


async def test_a_new_version_gets_the_calls_at_once():
    first, second = await Instance(echo).start(), await Instance(echo).start()
    async with house(FakeTarget(first.port), FakeTarget(second.port, name="g")) as door:
        reader, writer = await door.connect()
        for _ in range(4):
            await ask(reader, writer, GET)
        door.gateway._catalog.targets["f"] = door.targets[1]
        door.gateway._catalog.generation += 1
        _, _, body = await ask(reader, writer, GET)
        assert b"x-fc-function-name=g\n" in body
        assert len(door.targets[1].released) == 1
        del door.gateway._catalog.targets["f"]
        door.gateway._catalog.generation += 1
        assert (await ask(reader, writer, GET))[0] == 404


@pytest.mark.parametrize("newer_first", [True, False])
async def test_a_call_that_waited_while_a_version_came_is_told_its_own_version(newer_first):
    first, second = await Instance(echo).start(), await Instance(echo).start()
    async with house(FakeTarget(first.port), FakeTarget(second.port, name="g")) as door:
        older, newer = door.targets
        early, late = await door.connect(), await door.connect()
        for _ in range(4):
            await ask(late[0], late[1], GET)
        older.room = 0
        early[1].write(GET)
        await until(lambda: older.queue)
        door.gateway._catalog.targets["f"] = newer
        door.gateway._catalog.generation += 1

        async def ask_newer():
            for _ in range(2):
                _, _, body = await ask(late[0], late[1], GET)
                assert b"x-fc-function-name=g\n" in body

        if newer_first:
            await ask_newer()
        older.room = 1
        older.open()
        _, _, body = await read_reply(early[0])
        assert b"x-fc-function-name=f\n" in body
        await ask_newer()


async def test_a_function_that_becomes_an_event_function_refuses_http_calls():
    one = await Instance(echo).start()
    event = FakeTarget(one.port, name="g", kind="event")
    async with house(FakeTarget(one.port), event) as door:
        reader, writer = await door.connect()
        for _ in range(4):
            assert (await ask(reader, writer, GET))[0] == 200
        door.gateway._catalog.targets["f"] = event
        door.gateway._catalog.generation += 1
        for _ in range(2):
            assert (await ask(reader, writer, GET))[0] == 400
        assert not event.released


async def test_repeated_posts_keep_their_own_bodies():
    one = await Instance(echo).start()
    async with house(FakeTarget(one.port)) as door:
        reader, writer = await door.connect()
        head = b"POST /http/f/ HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\n"
        for n in range(6):
            writer.write(head)
            if n % 2:
                await apart()
            _, _, body = await ask(reader, writer, b"%04d" % n)
            assert body.endswith(b"\n\n%04d" % n)


@pytest.mark.parametrize("cut", [0, 1, 5])
async def test_known_reply_heads_with_bodies_in_pieces(cut):
    turn = 0

    async def serve(reader, writer):
        nonlocal turn
        while True:
            await read_request(reader)
            raw = http(b"%05d" % turn)
            turn += 1
            stop = len(raw) - 5 + cut
            writer.write(raw[:stop])
            await apart()
            writer.write(raw[stop:])

    one = await Instance(serve).start()
    async with house(FakeTarget(one.port)) as door:
        reader, writer = await door.connect()
        for n in range(6):
            status, _, body = await ask(reader, writer, GET)
            assert (status, body) == (200, b"%05d" % n)
        assert one.connections == 1


async def test_known_reply_heads_do_not_hide_what_goes_wrong():
    turn = 0

    async def serve(reader, writer):
        nonlocal turn
        while True:
            await read_request(reader)
            turn += 1
            raw = http(b"hello")
            if turn == 5:
                raw += b"more than was announced"
            writer.write(raw[:-2] if turn == 7 else raw)
            if turn == 7:
                return

    one = await Instance(serve).start()
    async with house(FakeTarget(one.port)) as door:
        reader, writer = await door.connect()
        for _ in range(6):
            assert (await ask(reader, writer, GET))[2] == b"hello"
        assert one.connections == 2
        writer.write(GET)
        assert (await within(reader.read(), 5)).endswith(b"\r\n\r\nhel")
        await door.settled()
        assert door.target.released[-1][1] is not None


async def test_kept_heads_say_close_when_the_gateway_drains():
    one = await Instance(echo).start()
    async with house(FakeTarget(one.port)) as door:
        reader, writer = await door.connect()
        for _ in range(4):
            await ask(reader, writer, GET)
        door.gateway.draining = True
        _, headers, _ = await ask(reader, writer, GET)
        assert headers[b"connection"] == b"close"
        assert await within(reader.read(), 5) == b""


async def test_no_head_is_learnt_from_head_not_modified_or_informational_replies():
    async def serve(reader, writer):
        while True:
            line, _, _ = await read_request(reader)
            if line.startswith(b"HEAD"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
            elif b"304" in line:
                writer.write(b"HTTP/1.1 304 X\r\nContent-Length: 9\r\n\r\n")
            else:
                writer.write(b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n" + http(b"body"))

    one = await Instance(serve).start()
    async with house(FakeTarget(one.port)) as door:
        reader, writer = await door.connect()
        for _ in range(4):
            writer.write(b"HEAD /http/f/ HTTP/1.1\r\nHost: h\r\n\r\n")
            assert (await read_reply(reader, head_only=True))[0] == 200
            raw = b"GET /http/f/304 HTTP/1.1\r\nHost: h\r\n\r\n"
            assert (await ask(reader, writer, raw))[0] == 304
            assert (await ask(reader, writer, GET))[2] == b"body"
        assert one.connections == 1


def test_heads_are_kept_at_their_second_coming_and_bounded():
    cache = HeadCache()
    cache.learn(b"a", ReplyHead())
    assert cache.get(b"a") is None
    cache.learn(b"a", ReplyHead())
    learned = cache.get(b"a")
    assert learned is not None
    assert learned.kept
    for _ in range(2):
        cache.learn(b"x" * (KEPT_HEAD_BYTES + 1), ReplyHead())
    assert cache.get(b"x" * (KEPT_HEAD_BYTES + 1)) is None
    for n in range(3 * KEPT_HEADS):
        for _ in range(2):
            cache.learn(b"%d" % n, ReplyHead())
    assert len(cache._heads) <= KEPT_HEADS
    cache.clear()
    assert cache.get(b"a") is None


# -- templates of every contract

CONTRACTS = [("fc", "http"), ("fc2", "http"), ("scf-web", "http"), ("vercel", "http")]
HEADERS = [(b"Host", b"h"), (b"Accept", b"*/*"), (b"X-Fc-Forged", b"1"), (b"A", b"100%b%%")]


def callee_of(contract, kind):
    record = FunctionVersion(
        "f", 1, spec(contract=contract, kind=kind), None, "Ready", created_ns=0
    )

    class Target:
        version = record
        contract = bind(record, NodeFacts(region="cn-%b"))
        acquire = release = None

    return Callee(cast("Any", Target), FunctionCounters("f"), {})


def random():
    return os.urandom(16)


def call_of(callee, kind, remote="10.0.0.1"):
    request_id = callee.new_request_id(random())
    return Call(request_id, kind, b"POST", b"/p%20?q", HEADERS, remote, "h", instance="i-1")


def fields_of(head):
    """A head's lines in any order, those of our own Date by name: its second may pass."""
    assert head.endswith(b"\r\n\r\n")
    return sorted(b"Date" if b" GMT" in line else line for line in head.split(b"\r\n"))


@pytest.mark.parametrize(("contract", "kind"), CONTRACTS)
def test_ready_made_replies_are_what_the_contract_says(contract, kind):
    callee = callee_of(contract, kind)
    head = ReplyHead()
    head.status, head.length = 200, 5
    head.headers = [(b"Content-Type", b"a/b"), (b"Date", b"d"), (b"X-P", b"%b 100%")]
    made = reply_template(callee, head, call_of(callee, kind), random)
    assert made is not None
    for _ in range(3):
        call = call_of(callee, kind)
        headers = callee.http_reply(call, 200, head.headers, CallReport(Meters()))
        headers.append((b"X-Kindling-Request-Id", call.request_id.encode()))
        wanted = framed_head(200, headers, 5, False, True, False)
        assert fields_of(made(call.request_id.encode())) == fields_of(wanted)


@given(
    parts=st.lists(st.sampled_from([b"<id>", b"%", b"%b", b"abc", b"\r\n"]), max_size=12),
    digits=st.binary(min_size=8, max_size=8),
)
def test_templates_give_back_any_text_with_any_id(parts, digits):
    first, second, third = "11111111", "22222222", digits.hex()

    def render(request_id):
        return b"".join(parts).replace(b"<id>", request_id.encode())

    made = template(render(first), first, render(second), second)
    if made is not None:
        assert made(third.encode()) == render(third)


def test_what_depends_on_more_than_the_id_gets_no_template():
    assert template(b"a 1 x", "1", b"a 2 y", "2") is None
    assert template(b"same", "1", b"other", "2") is None
