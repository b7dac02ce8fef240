"""The operators' door and the metrics it shows; hooks over an adopted connection."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time

import pytest

from agent.errors import FunctionFailed
from agent.gateway.doors.admin import AdminDoor
from agent.telemetry.metrics import LAG_PERIOD_S, AgentMetrics, LoopLag
from tests.component.function_house import until
from tests.component.gateway_house import (
    FakeTarget,
    Instance,
    echo,
    house,
    http,
    read_reply,
    read_request,
)


class Facts:
    why: str | None = None

    def unready(self):
        return self.why

    async def state(self):
        return {"calls": [], "odd": {1, 2}.__class__}

    def status(self):
        return [("node", "<b>n</b>")]


@pytest.fixture
async def doors(tmp_path):
    facts, metrics = Facts(), AgentMetrics()
    door = AdminDoor(facts, metrics)
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(tmp_path / "admin.sock"))
    unix.listen()
    tcp = socket.create_server(("127.0.0.1", 0))
    port = tcp.getsockname()[1]
    await door.serve(unix=unix, tcp=tcp)
    yield facts, metrics, str(tmp_path / "admin.sock"), port
    await door.close()


async def get(where, path):
    opened = (
        asyncio.open_unix_connection(where)
        if isinstance(where, str)
        else asyncio.open_connection("127.0.0.1", where)
    )
    reader, writer = await opened
    writer.write(b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % path)
    status, _, body = await read_reply(reader)
    writer.transport.abort()
    return status, body


async def test_the_unix_socket_shows_everything(doors):
    facts, _, path, _ = doors
    assert await get(path, b"/healthz") == (200, b"ok\n")
    assert await get(path, b"/readyz") == (200, b"ready\n")
    facts.why = "containerd does not answer"
    assert await get(path, b"/readyz") == (503, b"containerd does not answer\n")
    status, body = await get(path, b"/debug/state")
    assert status == 200
    assert json.loads(body)["calls"] == []
    status, body = await get(path, b"/")
    assert b"&lt;b&gt;n&lt;/b&gt;" in body


async def test_tcp_shows_health_and_metrics_only(doors):
    _, _, _, port = doors
    assert (await get(port, b"/healthz"))[0] == 200
    assert (await get(port, b"/metrics"))[0] == 200
    for path in (b"/readyz", b"/debug/state", b"/"):
        assert (await get(port, path))[0] == 404


async def test_calls_are_counted():
    one = await Instance(echo).start()
    async with house(FakeTarget(one.port)) as door:
        reader, writer = await door.connect()
        for path in (b"/http/f/", b"/http/f/", b"/nowhere"):
            writer.write(b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % path)
            await read_reply(reader)
        text = (await door.metrics.render()).decode()
        for line in (
            'kindling_calls_total{class="2xx",function="f"} 2.0',
            'kindling_call_duration_seconds_count{function="f"} 2.0',
            'kindling_calls_inflight{function="f"} 0.0',
            'kindling_requests_refused_total{status="404"} 1.0',
            "kindling_connections 1.0",
            "kindling_upstream_connects_total 1.0",
        ):
            assert line in text


async def test_gauges_counters_and_histograms_of_other_rooms():
    metrics = AgentMetrics()
    metrics.gauge("a_gauge", "text", lambda: 2.5)
    metrics.counter("a_count", "text", lambda: {("x",): 1.0, ("y",): 2.0}, labels=["kind"])
    metrics.histogram("a_time", "text", ["kind"]).labels("x").observe(0.01)
    text = (await metrics.render()).decode()
    assert "a_gauge 2.5" in text
    assert 'a_count_total{kind="y"} 2.0' in text
    assert 'a_time_count{kind="x"} 1.0' in text


async def lag_in(metrics):
    """The loop's lag as a scrape shows it."""
    (line,) = re.findall(
        rb"^kindling_loop_lag_seconds (.*)$", (await metrics.render()), re.MULTILINE
    )
    return float(line)


async def test_a_blocked_loop_does_not_show_in_the_metrics():
    metrics = AgentMetrics()
    assert await lag_in(metrics) == 0.0
    metrics.lag.start()
    blocked_s = 3 * LAG_PERIOD_S
    time.sleep(blocked_s)  # sleeps: this is what a blocked loop is
    # A timer was due within one period; until the loop has run it, it is as late as it is by now.
    assert await lag_in(metrics) >= blocked_s - LAG_PERIOD_S
    ticked = asyncio.Event()
    asyncio.get_running_loop().call_later(LAG_PERIOD_S, ticked.set)
    await ticked.wait()
    metrics.lag.stop()
    for _ in range(2):  # a reader takes nothing away from the next one
        assert await lag_in(metrics) >= blocked_s - LAG_PERIOD_S


async def test_an_old_lag_is_forgotten_in_the_end(monkeypatch):
    monkeypatch.setattr("agent.telemetry.metrics.MINUTE_S", 0.0)
    lag = LoopLag()
    lag.start()
    time.sleep(4 * LAG_PERIOD_S)  # sleeps: this is what a blocked loop is
    assert lag.worst_s() >= 3 * LAG_PERIOD_S
    await until(lambda: lag.worst_s() < 3 * LAG_PERIOD_S)
    lag.stop()


async def test_what_measures_the_lag_stops_with_the_agent():
    lag = LoopLag()
    lag.start()
    lag.stop()
    lag.stop()
    assert lag.worst_s() == 0.0
    assert lag._timer is None


# -- hooks


async def adopted(door, instance):
    sock = socket.create_connection(("127.0.0.1", instance.port))
    sock.setblocking(False)
    return await door.connector.adopt(sock)


def deadline(seconds):
    return asyncio.get_running_loop().time() + seconds


async def test_an_adopted_connection_makes_hooks_and_then_serves_calls():
    one = await Instance(echo).start()
    async with house(FakeTarget(one.port)) as door:
        conn = await adopted(door, one)
        for _ in range(2):
            status, _, body = await conn.roundtrip(
                b"POST /initialize HTTP/1.1\r\nContent-Length: 2\r\n\r\n", b"hi", deadline(5)
            )
            assert status == 200
            assert body.endswith(b"\n\nhi")
        assert conn.usable
        door.target.endpoint.idle.append(conn)
        reader, writer = await door.connect()
        writer.write(b"GET /http/f/ HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await read_reply(reader))[0] == 200
        assert one.connections == 1
        conn.close()
        conn.close()
        assert not conn.usable


@pytest.mark.parametrize(
    "answer", [b"", b"nonsense\r\n\r\n", http(bytes(2 << 20)), b"HTTP/1.1 200 OK\r\nContent-"]
)
async def test_hooks_that_fail_say_so(answer):
    async def serve(reader, writer):
        await read_request(reader)
        writer.write(answer)
        await writer.drain()

    one = await Instance(serve).start()
    async with house(FakeTarget(one.port)) as door:
        conn = await adopted(door, one)
        with pytest.raises(FunctionFailed):
            await conn.roundtrip(b"GET / HTTP/1.1\r\n\r\n", b"", deadline(5))
        assert not conn.usable
        assert not door.connector.connections


async def test_hooks_that_take_too_long_time_out():
    async def serve(reader, writer):
        await reader.read()

    one = await Instance(serve).start()
    async with house(FakeTarget(one.port)) as door:
        conn = await adopted(door, one)
        with pytest.raises(TimeoutError):
            await conn.roundtrip(b"GET / HTTP/1.1\r\n\r\n", b"", deadline(0.1))
        assert not conn.usable
