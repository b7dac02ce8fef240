"""The sample images: archives that are the same twice, and servers that speak HTTP properly.

The servers run as plain processes here; inside containers they run in tests/integration.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

IMAGES = Path(__file__).parents[2] / "images"
PYTHON = "/usr/bin/python3"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: list[str], **env: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    port = free_port()
    path = {"PYTHONPATH": str(IMAGES / "python"), "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        command,
        env={**os.environ, **path, "FC_CUSTOM_LISTEN_PORT": str(port), **env},
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(b"Listening"):
                break
        yield port, process
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture(scope="module")
def static_server(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = str(tmp_path_factory.mktemp("static") / "server")
    command = ["gcc", "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-fsanitize=undefined"]
    subprocess.run([*command, "-o", out, str(IMAGES / "static/server.c")], check=True)
    return out


def talk(port: int, data: bytes, replies: int, pieces: int = 1) -> bytes:
    """Send data in so many pieces; return what came until so many replies or the end."""
    got = b""
    with socket.create_connection(("127.0.0.1", port), 5) as peer:
        step = max(1, -(-len(data) // pieces))
        try:
            for at in range(0, len(data), step):
                peer.sendall(data[at : at + step])
            while got.count(b"hello\n") < replies:
                more = peer.recv(1 << 16)
                if not more:
                    break
                got += more
        except ConnectionError:
            pass
    return got


GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
COUNTED = b"POST /invoke HTTP/1.1\r\nContent-Length: 5\r\n\r\nabcde"
CHUNKED = (
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nabcde\r\n3;x=y\r\nabc\r\n0\r\nT: x\r\n\r\n"
)


@pytest.mark.parametrize("pieces", [1, 7, 500])
def test_static_answers_every_request_of_a_pipeline(static_server: str, pieces: int) -> None:
    with running([static_server]) as (port, process):
        got = talk(port, (GET + COUNTED + CHUNKED) * 20, 60, pieces)
        assert got.count(b"HTTP/1.1 200 OK\r\n") == 60
        assert got.endswith(b"\r\n\r\nhello\n")
        assert process.poll() is None


def test_static_waits_for_a_reader_who_is_slow(static_server: str) -> None:
    with running([static_server]) as (port, _), socket.create_connection(("127.0.0.1", port)) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        s.sendall(GET * 2000)
        time.sleep(0.1)  # sleeps: a reader who is slow
        s.settimeout(5)
        got = b""
        while got.count(b"hello\n") < 2000:
            got += s.recv(1 << 16)
        assert got.count(b"hello\n") == 2000


@pytest.mark.parametrize(
    "junk",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"A" * 20_000,
        b"\0" * 100 + b"\r\n\r\n",
    ],
)
def test_static_drops_junk_and_lives_on(static_server: str, junk: bytes) -> None:
    with running([static_server]) as (port, _):
        assert talk(port, junk, 1) == b""
        assert talk(port, GET, 1).endswith(b"hello\n")


@pytest.mark.parametrize(
    "request_head", [b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n"]
)
def test_static_closes_when_asked(static_server: str, request_head: bytes) -> None:
    with running([static_server]) as (port, _):
        got = talk(port, request_head * 3, 9)
        assert got.count(b"hello\n") == 1
        assert b"Connection: close\r\n" in got


def sample(name: str) -> list[str]:
    return [PYTHON, "-S", "-u", str(IMAGES / name / "main.py")]


def ask(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        client.request(method, path, body)
        reply = client.getresponse()
        return reply.status, reply.read()
    finally:
        client.close()


def test_hello_event_greets_and_remembers_its_initialization() -> None:
    with running(sample("hello-event"), FC_INSTANCE_ID="i-7") as (port, _):
        assert ask(port, "POST", "/initialize") == (200, b"")
        status, body = ask(port, "POST", "/invoke", b'{"name": "Ada"}')
        told = json.loads(body)
        assert status == 200
        assert told["message"] == "hello, Ada"
        assert told["initialized"] is True
        assert told["instance"] == "i-7"
        assert json.loads(ask(port, "POST", "/event-invoke", b"\xff")[1])["event"] == "�"


def test_hello_http_echoes_and_streams() -> None:
    with running(sample("hello-http")) as (port, _):
        assert ask(port, "POST", "/echo", b"\0\xff") == (200, b"\0\xff")
        assert ask(port, "GET", "/stream?n=3&ms=1") == (200, b"line 0\nline 1\nline 2\n")
        assert ask(port, "GET", "/status?code=418")[0] == 418
        assert json.loads(ask(port, "GET", "/headers?a=%20")[1])["target"] == "/headers?a=%20"


@pytest.mark.parametrize("variable", ["FC_CUSTOM_CONTAINER_EVENT", "SCF_CUSTOM_CONTAINER_EVENT"])
def test_hello_job_prints_its_event_and_ends_as_told(variable: str) -> None:
    event = '{"exit_code": 3, "lines": 2}'
    done = subprocess.run(
        sample("hello-job"), env={variable: event}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert event in done.stdout
    assert "line 1" in done.stdout


def test_probe_crashes_and_listens_as_its_environment_says() -> None:
    env = {**os.environ, "PYTHONPATH": str(IMAGES / "python"), "PROBE_CRASH": "7"}
    done = subprocess.run(sample("probe"), env=env, capture_output=True, check=False)
    assert done.returncode == 7
    assert b"crashes" in done.stderr
    with running(sample("probe")) as (port, process):
        assert ask(port, "POST", "/echo", b"x") == (200, b"x")
        with pytest.raises((http.client.HTTPException, OSError)):
            ask(port, "GET", "/exit?code=5")
        assert process.wait(5) == 5


def test_archives_are_the_same_twice_and_carry_their_names(tmp_path: Path) -> None:
    made = []
    for place in ("one", "two"):
        out = tmp_path / place
        code = (
            "import sys, pathlib; sys.path.insert(0, sys.argv[1]); import build; "
            "build.CACHE = pathlib.Path(sys.argv[2]) / 'cache'; "
            "print(build.build(build.STATIC, pathlib.Path(sys.argv[2]))[0])"
        )
        command = [PYTHON, "-B", "-c", code, str(IMAGES), str(out)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        made.append(Path(done.stdout.strip()))
    assert made[0].read_bytes() == made[1].read_bytes()
    with tarfile.open(made[0]) as tar:

        def blob(path: str) -> bytes:
            found = tar.extractfile(path)
            assert found is not None
            return found.read()

        entry = json.loads(blob("index.json"))["manifests"][0]
        assert set(entry["annotations"].values()) == {"kindling.local/static:1"}
        manifest = json.loads(blob("blobs/sha256/" + entry["digest"][7:]))
        for descriptor in (manifest["config"], *manifest["layers"]):
            data = blob("blobs/sha256/" + descriptor["digest"][7:])
            assert "sha256:" + hashlib.sha256(data).hexdigest() == descriptor["digest"]
            assert len(data) == descriptor["size"]
