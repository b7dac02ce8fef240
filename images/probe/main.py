"""A function for tests: tells what it can see and reach from inside, and misbehaves on request.

/facts describes its cage. /memory?mb= takes memory; /disk?mb=&path= writes until it may not;
/connect?host=&port=&timeout_s= tries to reach something; /resolve?name= asks DNS; /spawn?n=&s=
starts processes; /open?n= opens files; /sleep?s= waits; /exit?code= and /kill?signal= end it;
/log?lines=&bytes=&stream= writes lines; /write?path= tries to write; /read?path= returns a file;
/run?sh= runs a shell command, if the image has a shell; /echo returns the body.

Variables: PROBE_LISTEN (address, default 0.0.0.0), PROBE_CRASH (exit code, at once, after a line
on stderr), PROBE_DELAY_S (before listening), PROBE_IGNORE_TERM=1.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time

from facts import facts, named, text
from httpd import serve

hoard: list[bytearray] = []


def answer(request):
    """Return the reply to one request."""
    route = ROUTES.get(request.path)
    if route is None:
        value = {"probe": "ok", "path": request.path, "routes": sorted(ROUTES)}
    else:
        value = route(request)
    if isinstance(value, bytes):
        return 200, [("Content-Type", "application/octet-stream")], value
    return 200, [("Content-Type", "application/json")], json.dumps(value, indent=1).encode()


def memory(request):
    """Take memory, page by page, and keep it."""
    taken = int(request.number("mb", 1))
    for _ in range(taken):
        block = bytearray(1 << 20)
        block[::4096] = b"\1" * 256
        hoard.append(block)
    return {"taken_mb": taken, "held_mb": len(hoard)}


def disk(request):
    """Write a file of so many MB, synced; tells how far it came and why it ended."""
    path = request.query.get("path", "/tmp/fill")
    written, error = 0, None
    block = os.urandom(1 << 20)
    try:
        with open(path, "ab", buffering=0) as file:
            for _ in range(int(request.number("mb", 1))):
                written += file.write(block)
            os.fsync(file.fileno())
    except OSError as failed:
        error = named(failed)
    if request.query.get("remove"):
        os.unlink(path)
    return {"written_bytes": written, "error": error}


def connect(request):
    """Try to reach an address over TCP."""
    place = (request.query["host"], int(request.number("port", 80)))
    began = time.monotonic()
    try:
        with socket.create_connection(place, request.number("timeout_s", 2)) as reached:
            peer = reached.getpeername()
        return {"connected": True, "peer": peer, "after_s": time.monotonic() - began}
    except OSError as failed:
        reason = "timeout" if isinstance(failed, TimeoutError) else str(failed)
        return {"connected": False, "error": reason, "after_s": time.monotonic() - began}


def resolve(request):
    """Ask DNS."""
    try:
        found = socket.getaddrinfo(request.query["name"], None, type=socket.SOCK_STREAM)
        return {"addresses": sorted({entry[4][0] for entry in found})}
    except OSError as failed:
        return {"error": str(failed)}


def spawn(request):
    """Start processes that sleep; tells how many it got."""
    reap()
    started, error = 0, None
    pause_s = request.number("s", 1)
    for _ in range(int(request.number("n", 1))):
        try:
            child = os.fork()
        except OSError as failed:
            error = named(failed)
            break
        if child == 0:
            time.sleep(pause_s)
            os._exit(0)
        started += 1
    return {"started": started, "error": error}


def reap():
    """Forget children of earlier calls that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def open_files(request):
    """Open files; tells how many it got."""
    opened, error = [], None
    for _ in range(int(request.number("n", 1))):
        try:
            opened.append(os.open("/dev/null", os.O_RDONLY))
        except OSError as failed:
            error = named(failed)
            break
    for fd in opened:
        os.close(fd)
    return {"opened": len(opened), "error": error}


def sleep(request):
    """Answer late."""
    time.sleep(request.number("s", 1))
    return {"slept_s": request.number("s", 1)}


def leave(request):
    """End the process at once, without an answer."""
    os._exit(int(request.number("code", 1)))


def kill(request):
    """Send ourselves a signal."""
    os.kill(os.getpid(), int(request.number("signal", signal.SIGKILL)))
    return {"survived": True}


def log(request):
    """Write lines to stdout, or to stderr."""
    out = sys.stderr if request.query.get("stream") == "stderr" else sys.stdout
    size, count = int(request.number("bytes", 10)), int(request.number("lines", 1))
    for n in range(count):
        out.write(f"{n} ".ljust(size, "x") + "\n")
    out.flush()
    return {"lines": count}


def write(request):
    """Try to write one byte to a path."""
    try:
        with open(request.query["path"], "wb") as file:
            file.write(b"1")
    except OSError as failed:
        return {"written": False, "error": named(failed)}
    return {"written": True}


def read(request):
    """Return what a file holds, or why it cannot be read."""
    return {"text": text(request.query["path"])}


def run(request):
    """Run a shell command; tells its exit code and output."""
    done = subprocess.run(["sh", "-c", request.query["sh"]], capture_output=True, text=True)
    return {"code": done.returncode, "out": done.stdout, "err": done.stderr}


def echo(request):
    """Return the body."""
    return request.body


ROUTES = {
    "/facts": lambda _: facts(),
    "/memory": memory,
    "/disk": disk,
    "/connect": connect,
    "/resolve": resolve,
    "/spawn": spawn,
    "/open": open_files,
    "/sleep": sleep,
    "/exit": leave,
    "/kill": kill,
    "/log": log,
    "/write": write,
    "/read": read,
    "/run": run,
    "/echo": echo,
}


def main():
    """Do as the environment says, then serve."""
    print("probe starts", flush=True)
    if "PROBE_CRASH" in os.environ:
        print("probe crashes as it was told", file=sys.stderr, flush=True)
        sys.exit(int(os.environ["PROBE_CRASH"]))
    time.sleep(float(os.environ.get("PROBE_DELAY_S") or 0))
    serve(
        answer,
        os.environ.get("PROBE_LISTEN") or "0.0.0.0",
        ignore_term=bool(os.environ.get("PROBE_IGNORE_TERM")),
    )


main()
