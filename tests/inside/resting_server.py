"""A function that shows what a freeze does to it: its timers, its kept connections, its output.

Runs inside an instance (`python3 -c`). Counts ticks of 5 ms and the longest gap between two, closes
a connection that nobody used for IDLE_S, and does what the path says.
"""

import base64
import hashlib
import json
import os
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

IDLE_S = 0.2
TICK_S = 0.005
KEY = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3
seen = {"ticks": 0, "longest_gap_s": 0.0, "hooks": 0, "hook_s": 0.0, "posts": 0, "flooded": 0}


def tick():
    """Count, and note how late a timer ever was."""
    before = time.monotonic()
    while True:
        time.sleep(TICK_S)  # sleeps: the tick
        now = time.monotonic()
        seen["longest_gap_s"] = max(seen["longest_gap_s"], now - before)
        seen["ticks"] += 1
        before = now


def flood():
    """Write lines as fast as they are taken."""
    while True:
        print(f"line {seen['flooded']} {'x' * 200}", flush=True)
        seen["flooded"] += 1


class Function(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    timeout = IDLE_S

    def log_message(self, *_):
        """Say nothing."""

    def do_GET(self):
        """Do what the path says."""
        url = urlsplit(self.path)
        asked = dict(parse_qsl(url.query))
        if url.path == "/stream":
            self.stream(float(asked["s"]))
            return
        if url.path == "/socket":
            self.socket()
            return
        if url.path == "/pre-freeze":
            seen["hooks"] += 1
            time.sleep(seen["hook_s"])  # sleeps: a slow hook
        elif url.path == "/slow-hook":
            seen["hook_s"] = float(asked["s"])
        elif url.path == "/flood":
            threading.Thread(target=flood, daemon=True).start()
        self.answer()

    def do_POST(self):
        """Count one."""
        length = int(self.headers["Content-Length"])
        if len(self.rfile.read(length)) == length:
            seen["posts"] += 1
            self.answer()

    def answer(self):
        """Tell everything."""
        body = json.dumps(seen).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self, seconds):
        """Send the ticks of some time, a piece each."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            piece = f"{seen['ticks']}\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            time.sleep(TICK_S)  # sleeps: a stream that takes its time
        self.wfile.write(b"0\r\n\r\n")

    def socket(self):
        """Become a WebSocket that sends back what it gets, unframed."""
        key = (self.headers["Sec-WebSocket-Key"] + KEY).encode()
        accept = base64.b64encode(hashlib.sha1(key).digest()).decode()
        self.send_response(101)
        for name, value in (("Upgrade", "websocket"), ("Connection", "Upgrade")):
            self.send_header(name, value)
        self.send_header("Sec-WebSocket-Accept", accept)
        self.end_headers()
        self.connection.settimeout(None)
        while data := self.connection.recv(65536):
            self.connection.sendall(data)
        self.close_connection = True


def main():
    """Serve until TERM, which is told."""

    def terminated(*_):
        print("terminated", flush=True)
        os._exit(0)  # beside threads that write, an orderly exit may abort

    signal.signal(signal.SIGTERM, terminated)
    threading.Thread(target=tick, daemon=True).start()
    server = ThreadingHTTPServer(("0.0.0.0", 9000), Function)
    server.daemon_threads = True
    server.serve_forever()


main()
