"""The proxies that stand beside ours in the warm benches, each on one CPU, with one worker.

All of them keep connections to their backends and write no access log. Each is a row of PEERS: how
its configuration is written and what command starts it. Go's is built once, from bench/peers, below
bench/out.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import needs
from bench.warm import PROXY_CPU, Way, ending, free_port

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "peers" / "reverse_proxy.go"
BUILT = HERE / "out" / "peers"
NEEDS = ("nginx", "haproxy", "caddy", "go", "wrk")
UP_S = 20.0

NGINX = """
worker_processes 1; daemon off; pid {dir}/nginx.pid; error_log {dir}/nginx.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 100000000;
  proxy_http_version 1.1; proxy_set_header Connection "";
  upstream f {{ server {small}; keepalive 256; keepalive_requests 100000000; }}
  upstream g {{ server {large}; keepalive 256; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port};
    location /http/f/ {{ proxy_pass http://f/; }}
    location /http/g/ {{ proxy_pass http://g/; }}
    location /2023-03-30/ {{ proxy_pass http://f/; }}
  }}
}}
"""
HAPROXY = """
global
  nbthread 1
  maxconn 2048
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  http-reuse always
frontend calls
  bind 127.0.0.1:{port}
  use_backend g if {{ path_beg /http/g/ }}
  default_backend f
backend f
  server f {small} pool-max-conn 512
backend g
  server g {large} pool-max-conn 512
"""
CADDY = """
{{
  admin off
  auto_https off
  log default {{
    level ERROR
  }}
}}
http://:{port} {{
  bind 127.0.0.1
  handle /http/g/* {{
    reverse_proxy {large} {{
      transport http {{
        keepalive_idle_conns_per_host 512
      }}
    }}
  }}
  handle {{
    reverse_proxy {small} {{
      transport http {{
        keepalive_idle_conns_per_host 512
      }}
    }}
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a proxy runs: a directory of its own, its port, its backends' addresses."""

    folder: Path
    port: int
    small: str
    large: str

    def write(self, name: str, text: str) -> str:
        """Write a configuration and return its path."""
        file = self.folder / name
        values = {"port": self.port, "small": self.small, "large": self.large}
        file.write_text(text.format(dir=self.folder, **values))
        return str(file)


def nginx(place: Place) -> list[str]:
    """Return the command of nginx."""
    program = needs.program("nginx") or "nginx"
    return [program, "-c", place.write("nginx.conf", NGINX), "-p", str(place.folder)]


def haproxy(place: Place) -> list[str]:
    """Return the command of HAProxy."""
    program = needs.program("haproxy") or "haproxy"
    return [program, "-db", "-q", "-f", place.write("haproxy.cfg", HAPROXY)]


def caddy(place: Place) -> list[str]:
    """Return the command of Caddy."""
    config = place.write("Caddyfile", CADDY)
    return ["caddy", "run", "--config", config, "--adapter", "caddyfile"]


def aiohttp(place: Place) -> list[str]:
    """Return the command of the aiohttp proxy."""
    program = (sys.executable, "-m", "bench.peers.aiohttp_proxy")
    return [*program, str(place.port), place.small, place.large]


def go(place: Place) -> list[str]:
    """Return the command of Go's ReverseProxy."""
    return [str(built()), f"127.0.0.1:{place.port}", place.small, place.large]


PEERS: dict[str, Callable[[Place], list[str]]] = {
    "nginx": nginx,
    "HAProxy": haproxy,
    "Caddy": caddy,
    "Go ReverseProxy": go,
    "aiohttp": aiohttp,
}


def built() -> Path:
    """Return Go's proxy, built if this source has not been."""
    source = SOURCE.read_bytes()
    program = BUILT / f"reverse_proxy-{hashlib.sha256(source).hexdigest()[:12]}"
    if not program.exists():
        BUILT.mkdir(parents=True, exist_ok=True)
        cache = {"GOCACHE": str(BUILT / "go"), "GO111MODULE": "off", "CGO_ENABLED": "0"}
        command = ["go", "build", "-o", str(program), str(SOURCE)]
        subprocess.run(command, check=True, env=os.environ | cache, cwd=BUILT)
    return program


@contextmanager
def opened(
    folder: Path, small: str, large: str, within: Sequence[str] = ()
) -> Iterator[dict[str, Way]]:
    """Start every peer before the same backends, all in one network; gives how to reach them."""
    with ExitStack() as stack:
        ways: dict[str, Way] = {}
        for name, command in PEERS.items():
            place = Place(folder / name.replace(" ", "-"), free_port(), small, large)
            place.folder.mkdir()
            process = stack.enter_context(_started(command(place), place.folder, within))
            wait_until_it_listens(process, place)
            ways[name] = Way(place.port, worker_of(process.pid), within=within)
        yield ways


@contextmanager
def _started(
    command: list[str], folder: Path, within: Sequence[str]
) -> Iterator[subprocess.Popen[bytes]]:
    log = folder / "out.log"
    own = {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "XDG_DATA_HOME": str(folder)}
    with log.open("wb") as out:
        process = subprocess.Popen(
            # Both of them become the command: the pid is the proxy's.
            ["taskset", "-c", str(PROXY_CPU), *within, *command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=os.environ | own,
        )
    with ending(process):
        yield process


def wait_until_it_listens(process: subprocess.Popen[bytes], place: Place) -> None:
    """Wait until a process's network has a listener on its port; raises SystemExit."""
    deadline = time.monotonic() + UP_S
    while time.monotonic() < deadline and process.poll() is None:
        if is_listening(Path(f"/proc/{process.pid}/net/tcp").read_text(), place.port):
            return
        time.sleep(0.02)  # sleeps: between two looks at the kernel's table
    said = (place.folder / "out.log").read_text(errors="replace")
    raise SystemExit(f"{place.folder.name} does not listen on port {place.port}:\n{said[-2000:]}")


def is_listening(table: str, port: int) -> bool:
    """Whether proc(5)'s net/tcp has a listening socket (state 0A) on a port."""
    rows = [line.split() for line in table.splitlines()[1:]]
    return any(row[1].endswith(f":{port:04X}") and row[3] == "0A" for row in rows)


def worker_of(pid: int) -> int:
    """Return the process that does the work: the one child where a master has one."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if len(children) == 1 else pid
