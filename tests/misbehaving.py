"""A registry on loopback that misbehaves as it is told, for one kind of request at a time.

It serves one image under any repository and tag, by HTTP/1.1 with ranges, from threads: the agent's
own client and containerd's meet the very same faults.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import ssl
import struct
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.oci import OciImage

Fault = Callable[["Request", bytes, str], None]
FOREVER = 10_000


class Request(BaseHTTPRequestHandler):
    """One connection's requests."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.serve(self)

    do_HEAD = do_GET  # noqa: N815 - http.server's name
    do_POST = do_GET  # noqa: N815 - http.server's name

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def reply(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        """Send a whole reply; a HEAD gets no body."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class Server(ThreadingHTTPServer):
    """`faults` are by kind of request (manifest, config, layer): each request takes the next."""

    daemon_threads = True

    def __init__(self, image: OciImage, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.image = image
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.route: Callable[[Request], bool] = lambda _: False
        self.ending = threading.Event()
        self.config = json.loads(image.blobs[image.digest])["config"]["digest"]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""

    def serve(self, request: Request) -> None:
        if self.route(request):
            return
        path = request.path.partition("?")[0]
        kind = self.kind(path)
        self.asked.append((request.command, kind, dict(request.headers)))
        data, media_type = self.what(path)
        if data is None:
            request.reply(404, {})
        elif self.faults[kind] and not (kind == "layer" and request.command == "HEAD"):
            self.faults[kind].pop(0)(request, data, media_type)
        else:
            whole(request, data, media_type)

    def kind(self, path: str) -> str:
        if "/manifests/" in path:
            return "manifest"
        return "config" if path.endswith(self.config) else "layer"

    def what(self, path: str) -> tuple[bytes | None, str]:
        name = path.rpartition("/")[2]
        if "/manifests/" in path and not name.startswith("sha256:"):
            name = self.image.digest
        data = self.image.blobs.get(name)
        kind = str(self.image.manifest["mediaType"])
        return data, kind if "/manifests/" in path else "application/octet-stream"

    def ranges(self) -> list[str]:
        """The ranges that layers were asked for."""
        return [headers["Range"] for _, kind, headers in self.asked if "Range" in headers]


@contextlib.contextmanager
def misbehaving(image: OciImage, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    """Run a server; it behaves until it is given faults."""
    server = Server(image, tls)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ending.set()
        server.shutdown()
        server.server_close()
        thread.join(10)


# -- what a reply may be


def whole(request: Request, data: bytes, media_type: str) -> None:
    """What was asked for."""
    asked = request.headers.get("Range", "")
    headers = {"Content-Type": media_type}
    if asked.startswith("bytes="):
        first = int(asked.removeprefix("bytes=").partition("-")[0])
        headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        request.reply(206, headers, data[first:])
    else:
        request.reply(200, headers, data)


def status(code: int, **headers: str) -> Fault:
    """A status and nothing else; header names with _ for -."""

    def fault(request: Request, data: bytes, media_type: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request.reply(code, named, b'{"errors":[{"code":"X","message":"so it is"}]}')

    return fault


def reset(request: Request, data: bytes, media_type: str) -> None:
    """The connection is reset before a byte comes."""
    linger = struct.pack("ii", 1, 0)
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    request.close_connection = True
    request.connection.close()


def cut(request: Request, data: bytes, media_type: str) -> None:
    """All is promised, half of it comes, then the connection ends."""
    asked = request.headers.get("Range", "")
    first = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
    rest = data[first:]
    request.send_response(206 if asked else 200)
    request.send_header("Content-Type", media_type)
    request.send_header("Content-Length", str(len(rest)))
    if asked:
        request.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(rest[: len(rest) // 2])
        request.wfile.flush()
    request.close_connection = True


def short(request: Request, data: bytes, media_type: str) -> None:
    """Fewer bytes than the manifest says, and a length that fits them."""
    request.reply(200, {"Content-Type": media_type}, data[: len(data) // 2])


def long(request: Request, data: bytes, media_type: str) -> None:
    """More bytes than the manifest says."""
    request.reply(200, {"Content-Type": media_type}, data + b"and more")


def other_bytes(request: Request, data: bytes, media_type: str) -> None:
    """As many bytes, but others."""
    changed = bytes(byte ^ 1 for byte in data[:16]) + data[16:]
    request.reply(200, {"Content-Type": media_type}, changed)


def silence(request: Request, data: bytes, media_type: str) -> None:
    """Nothing comes until the test is over."""
    request.server.ending.wait(60)
    request.close_connection = True


def stall(request: Request, data: bytes, media_type: str) -> None:
    """Half of it comes, then nothing more until the test is over."""
    request.send_response(200)
    request.send_header("Content-Type", media_type)
    request.send_header("Content-Length", str(len(data)))
    request.end_headers()
    request.wfile.write(data[: len(data) // 2])
    request.wfile.flush()
    request.server.ending.wait(60)
    request.close_connection = True


def loris(request: Request, data: bytes, media_type: str) -> None:
    """A byte now and then."""
    request.send_response(200)
    request.send_header("Content-Type", media_type)
    request.send_header("Content-Length", str(len(data)))
    request.end_headers()
    for byte in data:
        request.wfile.write(bytes([byte]))
        request.wfile.flush()
        if request.server.ending.wait(0.2):
            break
    request.close_connection = True


def gzipped(request: Request, data: bytes, media_type: str) -> None:
    """All of it, compressed for the way."""
    headers = {"Content-Type": media_type, "Content-Encoding": "gzip"}
    request.reply(200, headers, gzip.compress(data))


def zipped(request: Request, data: bytes, media_type: str) -> None:
    """All of it, compressed, and nothing says so."""
    request.reply(200, {"Content-Type": media_type}, gzip.compress(data))


def around(request: Request, data: bytes, media_type: str) -> None:
    """To itself, for ever."""
    request.reply(307, {"Location": request.path})


def onward(request: Request, data: bytes, media_type: str) -> None:
    """To somewhere else each time, for ever."""
    place, _, turn = request.path.partition("?turn=")
    request.reply(307, {"Location": f"{place}?turn={int(turn or 0) + 1}"})


def too_long(request: Request, data: bytes, media_type: str) -> None:
    """All of it under a length that is more, then the connection ends."""
    request.send_response(200)
    request.send_header("Content-Type", media_type)
    request.send_header("Content-Length", str(len(data) + 100))
    request.end_headers()
    request.wfile.write(data)
    request.close_connection = True


def typed(media_type: str) -> Fault:
    """All of it, under another media type."""
    return lambda request, data, _: whole(request, data, media_type)


def says(body: bytes, media_type: str) -> Fault:
    """Something else altogether."""
    return lambda request, data, _: request.reply(200, {"Content-Type": media_type}, body)
