"""A sample HTTP function: greets, echoes, streams, and shows what the platform sent.

/ greets; /echo returns the body; /headers and /env show what came in; /stream?n=5&ms=100 sends n
lines with a pause between them; /status?code=418 answers with that status; /sleep?ms=500 waits.
"""

import json
import os
import time

from httpd import serve


def answer(request):
    """Return the reply to one request."""
    return ROUTES.get(request.path, greet)(request)


def greet(request):
    """Say hello, and where."""
    text = f"hello from {request.method} {request.target}\n"
    return 200, [("Content-Type", "text/plain")], text.encode()


def echo(request):
    """Return the body as it came."""
    kind = request.header("content-type", "application/octet-stream")
    return 200, [("Content-Type", kind), ("X-Echo-Method", request.method)], request.body


def headers(request):
    """Return all headers, in order."""
    return as_json({"method": request.method, "target": request.target, "headers": request.headers})


def env(_):
    """Return the environment."""
    return as_json(dict(os.environ))


def stream(request):
    """Send lines one by one."""
    count, pause_s = int(request.number("n", 5)), request.number("ms", 100) / 1000

    def lines():
        for n in range(count):
            if n:
                time.sleep(pause_s)
            yield f"line {n}\n".encode()

    return 200, [("Content-Type", "text/plain")], lines()


def status(request):
    """Answer with the status asked for."""
    return int(request.number("code", 200)), [], b""


def sleep(request):
    """Answer late."""
    time.sleep(request.number("ms", 500) / 1000)
    return 200, [], b"slept\n"


def as_json(value):
    """Return a value as a JSON reply."""
    return 200, [("Content-Type", "application/json")], json.dumps(value, indent=1).encode()


ROUTES = {
    "/echo": echo,
    "/headers": headers,
    "/env": env,
    "/stream": stream,
    "/status": status,
    "/sleep": sleep,
}

serve(answer)
