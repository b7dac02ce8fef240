"""Warm calls: what `warm_agent` and `warm_gateway` share, and the gateway that the latter loads.

The proxy is pinned to CPU 0; the backend and wrk (1 thread) to CPU 1. What is sent is `traffic`'s.
Slices alternate in shuffled order, each figure is a median, and only ratios are quoted. Peers are
those of `proxies`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import shutil
import socket
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.options import Options
from bench.traffic import LARGE, SMALL, Traffic

PROXY_CPU, LOAD_CPU = 0, 1
SOURCES = Path(__file__).resolve().parents[1]
PIECE = "x" * 1024
PURE = "pure"  # the name of a gateway that is not compiled, beside one that is
SECONDS = 1  # wrk knows whole seconds only
FUNCTIONS = {SMALL: "f", LARGE: "g"}
EVENT_FUNCTION = "e"

BACKEND = """
worker_processes 1; daemon off; pid {dir}/backend.pid; error_log {dir}/backend.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 100000000; default_type text/plain;
  server {{ listen 127.0.0.1:{small}; location / {{ return 200 "{piece}"; }} }}
  server {{
    listen 127.0.0.1:{large}; set $k "{piece}"; set $m "$k$k$k$k$k$k$k$k";
    location / {{ return 200 "$m$m$m$m$m$m$m$m"; }}
  }}
}}
"""

DIRECT = "no proxy"
BESIDE = ("nginx", "gateway", PURE, "kindling")
"""Who is measured with every traffic; the others with those that everybody gets."""

Samples = dict[str, list[float]]


def function_of(traffic: Traffic) -> str:
    """Return the function that answers a traffic."""
    return EVENT_FUNCTION if traffic.event else FUNCTIONS[traffic.reply_bytes]


def nginx_program() -> str:
    """Return the path of nginx."""
    return shutil.which("nginx") or "/usr/sbin/nginx"


def free_port() -> int:
    """Return a TCP port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def pinned(cpu: int, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command on one CPU until the block ends."""
    process = subprocess.Popen(["taskset", "-c", str(cpu), *command])
    with ending(process):
        yield process


@contextmanager
def ending(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End a process with the block."""
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(port: int) -> None:
    """Wait until something listens on a port of this host."""
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise SystemExit(f"nothing listens on port {port}")


def wrk(
    port: int,
    script: Path,
    connections: int = 32,
    *,
    within: Sequence[str] = (),
    host: str = "127.0.0.1",
    seconds: int = SECONDS,
) -> dict[str, float]:
    """Load a port for whole seconds; return requests, and latency percentiles in microseconds.

    `within` is the beginning of a command that enters a network namespace.
    """
    out = subprocess.run(
        [
            *(*within, "taskset", "-c", str(LOAD_CPU), "wrk", "--latency", "-t1"),
            *(f"-c{connections}", f"-d{seconds}s", "-s", str(script), f"http://{host}:{port}/"),
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    if "Non-2xx" in out or "Socket errors" in out:
        raise SystemExit(f"wrk saw errors:\n{out}")
    rate = re.search(r"Requests/sec:\s+([\d.]+)", out)
    whole = re.search(r"(\d+) requests in [\d.]+\w+, ([\d.]+)([KMGT]?)B read", out)
    assert rate is not None, out
    assert whole is not None, out
    size = float(whole[2]) * 1024.0 ** " KMGT".index(whole[3] or " ")
    figures = {"rps": float(rate[1]), "requests": float(whole[1]), "bytes": size}
    scale = {"us": 1.0, "ms": 1e3, "s": 1e6}
    for percent, value, unit in re.findall(r"(50|99)%\s+([\d.]+)(us|ms|s)\b", out):
        figures[f"p{percent}_us"] = float(value) * scale[unit]
    return figures


def cpu_us(pid: int) -> float:
    """Return the CPU time that a process's threads have had, in microseconds."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e3


@dataclass(slots=True)
class Measured:
    """One traffic's samples by proxy: requests per second, CPU time of a call, latencies."""

    rps: Samples = field(default_factory=lambda: defaultdict(list))
    cpu_us: Samples = field(default_factory=lambda: defaultdict(list))
    p50_us: Samples = field(default_factory=lambda: defaultdict(list))
    p99_us: Samples = field(default_factory=lambda: defaultdict(list))

    def take(self, name: str, pid: int, found: dict[str, float], before_us: float) -> None:
        """Keep one slice of the proxy with this pid."""
        self.rps[name].append(found["rps"])
        self.p50_us[name].append(found["p50_us"])
        self.p99_us[name].append(found["p99_us"])
        if pid:
            self.cpu_us[name].append((cpu_us(pid) - before_us) / found["requests"])


@dataclass(frozen=True, slots=True)
class Way:
    """How wrk reaches a proxy (or the backend itself, pid 0), and whose CPU time is counted."""

    port: int
    pid: int = 0
    host: str = "127.0.0.1"
    within: Sequence[str] = ()

    def slice(self, found: Measured, name: str, script: Path, traffic: Traffic) -> None:
        """Load it for a second; raises SystemExit if the backend's reply is not what came."""
        before_us = cpu_us(self.pid) if self.pid else 0.0
        figures = wrk(self.port, script, traffic.connections, within=self.within, host=self.host)
        if figures["bytes"] < figures["requests"] * traffic.reply_bytes * 0.99:
            raise SystemExit(f"{name} answers {traffic.name} by itself: {figures}")
        found.take(name, self.pid, figures, before_us)


def measure(
    options: Options,
    ways: dict[str, Way],
    traffics: Sequence[Traffic],
    folder: Path,
    rounds: int,
) -> dict[str, Measured]:
    """Measure some traffics one after the other; Ctrl-C keeps the whole rounds there are."""
    found: dict[str, Measured] = {}
    for one in traffics:
        taken = {name: way for name, way in ways.items() if is_taken(name, one)}
        try:
            measured = interleave(taken, one, folder, rounds)
        except KeyboardInterrupt:
            options.stopped.set()
            break
        found[one.name] = measured
    if not found:
        raise KeyboardInterrupt
    return found


def is_taken(name: str, traffic: Traffic) -> bool:
    """Whether a proxy is measured with a traffic; without one, that is the base of latencies."""
    if name == DIRECT:
        return traffic.everybody and traffic.connections == 1
    return traffic.everybody or name in BESIDE


def interleave(ways: dict[str, Way], traffic: Traffic, folder: Path, rounds: int) -> Measured:
    """Measure proxies in turn, in changing order, after a slice each that does not count."""
    script = traffic.write(folder, function_of(traffic))
    for name, way in ways.items():
        way.slice(Measured(), name, script, traffic)
    found = Measured()
    order = random.Random(traffic.name)  # the same at every run
    for _ in range(rounds):
        for name in order.sample(list(ways), len(ways)):
            ways[name].slice(found, name, script, traffic)
    return found


def serve(port: int, small: int, large: int, contract: str) -> None:
    """Run the gateway alone, in front of backends that are always ready."""
    import uvloop

    from bench.warm_target import gateway

    async def main() -> None:
        door = await gateway(port, small, large, contract)
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(15, stop.set)
        if os.environ.get("KINDLING_PROFILE"):
            import cProfile

            profile = cProfile.Profile()
            profile.enable()
            await stop.wait()
            profile.disable()
            profile.dump_stats(os.environ["KINDLING_PROFILE"])
        await stop.wait()
        await door.close()

    uvloop.run(main())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="the gateway that `python -m bench gateway` loads")
    names = ("PORT", "SMALL", "LARGE", "CONTRACT")
    parser.add_argument("--serve", nargs=len(names), metavar=names, required=True)
    given = parser.parse_args().serve
    serve(int(given[0]), int(given[1]), int(given[2]), given[3])
