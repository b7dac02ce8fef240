"""Replies that come before the request's body is read: the caller must get to read them.

Functions and callers are plain sockets in threads of their own, so that they really close while
bytes are on their way. Some callers look for a reply while they send, others send all first.
"""

from __future__ import annotations

import asyncio
import select
import socket
import struct
import threading
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from agent.errors import FunctionFailed
from agent.gateway.wire.closing import LINGER_MOST_S
from agent.gateway.wire.roundtrip import RoundTrip
from agent.gateway.wire.upstream import UpstreamConnector
from agent.model.failure import Failure, FailureKind
from tests.component.function_house import until
from tests.component.gateway_house import (
    FakeTarget,
    apart,
    failure_kinds,
    house,
    read_reply,
    read_request,
    served,
    tcp_socket,
    within,
)

PATIENCE_S = 20.0
SIZE = 16 << 20
"""More than the sockets on the way hold (tcp_wmem and tcp_rmem: 4 and 6 MiB at most)."""
PIECE = b"x" * 65536
BIG = b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig"
HEAD = b"POST /http/f/ HTTP/1.1\r\nHost: h\r\nConnection: close\r\n"  # some send it all in time
COUNTED = HEAD + b"Content-Length: %d\r\n\r\n" % SIZE
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
NEXT = b"GET /http/f/never HTTP/1.1\r\nHost: h\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
TCP_CLOSE = 7


def large(size):
    return b"HTTP/1.1 413 X\r\nContent-Length: %d\r\n\r\n%b" % (size, b"y" * size)


class Early:
    """A function that reads a head and `read` bytes more, answers and closes.

    A `polite` one reads on until nothing comes; of others the kernel drops what is unsent.
    """

    def __init__(self, answer, read=0, *, reset=False, polite=False):
        self.answer, self.read, self.reset, self.polite = answer, read, reset, polite
        self.heads: list[bytes] = []
        self.closed = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self):
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with sock:
                self._answer(sock)
            self.closed.set()

    def _answer(self, sock):
        data = b""
        while b"\r\n\r\n" not in data:
            piece = sock.recv(4096)
            if not piece:
                return
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        self.heads.append(head)
        while len(body) < self.read and (piece := sock.recv(4096)):
            body += piece
        sock.sendall(self.answer)
        if self.polite:
            sock.shutdown(socket.SHUT_WR)
            with suppress(ConnectionError):
                while sock.recv(65536):
                    pass
        if self.reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@contextmanager
def caller(port):
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as sock:
        yield sock


def rest_of(sock):
    data = b""
    while piece := sock.recv(65536):
        data += piece
    return data


def upload(port, head, *, looks=True, frame=b"%b", end=b"", half_close=False):
    """Send a body of SIZE, and return what comes; one who looks stops sending at a reply."""
    with caller(port) as sock:
        sock.sendall(head)
        if b"Expect: " in head:  # no reply yet that would stop who looks for one
            assert sock.recv(len(CONTINUE), socket.MSG_WAITALL) == CONTINUE
        for _ in range(SIZE // len(PIECE)):
            if looks and select.select([sock], [], [], 0)[0]:
                break
            sock.sendall(frame % PIECE)
        else:
            sock.sendall(end)
        if half_close:
            sock.shutdown(socket.SHUT_WR)
        return rest_of(sock)


CALLERS: dict[str, dict[str, Any]] = {
    "looks": {"head": COUNTED},
    "sends all first": {"head": COUNTED, "looks": False},
    "chunks": {"head": CHUNKED, "frame": b"10000\r\n%b\r\n", "end": b"0\r\n\r\n"},
    "chunks, all first": {
        "head": CHUNKED,
        "frame": b"10000\r\n%b\r\n",
        "end": b"0\r\n\r\n",
        "looks": False,
    },
    "stops and half-closes": {"head": COUNTED, "half_close": True},
    "half-closes behind all": {"head": COUNTED, "half_close": True, "looks": False},
    "pipelines": {"head": COUNTED, "end": NEXT, "looks": False},
    "expects": {"head": COUNTED[:-2] + b"Expect: 100-continue\r\n\r\n"},
    "in HTTP/1.0": {"head": COUNTED.replace(b"HTTP/1.1", b"HTTP/1.0")},
}


@pytest.mark.parametrize("who", CALLERS)
@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (BIG, b"big"),
        (BIG.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), b"big"),
        (b"HTTP/1.1 401 Who\r\nWWW-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n", b""),
        (b"HTTP/1.1 307 There\r\nLocation: /there\r\nContent-Length: 2\r\n\r\nno", b"no"),
        (b"HTTP/1.1 413 X\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nbig\r\n0\r\n\r\n", b"big"),
        (b"HTTP/1.1 413 X\r\nConnection: close\r\n\r\nbig", b"big"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine", b"fine"),
        (large(300_000), b"y" * 300_000),
    ],
)
async def test_an_early_reply_reaches_the_caller(answer, body, who):
    with Early(answer, read=100_000, polite=len(answer) > 65536) as one:
        async with house(FakeTarget(one.port)) as door:
            if one.polite and "half-closes" in who:  # its whole body gets through: then it is gone
                return
            for turn in range(3):
                got = await asyncio.to_thread(upload, door.port, **CALLERS[who])
                head, _, rest = got.partition(b"\r\n\r\n")
                assert head.startswith(answer[:12]), got[:200]
                assert b"\r\nConnection: close" in head
                if b"chunked" in head.lower():
                    assert rest.endswith(b"0\r\n\r\n")
                    assert body in rest.replace(b"\r\n", b"")
                else:
                    assert rest == body
                await door.settled()
                assert len(one.heads) == turn + 1
            assert set(failure_kinds(door)) == {None}
            assert not any(b"never" in head for head in one.heads)


async def test_a_reply_is_read_though_a_write_meets_the_reset_first():
    with Early(BIG, read=1) as one:
        connector = UpstreamConnector(tcp_socket)
        sock = tcp_socket()
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", one.port))
        conn = await connector.adopt(sock)
        trip = RoundTrip(asyncio.get_running_loop())
        conn.begin(trip, False)
        conn.write(COUNTED + PIECE * 40)
        assert one.closed.wait(PATIENCE_S)  # nothing runs meanwhile: what came is not read yet
        while sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != TCP_CLOSE:
            pass
        conn.write(PIECE * 40)
        status, _, body = await within(trip.answer, PATIENCE_S)
        assert (status, body) == (413, b"big")
        await until(lambda: not connector.connections)


@pytest.mark.parametrize("who", ["looks", "sends all first", "chunks", "half-closes behind all"])
@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 413", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n"]
)
@pytest.mark.parametrize("reset", [False, True])
async def test_an_upload_to_a_function_that_dies_is_told_so(answer, who, reset):
    with Early(answer, read=100_000, reset=reset) as one:
        async with house(FakeTarget(one.port)) as door:
            door.target.explanation = Failure(FailureKind.BAD_RESPONSE, "it broke off")
            for _ in range(3):
                got = await asyncio.to_thread(upload, door.port, **CALLERS[who])
                assert got.startswith(b"HTTP/1.1 502 "), got[:200]
                assert b"it broke off" in got
            await door.settled()
            assert set(failure_kinds(door)) == {FailureKind.BAD_RESPONSE}


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 413 X\r\nContent-Length: 99\r\n\r\nhalf",
        b"HTTP/1.1 413 X\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nhalf",
    ],
)
async def test_an_early_reply_that_breaks_off_is_not_passed_as_whole(answer):
    with Early(answer, read=100_000) as one:
        async with house(FakeTarget(one.port)) as door:
            got = await asyncio.to_thread(upload, door.port, **CALLERS["looks"])
            assert got.startswith(answer[:12])
            assert b"half" in got
            assert not got.endswith(b"0\r\n\r\n")
            await door.settled()
            assert None not in failure_kinds(door)


REFUSALS = {
    b"404": HEAD.replace(b"/http/f", b"/nowhere"),
    b"413": HEAD,
    b"429": HEAD.replace(b"/f/", b"/full/"),
}


@pytest.mark.parametrize("status", REFUSALS)
@pytest.mark.parametrize("looks", [True, False])
@pytest.mark.parametrize("chunks", [True, False])
async def test_our_own_refusal_reaches_a_caller_who_is_still_sending(
    status, looks, chunks, monkeypatch
):
    async def reads(reader, writer):
        await read_request(reader)

    one = await served(reads)
    full = FakeTarget(one.port, name="full", queue=0)
    full.room = 0
    async with house(FakeTarget(one.port), full) as door:
        for target in door.targets:
            target.contract.limits = type(target.contract.limits)(1 << 20, 0, 0, 0, 0, 1.0, 9.0)
        size = SIZE if status != b"429" or chunks else 1 << 20
        how = b"Transfer-Encoding: chunked" if chunks else b"Content-Length: %d" % size
        who = {"frame": b"10000\r\n%b\r\n", "end": b"0\r\n\r\n"} if chunks else {}
        head = REFUSALS[status] + how + b"\r\n\r\n"
        got = await asyncio.to_thread(upload, door.port, head, looks=looks, **who)
        assert got.startswith(b"HTTP/1.1 " + status), got[:200]
        assert b"\r\nConnection: close\r\n" in got
        assert b"HTTP/1.1" not in got[9:]


async def test_who_got_an_early_head_may_stop_sending_and_read_the_rest():
    gate = asyncio.Event()

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 X\r\nContent-Length: 8\r\n\r\nhalf")
        await gate.wait()
        writer.write(b"rest")

    one = await served(serve)
    async with house(FakeTarget(one.port)) as door:
        reader, writer = await door.connect()
        writer.write(COUNTED + PIECE)
        assert (await within(reader.readuntil(b"half"), 5)).startswith(b"HTTP/1.1 413 ")
        writer.write_eof()
        await apart()  # the end of the upload is seen before the rest of the reply
        gate.set()
        assert await within(reader.read(), 5) == b"rest"
        await door.settled()
        assert failure_kinds(door) == [None]


async def test_a_refused_caller_who_never_ends_is_cut():
    async with house(head_timeout_s=0.2) as door:
        reader, writer = await door.connect()
        writer.write(b"POST /nowhere HTTP/1.1\r\nHost: h\r\nContent-Length: 999999\r\n\r\n")
        assert (await read_reply(reader))[0] == 404
        (client,) = door.gateway._connections
        client._closing._lingers_until -= LINGER_MOST_S - 0.3

        def cut():
            writer.write(b"x")
            return not door.gateway.connections

        await until(cut)


async def test_a_hook_that_is_answered_early_has_its_answer():
    with Early(BIG) as one:
        connector = UpstreamConnector(tcp_socket)
        loop = asyncio.get_running_loop()
        conn = await connector.open("127.0.0.1", one.port, loop.time() + 5)
        try:
            answer = await conn.roundtrip(COUNTED, PIECE * 40, loop.time() + PATIENCE_S)
        except FunctionFailed as failed:  # pragma: no cover
            pytest.fail(failed.message)
        assert answer[::2] == (413, b"big")
        await until(lambda: not connector.connections)
