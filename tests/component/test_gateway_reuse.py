"""Kept connections that the function closes: no call fails for one, and none is made twice.

Functions are plain servers in threads or processes of their own; each writes down what it was asked
to do. Whether the gateway's loop has been told of a close is decided by not letting it run.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import struct
import subprocess
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from agent.instances.keeping import Keeping
from agent.model.failure import Failure, FailureKind
from tests.component.function_house import until
from tests.component.gateway_house import GET, FakeTarget, house, read_reply, within

IDLE_S = 0.05
BESIDE = [0.045 + 0.001 * (n % 11) for n in range(33)]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
TCP_ESTABLISHED = 1


class Server:
    """A function; `turn(sock, number)` serves one request of a connection, False ends it."""

    def __init__(self, turn):
        self.turn = turn
        self.done: list[bytes] = []
        self.connections = 0
        self.socks: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self):
        self._threads[0].start()
        return self

    def __exit__(self, *_):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._listener.close()
        for sock in self.socks:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join()

    def _accept(self):
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self.socks.append(sock)
            self._threads.append(threading.Thread(target=self._serve, args=(sock,)))
            self._threads[-1].start()

    def _serve(self, sock):
        number = 0
        with suppress(OSError), sock:
            while self.turn(self, sock, number):
                number += 1

    def take(self, sock):
        """Read one request whole and write it down; False at the end."""
        data = b""
        while b"\r\n\r\n" not in data:
            piece = sock.recv(65536)
            if not piece:
                return False
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        if b"chunked" in head.lower():
            while not body.endswith(b"0\r\n\r\n"):
                body += sock.recv(65536)
        else:
            lines = head.lower().split(b"\r\n")
            (size,) = [int(x[16:]) for x in lines if x.startswith(b"content-length: ")] or [0]
            while len(body) < size:
                body += sock.recv(65536)
        self.done.append(head.partition(b" ")[0])
        return True


def closes_when_idle(idle_s):
    def turn(server, sock, _):
        sock.settimeout(idle_s)
        if not server.take(sock):
            return False
        sock.sendall(OK)
        return True

    return turn


def closes_unsaid(server, sock, _):
    if server.take(sock):
        sock.sendall(OK)
    return False


def closes_every_third(server, sock, number):
    if not server.take(sock):
        return False
    sock.sendall(OK)
    return number < 2


def says_so_and_closes_earlier(server, sock, _):
    sock.settimeout(IDLE_S)
    if not server.take(sock):
        return False
    sock.sendall(OK.replace(b"\r\n\r\n", b"\r\nKeep-Alive: timeout=5, max=100\r\n\r\n"))
    return True


def request(method, *, chunks=False, size=1):
    if chunks:
        head = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (size, b"x" * size)
    else:
        head = b"Content-Length: %d\r\n\r\n%b" % (size, b"x" * size)
    return b"%b /http/f/ HTTP/1.1\r\nHost: h\r\n%b" % (method, head)


EVENT = request(b"POST").replace(b"/http/f/", b"/invoke/f")


@pytest.mark.parametrize(
    ("turn", "gaps_s", "raw"),
    [
        (closes_when_idle(IDLE_S), BESIDE, request(b"POST")),
        (closes_when_idle(IDLE_S), BESIDE, request(b"PUT", chunks=True)),
        (closes_when_idle(IDLE_S), BESIDE, EVENT),
        (closes_when_idle(IDLE_S), BESIDE, GET),
        (closes_when_idle(IDLE_S), [IDLE_S] * 20, request(b"POST")),
        (closes_when_idle(2 * IDLE_S), [IDLE_S + gap_s for gap_s in BESIDE], request(b"POST")),
    ],
)
async def test_no_call_fails_for_a_connection_that_the_function_closes(turn, gaps_s, raw):
    assert await lost(turn, gaps_s, raw) == 0


@pytest.mark.parametrize(
    ("turn", "gaps_s"),
    [
        (says_so_and_closes_earlier, BESIDE),
        (closes_unsaid, [0.01] * 20),
        (closes_every_third, [0.01] * 20),
    ],
)
async def test_a_function_that_closes_against_its_word_costs_one_call_at_most(turn, gaps_s):
    """A request that crosses such a close may have been read: it is not made twice, but learnt."""
    assert await lost(turn, gaps_s, request(b"POST")) <= 1


async def lost(turn, gaps_s, raw):
    """Call with pauses between, and return how many got no answer of the function's."""
    with Server(turn) as one:
        kind = "event" if raw is EVENT else "http"
        async with house(FakeTarget(one.port, kind=kind)) as door:
            reader, writer = await door.connect()
            answered = 0
            for gap_s in gaps_s:
                writer.write(raw)
                status, _, body = await read_reply(reader)
                answered += (status, body) == (200, b"ok")
                await asyncio.sleep(gap_s)  # sleeps: the gap between calls is what is tried
            assert answered <= len(one.done) <= len(gaps_s)
            return len(gaps_s) - answered


class PythonServer(ThreadingHTTPServer):
    done = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = IDLE_S

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        PythonServer.done += 1
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_):
        pass


@contextmanager
def python_server(_):
    PythonServer.done = 0
    with PythonServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1], lambda: server.done
        finally:
            server.shutdown()
            thread.join()


NGINX = """
daemon off; master_process off; pid {dir}/pid; error_log {dir}/errors;
events {{}}
http {{
  access_log {dir}/calls;
  client_body_temp_path {dir}; proxy_temp_path {dir}; fastcgi_temp_path {dir};
  uwsgi_temp_path {dir}; scgi_temp_path {dir};
  server {{ listen 127.0.0.1:{port}; keepalive_timeout 50ms; location / {{ return 200 ok; }} }}
}}
"""


@contextmanager
def nginx(directory):
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin")
    assert program is not None, "no nginx: setup/fetch.sh --dev installs it"
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    config = directory / "nginx.conf"
    config.write_text(NGINX.format(dir=directory, port=port))
    server = subprocess.Popen([program, "-c", str(config), "-p", str(directory)])
    try:
        yield port, lambda: len((directory / "calls").read_text().splitlines())
    finally:
        server.terminate()
        server.wait()


def accepts(port):
    with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


@pytest.mark.parametrize("server", [python_server, nginx])
async def test_posts_beside_the_timeout_of_real_servers(server, tmp_path):
    with server(tmp_path) as (port, done):
        await until(lambda: accepts(port))
        async with house(FakeTarget(port)) as door:
            reader, writer = await door.connect()
            for gap_s in BESIDE:
                writer.write(request(b"POST"))
                assert (await read_reply(reader))[::2] == (200, b"ok")
                await asyncio.sleep(gap_s)  # sleeps: the gap between calls is what is tried
            await until(lambda: done() == len(BESIDE))


# -- a close that the loop has not been told of


async def call(door, method, body):
    kind = "event" if door.target.contract.kind == "event" else "http"
    return await within(door.gateway.call("f", kind=kind, method=method, path=b"/", body=body), 10)


async def at_rest(door, method=b"GET"):
    """Make one call; return the socket of the connection that now lies at rest."""
    assert (await call(door, method, b"")).status == 200
    (conn,) = door.target.endpoint.idle
    return conn._sock


def told_by_the_kernel(sock):
    """Wait, while nothing else runs, until the peer's close has come."""
    while sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_ESTABLISHED:
        pass


@pytest.mark.parametrize(
    ("method", "body"),
    [
        (b"GET", b""),
        (b"POST", b""),
        (b"POST", b"x"),
        (b"POST", b"x" * 16384),
        (b"PUT", b"x"),
        (b"DELETE", b""),
        (b"PATCH", b"x" * 999),
    ],
)
@pytest.mark.parametrize("kind", ["http", "event"])
async def test_a_call_that_met_a_close_is_made_once_more(method, body, kind):
    with Server(closes_every_third) as one:
        async with house(FakeTarget(one.port, kind=kind)) as door:
            sock = await at_rest(door)
            one.socks[0].shutdown(socket.SHUT_RD)  # its thread sees the end, and closes
            told_by_the_kernel(sock)
            (conn,) = door.target.endpoint.idle
            conn.rested_at = asyncio.get_running_loop().time()  # it is used unasked
            answer = await call(door, method, body)
            assert (answer.status, answer.body) == (200, b"ok")
            assert len(one.done) == 2
            assert door.metrics.calls.upstream_retries == 1
            assert one.connections == 2


def reads_all(server, sock, number):
    if not server.take(sock):
        return False
    if number == 0:
        sock.sendall(OK)
    return number == 0


def reads_a_byte(server, sock, number):
    if number == 0:
        return reads_all(server, sock, number)
    server.done.append(sock.recv(1))
    return False


def reads_all_and_resets(server, sock, number):
    goes_on = reads_all(server, sock, number)
    if not goes_on:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return goes_on


@pytest.mark.parametrize("turn", [reads_all, reads_a_byte, reads_all_and_resets])
@pytest.mark.parametrize(
    "raw",
    [
        request(b"POST"),
        request(b"POST", size=0),
        request(b"PUT", size=9999),
        request(b"POST", chunks=True),
        request(b"DELETE", size=0),
    ],
)
async def test_a_call_of_which_a_byte_was_read_is_not_made_again(turn, raw):
    with Server(turn) as one:
        async with house(FakeTarget(one.port)) as door:
            door.target.explanation = Failure(FailureKind.BAD_RESPONSE, "it broke off")
            reader, writer = await door.connect()
            writer.write(GET)
            assert (await read_reply(reader))[0] == 200
            writer.write(raw)
            status, _, body = await read_reply(reader)
            assert (status, b"it broke off" in body) == (502, True)
            assert one.connections == 1
            assert len(one.done) == 2
            assert not door.metrics.calls.upstream_retries


# -- what is known of a function


def keeps(server, sock, _):
    if not server.take(sock):
        return False
    sock.sendall(OK.replace(b"\r\n\r\n", b"\r\nKeep-Alive: timeout=3600\r\n\r\n"))
    return True


@pytest.mark.parametrize(
    ("turn", "seen", "raw", "connections"),
    [
        (closes_when_idle(None), [], request(b"POST"), 2),
        (closes_when_idle(None), [("kept", 3600.0)] * 2, request(b"POST"), 1),
        (closes_when_idle(None), [], GET, 1),
        (closes_when_idle(None), [], request(b"DELETE", size=0), 2),
        (closes_when_idle(None), [], GET.replace(b"GET", b"OPTIONS"), 1),
        (keeps, [], request(b"POST"), 1),
    ],
)
async def test_a_call_that_is_made_once_goes_where_the_function_surely_waits(
    turn, seen, raw, connections
):
    with Server(turn) as one:
        async with house(FakeTarget(one.port)) as door:
            reader, writer = await door.connect()
            writer.write(GET)
            await read_reply(reader)
            keeping: Keeping = door.target.endpoint.keeping
            for what, seconds in seen:
                getattr(keeping, what)(seconds)
            (conn,) = door.target.endpoint.idle
            conn.rested_at -= 5  # as if it were at rest for so long
            writer.write(raw)
            assert (await read_reply(reader))[0] == 200
            assert one.connections == connections
            assert len(door.target.endpoint.idle) == 1


@pytest.mark.parametrize(("thawed_after_it_rested", "trusted"), [(False, True), (True, False)])
async def test_a_connection_found_open_after_a_freeze_says_nothing(thawed_after_it_rested, trusted):
    with Server(closes_when_idle(None)) as one:
        async with house(FakeTarget(one.port)) as door:
            reader, writer = await door.connect()
            keeping: Keeping = door.target.endpoint.keeping
            for _ in range(3):
                writer.write(GET)
                await read_reply(reader)
                (conn,) = door.target.endpoint.idle
                conn.rested_at -= 5  # as if it were at rest for so long
                if thawed_after_it_rested:
                    keeping.thawed_at = conn.rested_at + 4
            assert keeping.trusts(3.0) is trusted


async def test_a_connection_that_talks_at_rest_carries_no_call():
    with Server(closes_when_idle(None)) as one:
        async with house(FakeTarget(one.port)) as door:
            sock = await at_rest(door)
            (conn,) = door.target.endpoint.idle
            one.socks[0].sendall(OK)
            while not sock.recv(1, socket.MSG_PEEK):
                pass
            conn.rested_at -= 5
            assert (await call(door, b"GET", b"")).status == 200
            assert one.connections == 2
