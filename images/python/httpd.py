"""A small threaded HTTP/1.1 server for the sample functions; imports little, so it starts fast.

`serve(answer)` listens on 0.0.0.0 at FC_CUSTOM_LISTEN_PORT or PORT (default 9000), one thread per
connection, keep-alive, bodies by Content-Length or chunked. `answer(request)` returns status,
headers and body; a body that is no bytes is an iterable of chunks and goes out as they come.
"""

import os
import signal
import socket
import sys
import threading

MAX_HEAD_BYTES = 64 << 10


class Request:
    """One request: method, path, query (dict of first values), headers (list of pairs), body."""

    def __init__(self, method, target, headers, body):
        self.method = method
        self.target = target
        self.path, _, query = target.partition("?")
        self.query: dict[str, str] = {}
        for part in query.split("&"):
            name, _, value = part.partition("=")
            if name:
                self.query.setdefault(_unquoted(name), _unquoted(value))
        self.headers = headers
        self.body = body

    def header(self, name, default=""):
        """Return the first value of a header."""
        wanted = name.lower()
        return next((v for n, v in self.headers if n.lower() == wanted), default)

    def number(self, name, default):
        """Return a number of the query."""
        return float(self.query.get(name) or default)


def port():
    """Return the port to listen on."""
    return int(os.environ.get("FC_CUSTOM_LISTEN_PORT") or os.environ.get("PORT") or 9000)


def serve(answer, host="0.0.0.0", *, ignore_term=False):
    """Serve for ever; SIGTERM ends the process, unless it is to be ignored."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN if ignore_term else lambda *_: os._exit(0))
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port()))
    listener.listen(1024)
    print(f"Listening on port {port()}", flush=True)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_converse, args=(connection, answer), daemon=True).start()


def _converse(connection, answer):
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream = connection.makefile("rb")
    try:
        while _one_exchange(connection, stream, answer):
            pass
    except (OSError, ValueError) as error:
        if not isinstance(error, (BrokenPipeError, ConnectionResetError)):
            print(f"connection dropped: {error}", file=sys.stderr, flush=True)
    finally:
        stream.close()
        connection.close()


def _one_exchange(connection, stream, answer):
    line = stream.readline(MAX_HEAD_BYTES).decode("latin-1").rstrip("\r\n")
    if not line:
        return False
    method, target, version = line.split(" ", 2)
    headers = []
    while header := stream.readline(MAX_HEAD_BYTES).decode("latin-1").rstrip("\r\n"):
        name, _, value = header.partition(":")
        headers.append((name, value.strip()))
    request = Request(method, target, headers, _read_body(stream, headers))
    status, extra, body = answer(request)
    lasting = version == "HTTP/1.1" and request.header("connection").lower() != "close"
    whole = isinstance(body, bytes)
    lines = [f"HTTP/1.1 {status} -", *(f"{n}: {v}" for n, v in extra)]
    lines.append(f"Content-Length: {len(body)}" if whole else "Transfer-Encoding: chunked")
    if not lasting:
        lines.append("Connection: close")
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    if whole:
        connection.sendall(head if method == "HEAD" else head + body)
        return lasting
    connection.sendall(head)
    for chunk in body:
        connection.sendall(b"%x\r\n%s\r\n" % (len(chunk), chunk))
    connection.sendall(b"0\r\n\r\n")
    return lasting


def _read_body(stream, headers):
    named = {name.lower(): value for name, value in headers}
    if named.get("transfer-encoding", "").lower() != "chunked":
        return stream.read(int(named.get("content-length") or 0))
    parts = []
    while size := int(stream.readline().split(b";")[0], 16):
        parts.append(stream.read(size))
        stream.readline()
    while stream.readline().strip():
        pass
    return b"".join(parts)


def _unquoted(text):
    if "%" not in text:
        return text.replace("+", " ")
    from urllib.parse import unquote_plus  # here, because it costs milliseconds at start

    return unquote_plus(text)
