"""Event calls, jobs, the enveloped door, and calls made in memory."""

from __future__ import annotations

import asyncio
import json
import math

import pytest

from agent.aio.tasks import spawn
from agent.contracts.base import Reply
from agent.errors import FunctionFailed, NotFound
from agent.model.failure import Failure, FailureKind
from agent.model.records import ColdStart
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
    within,
)

API = b"/2023-03-30/functions/f/invocations"


@pytest.fixture
async def instance():
    return await Instance(echo).start()


def post(path, body, extra=b""):
    return b"POST %b HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n%b\r\n%b" % (
        path,
        len(body),
        extra,
        body,
    )


@pytest.mark.parametrize("path", [API, b"/invoke/f"])
async def test_event_calls_reach_invoke_and_return_the_body(instance, path):
    async with house(FakeTarget(instance.port, kind="event")) as door:
        reader, writer = await door.connect()
        for _ in range(3):
            writer.write(post(path, b"payload", b"X-Fc-Log-Type: Tail\r\n"))
            status, headers, body = await read_reply(reader)
            assert status == 200
            assert body.startswith(b"POST /invoke HTTP/1.1\n")
            assert body.endswith(b"\n\npayload")
            assert headers[b"x-fc-log-result"]
            assert headers[b"x-kindling-request-id"] == headers[b"x-fc-request-id"]
        assert instance.connections == 1


async def test_chunked_events_are_collected_and_sent_with_a_length(instance):
    async with house(FakeTarget(instance.port, kind="event")) as door:
        reader, writer = await door.connect()
        writer.write(
            b"POST /invoke/f HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        assert (await read_reply(reader))[0] == 100
        for piece in (b"ab", b"cd" * 50_000):
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await apart()
        await until(lambda: door.gateway.shared.buffered_bytes >= 100_002)
        assert not door.target.leases
        writer.write(b"0\r\n\r\n")
        _, _, body = await read_reply(reader)
        assert b"content-length=100002" in body


async def test_replies_in_pieces_are_collected():
    async def serve(reader, writer):
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(20):
            writer.write(b"3e8\r\n" + bytes(1000) + b"\r\n")
            await apart()
        writer.write(b"0\r\n\r\n")

    one = await Instance(serve).start()
    async with house(FakeTarget(one.port, kind="event")) as door:
        reader, writer = await door.connect()
        writer.write(post(b"/invoke/f", b""))
        status, headers, body = await read_reply(reader)
        assert (status, len(body)) == (200, 20_000)
        assert headers[b"content-length"] == b"20000"


async def test_an_event_function_refuses_http_and_starts_nothing(instance):
    async with house(FakeTarget(instance.port, kind="event")) as door:
        data = await door.ask(b"GET /http/f/ HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        assert data.startswith(b"HTTP/1.1 400 ")
        assert not door.target.released


async def test_asynchronous_calls_are_refused_and_run_nothing(instance):
    async with house(FakeTarget(instance.port, kind="event")) as door:
        reader, writer = await door.connect()
        writer.write(post(API, b"x", b"X-Fc-Invocation-Type: Async\r\n"))
        assert (await read_reply(reader))[0] == 501
        assert not door.target.released


async def test_the_cold_start_is_told_on_event_calls_too(instance):
    cold = ColdStart(total_ms=3.25)
    async with house(FakeTarget(instance.port, kind="event", cold=cold)) as door:
        reader, writer = await door.connect()
        writer.write(post(b"/invoke/f", b""))
        assert (await read_reply(reader))[1][b"x-kindling-cold-start"] == b"3.250"


# -- jobs


def job_target(**fields):
    return FakeTarget(contract="scf-job", kind="job", **fields)


async def test_jobs_get_their_event_whole_and_http_is_refused():
    async with house(job_target()) as door:
        reader, writer = await door.connect()
        writer.write(post(b"/invoke/f", b'{"n": 1}'))
        status, headers, body = await read_reply(reader)
        assert (status, body, headers[b"x-job"]) == (200, b"done", b"yes")
        assert b"x-kindling-request-id" in headers
        writer.write(b"GET /http/f/ HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await read_reply(reader))[0] == 400
        assert door.target.jobs == [b'{"n": 1}']


async def test_job_events_over_the_limit_start_nothing():
    async with house(job_target()) as door:
        reader, writer = await door.connect()
        writer.write(post(b"/invoke/f", b"x" * 200_000))
        assert 400 <= (await read_reply(reader))[0] < 500
        assert not door.target.jobs


async def test_job_failures_are_told_in_the_contracts_words():
    async def fail(call, event):
        raise FunctionFailed(Failure(FailureKind.NO_CAPACITY, retry_after_s=3))

    target = job_target()
    target.job = fail
    async with house(target) as door:
        reader, writer = await door.connect()
        writer.write(post(b"/invoke/f", b""))
        status, headers, _ = await read_reply(reader)
        assert status >= 400
        assert headers[b"retry-after"] == b"3"


async def test_a_caller_that_goes_away_does_not_stop_a_job():
    started, left, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def run(call, event):
        started.set()
        await left.wait()
        ended.set()
        return Reply(200, [], b"")

    target = job_target()
    target.job = run
    async with house(target) as door:
        _, writer = await door.connect()
        writer.write(post(b"/invoke/f", b""))
        await within(started.wait(), 5)
        writer.close()
        await until(lambda: not door.metrics.calls.connections)
        left.set()
        await within(ended.wait(), 5)
        await door.settled()


# -- the enveloped door


def envelope(**fields):
    body = json.dumps({"FunctionName": "f", **fields}).encode()
    return post(b"/", body, b"X-TC-Action: Invoke\r\n")


async def test_enveloped_calls_are_opened_and_sealed():
    async def serve(reader, writer):
        while True:
            line, _, body = await read_request(reader)
            assert line == b"POST /event-invoke HTTP/1.1"
            writer.write(http(body.upper()))

    one = await Instance(serve).start()
    async with house(FakeTarget(one.port, contract="scf-web", kind="event")) as door:
        reader, writer = await door.connect()
        for text in ('{"a":1}', "x" * 200_000):
            writer.write(envelope(ClientContext=text))
            status, headers, body = await read_reply(reader)
            assert status == 200
            answer = json.loads(body)["Response"]
            assert answer["Result"]["RetMsg"] == text.upper()
            assert headers[b"x-kindling-request-id"].decode() == answer["RequestId"]
        assert one.connections == 1


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (envelope(FunctionName="nobody"), "ResourceNotFound.FunctionName"),
        (envelope(InvocationType="Event"), "UnsupportedOperation"),
        (post(b"/", b"not json", b"X-TC-Action: Invoke\r\n"), "InvalidParameter"),
        (post(b"/", b"{}", b"X-TC-Action: Other\r\n"), "InvalidAction"),
    ],
)
async def test_enveloped_refusals(raw, code):
    async with house(FakeTarget(contract="scf-web", kind="event")) as door:
        reader, writer = await door.connect()
        for _ in range(2):
            writer.write(raw)
            status, _, body = await read_reply(reader)
            assert status == 200
            assert json.loads(body)["Response"]["Error"]["Code"] == code
        assert not door.target.released


async def test_enveloped_calls_of_other_contracts_are_not_found(instance):
    async with house(FakeTarget(instance.port, kind="event")) as door:
        reader, writer = await door.connect()
        writer.write(envelope())
        error = json.loads((await read_reply(reader))[2])["Response"]["Error"]
        assert error["Code"] == "ResourceNotFound.FunctionName"


async def test_enveloped_bodies_are_bounded():
    async with house(FakeTarget(contract="scf-web", kind="event")) as door:
        reader, writer = await door.connect()
        writer.write(
            b"POST / HTTP/1.1\r\nHost: h\r\nX-TC-Action: Invoke\r\nContent-Length: 99999999\r\n\r\n"
        )
        status, _, body = await read_reply(reader)
        assert status == 200
        error = json.loads(body)["Response"]["Error"]
        assert error["Code"] == "RequestSizeLimitExceeded"


async def test_an_enveloped_body_without_room_is_told_in_tencents_words():
    async with house(FakeTarget(contract="scf-web", kind="event")) as door:
        door.gateway.shared.buffered_most_bytes = 10
        reader, writer = await door.connect()
        writer.write(envelope())
        status, headers, body = await read_reply(reader)
        assert status == 200
        assert json.loads(body)["Response"]["Error"]["Code"] == "RequestLimitExceeded"
        assert b"retry-after" in headers


@pytest.mark.parametrize("room", [0, 1])
async def test_an_enveloped_body_is_held_and_counted_until_its_call_has_an_instance(room):
    running, answer = asyncio.Event(), asyncio.Event()

    async def serve(reader, writer):
        await read_request(reader)
        running.set()
        await answer.wait()
        writer.write(http(b"done"))

    one = await Instance(serve).start()
    async with house(FakeTarget(one.port, contract="scf-web", kind="event")) as door:
        shared = door.gateway.shared
        door.target.room = room
        reader, writer = await door.connect()
        writer.write(envelope(ClientContext="x" * 200_000))
        if not room:
            await until(lambda: door.target.queue)
            assert 200_000 < shared.buffered_bytes < 201_000
            door.target.room = 1
            door.target.open()
        await within(running.wait(), 5)
        assert not shared.buffered_bytes
        (client,) = door.gateway._connections
        assert not client.sink._buffer.pieces
        answer.set()
        assert (await read_reply(reader))[0] == 200


async def test_an_enveloped_error_that_a_dialect_cannot_word_is_still_told():
    class Refusing(FakeTarget):
        def acquire(self, waiter):
            # Nobody can write in seconds when to come back.
            raise FunctionFailed(Failure(FailureKind.START_TIMEOUT, retry_after_s=math.inf))

    async with house(Refusing(contract="scf-web", kind="event")) as door:
        reader, writer = await door.connect()
        writer.write(envelope())
        error = json.loads((await read_reply(reader))[2])["Response"]["Error"]
        assert error["Code"] == "InternalError"
        assert error["Message"]


async def test_an_enveloped_caller_that_goes_away_gives_everything_back():
    asked, gate = asyncio.Event(), asyncio.Event()

    async def serve(reader, writer):
        await read_request(reader)
        asked.set()
        await gate.wait()
        writer.write(http(b"{}"))

    one = await Instance(serve).start()
    async with house(FakeTarget(one.port, contract="scf-web", kind="event")) as door:
        half = (envelope()[:-5], lambda: door.gateway.shared.buffered_bytes)
        whole = (envelope(), asked.is_set)
        for raw, came in (half, whole):
            _, writer = await door.connect()
            writer.write(raw)
            await until(came)
            writer.transport.abort()
            await until(lambda: not door.metrics.calls.connections)
            if raw == envelope():  # an event goes on without its caller
                assert door.target.leases
                gate.set()
            await door.settled()
            assert not door.gateway.shared.buffered_bytes


# -- in memory


async def test_calls_in_memory_are_the_same_calls(instance):
    cold = ColdStart(total_ms=5.0)
    async with house(FakeTarget(instance.port, cold=cold)) as door:
        result = await door.gateway.call("f", body=b"event")
        assert result.status == 200
        assert result.body.startswith(b"POST /invoke HTTP/1.1\n")
        assert result.cold_start == cold
        assert result.report is not None
        assert result.failure is None
        assert dict(result.headers)[b"X-Kindling-Request-Id"].decode() == result.request_id
        result = await door.gateway.call(
            door.target,
            kind="http",
            method=b"PUT",
            path=b"/a?b",
            headers=[(b"X-A", b"1")],
            body=b"x",
        )
        assert result.body.startswith(b"PUT /a?b HTTP/1.1\n")
        assert b"x-a=1" in result.body
        assert result.cold_start is None
        with pytest.raises(NotFound):
            await door.gateway.call("nobody")


async def test_failures_in_memory_are_results(instance):
    target = FakeTarget(instance.port, queue=0)
    target.closed = True
    async with house(target) as door:
        result = await door.gateway.call("f")
        assert result.failure.kind is FailureKind.QUEUE_FULL
        assert result.status == 429


async def test_a_cancelled_call_in_memory_gives_everything_back():
    target = FakeTarget()
    target.closed = True
    async with house(target) as door:
        task = spawn("test", door.gateway.call("f"))
        await until(lambda: len(target.queue) == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert target.abandoned == 1


async def test_a_streamed_http_reply_in_memory():
    async def serve(reader, writer):
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(5):
            writer.write(b"3\r\nabc\r\n")
            await apart()
        writer.write(b"0\r\n\r\n")

    one = await Instance(serve).start()
    async with house(FakeTarget(one.port)) as door:
        result = await door.gateway.call("f", kind="http", method=b"GET")
        assert result.body == b"abc" * 5
        assert result.report is not None


async def test_a_job_in_memory():
    async with house(job_target()) as door:
        result = await door.gateway.call("f", body=b"e")
        assert (result.status, result.body) == (200, b"done")
        assert door.target.jobs == [b"e"]
