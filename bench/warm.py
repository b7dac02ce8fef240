"""Warm calls: requests per second through the gateway against nginx, both in front of one backend.

The proxy is pinned to CPU 0; the backend and wrk (1 thread, 32 connections) to CPU 1. Runs are
interleaved, each figure is a median, and only ratios are quoted. `python -m bench.warm` runs it;
`--rounds`, `--seconds` and `--contract` change it; `--json` prints the figures as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

PROXY_CPU, LOAD_CPU = 0, 1
CONNECTIONS = 32

BACKEND = """
worker_processes 1; daemon off; pid {dir}/backend.pid; error_log {dir}/backend.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 100000000; default_type text/plain;
  server {{ listen 127.0.0.1:{backend}; location / {{ return 200 "hello\\n"; }} }}
}}
"""
PROXY = """
worker_processes 1; daemon off; pid {dir}/proxy.pid; error_log {dir}/proxy.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 100000000;
  upstream f {{ server 127.0.0.1:{backend}; keepalive 64; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{nginx};
    location /http/f/ {{
      proxy_pass http://f/; proxy_http_version 1.1; proxy_set_header Connection "";
    }}
  }}
}}
"""


def free_port() -> int:
    """Return a TCP port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def pinned(cpu: int, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command on one CPU until the block ends."""
    process = subprocess.Popen(["taskset", "-c", str(cpu), *command])
    try:
        yield process
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
    seconds: float,
    connections: int = CONNECTIONS,
    *,
    within: Sequence[str] = (),
    host: str = "127.0.0.1",
) -> dict[str, float]:
    """Load a port; return requests per second and latency percentiles in microseconds.

    `within` is the beginning of a command that enters a network namespace.
    """
    out = subprocess.run(
        [
            *(*within, "taskset", "-c", str(LOAD_CPU), "wrk", "--latency", "-t1"),
            *(f"-c{connections}", f"-d{seconds:g}s", f"http://{host}:{port}/http/f/"),
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    if "Non-2xx" in out or "Socket errors" in out:
        raise SystemExit(f"wrk saw errors:\n{out}")
    found = re.search(r"Requests/sec:\s+([\d.]+)", out)
    assert found is not None, out
    figures = {"rps": float(found[1])}
    scale = {"us": 1.0, "ms": 1e3, "s": 1e6}
    for percent, value, unit in re.findall(r"(50|99)%\s+([\d.]+)(us|ms|s)\b", out):
        figures[f"p{percent}_us"] = float(value) * scale[unit]
    return figures


def run(rounds: int, seconds: float, contract: str) -> dict[str, Any]:
    """Measure nginx and the gateway in turn."""
    nginx = shutil.which("nginx") or "/usr/sbin/nginx"
    ports = {"backend": free_port(), "nginx": free_port(), "gateway": free_port()}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name, text in (("backend", BACKEND), ("proxy", PROXY)):
            (folder / f"{name}.conf").write_text(text.format(dir=folder, **ports))
            cpu = LOAD_CPU if name == "backend" else PROXY_CPU
            stack.enter_context(
                pinned(cpu, nginx, "-c", str(folder / f"{name}.conf"), "-p", str(folder))
            )
        stack.enter_context(
            pinned(
                PROXY_CPU,
                *(sys.executable, "-m", "bench.warm", "--serve"),
                *(str(ports["gateway"]), str(ports["backend"]), contract),
            )
        )
        for port in ports.values():
            wait_for(port)
        runs: dict[str, list[dict[str, float]]] = {"nginx": [], "gateway": [], "direct": []}
        single: dict[str, list[dict[str, float]]] = {"nginx": [], "gateway": [], "direct": []}
        for _ in range(rounds):
            for name, where in (("nginx", "nginx"), ("gateway", "gateway"), ("direct", "backend")):
                runs[name].append(wrk(ports[where], seconds))
                # wrk knows whole seconds only
                single[name].append(wrk(ports[where], max(1, seconds // 2), 1))
    return report(runs, single)


def report(
    runs: dict[str, list[dict[str, float]]], single: dict[str, list[dict[str, float]]]
) -> dict[str, Any]:
    """Return medians and ratios."""
    rps = {name: statistics.median(r["rps"] for r in found) for name, found in runs.items()}
    pairs = [g["rps"] / n["rps"] for g, n in zip(runs["gateway"], runs["nginx"], strict=True)]
    p50 = {name: statistics.median(r["p50_us"] for r in found) for name, found in single.items()}
    return {
        "rps": rps,
        "ratio": statistics.median(pairs),
        "ratio_range": [min(pairs), max(pairs)],
        "p50_us_one_connection": p50,
        "added_p50_us": {name: p50[name] - p50["direct"] for name in ("nginx", "gateway")},
        "runs": runs,
    }


def serve(port: int, backend: int, contract: str) -> None:
    """Run the gateway alone, in front of one backend that is always ready."""
    import uvloop

    from bench.warm_target import gateway

    async def main() -> None:
        door = await gateway(port, backend, contract)
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


def main() -> None:
    """Run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--contract", default="fc")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", nargs=3, metavar=("PORT", "BACKEND", "CONTRACT"))
    options = parser.parse_args()
    if options.serve:
        serve(int(options.serve[0]), int(options.serve[1]), options.serve[2])
        return
    found = run(options.rounds, options.seconds, options.contract)
    if options.json:
        print(json.dumps(found))
        return
    for name, value in found["rps"].items():
        print(
            f"{name:8} {value:9.0f} req/s  p50 {found['p50_us_one_connection'][name]:.0f} us at 1"
        )
    low, high = found["ratio_range"]
    print(f"gateway / nginx: {found['ratio']:.2f} ({low:.2f}-{high:.2f})")


if __name__ == "__main__":
    main()
