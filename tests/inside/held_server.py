"""A function whose calls last until somebody asks for /release: one reply, a stream, a WebSocket.

/held answers then; /stream sends a line every 0.2 s until then; /socket echoes what it gets, and
ends with its caller (RFC 6455, without fragments). Anything else answers at once.
"""

import base64
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PAUSE_S = 0.2
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
CLOSE = 8

released = threading.Event()


class Held(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        route = self.path.rpartition("/")[2]
        if route == "stream":
            self.stream()
        elif route == "socket":
            self.echo()
        else:
            if route == "held":
                released.wait()
            elif route == "release":
                released.set()
            self.send_response(200)
            self.send_header("Content-Length", str(len(route)))
            self.end_headers()
            self.wfile.write(route.encode())

    def stream(self):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        n = 0
        while True:
            line = b"%d\n" % n
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            n += 1
            if released.wait(PAUSE_S):
                break
        self.wfile.write(b"4\r\nend\n\r\n0\r\n\r\n")

    def echo(self):
        key = self.headers["Sec-WebSocket-Key"].encode()
        accept = base64.b64encode(hashlib.sha1(key + GUID).digest()).decode()
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", accept)
        self.end_headers()
        while len(head := self.rfile.read(2)) == 2:
            size = head[1] & 127
            mask = self.rfile.read(4)
            data = bytes(byte ^ mask[n % 4] for n, byte in enumerate(self.rfile.read(size)))
            self.wfile.write(bytes([head[0], size]) + data)
            if head[0] & 15 == CLOSE:
                break
        self.close_connection = True

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("0.0.0.0", 9000), Held).serve_forever()
