"""Many cold starts at once beside warm calls: who waits for whom?

A function is deployed that wants two hundred instances at once, and two hundred calls come to it.
Warm calls go on at a pace meanwhile (`bench.pacing`), and a little later the first call comes to
another function. Told are the warm calls' 99th percentile over that of the quiet seconds before,
the other function's first call over the whole burst, and what was not answered or did not start.
"""

from __future__ import annotations

import selectors
import socket
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from bench import node, probe
from bench.control import WARM, paced
from bench.figures import Goal, number, percentile, ratio, table
from bench.options import Options
from bench.report import Report
from bench.warm import LOAD_CPU, PROXY_CPU
from bench.warm_agent import pin, processes_of

BURST, FEW = 200, 60
ROUNDS, FEW_ROUNDS = 3, 1
NEEDS = ("crun",)
MANY, OTHER = "many", "other"
LATER_S = 0.3
REPLY_S = 120.0
LOOK_S = 0.05
SETTLE_S = 2.0
ENOUGH_MB = 1 << 20  # admission counts memory limits, which idle instances do not use
WORSE, SHARE = 5.0, 0.2


@dataclass
class Burst:
    """What came of one burst, milliseconds."""

    took_ms: float
    calls_ms: list[float]
    failed: int
    warm_ms: list[float]
    other_ms: float


@dataclass
class Found:
    """What all rounds found."""

    quiet: list[list[float]] = field(default_factory=list)
    alone_ms: list[float] = field(default_factory=list)
    bursts: list[Burst] = field(default_factory=list)


def run(options: Options) -> Report:
    """Measure quiet seconds and bursts in turn."""
    count = FEW if options.quick else BURST
    found = Found()
    with node.running({"limits": {"memory_mb": ENOUGH_MB}}) as kindling:
        prepare(kindling)
        try:
            for _ in range(options.count(quick=FEW_ROUNDS, whole=ROUNDS)):
                take(kindling, count, found)
        except KeyboardInterrupt:
            options.stopped.set()
            if not found.bursts:
                raise
    return report(count, found)


def take(kindling: node.Node, count: int, found: Found) -> None:
    """Measure one round; it counts when it is whole."""
    quiet = paced(kindling)["calls"] + paced(kindling)["calls"]
    with fresh(kindling):
        alone_ms = first_call(kindling)
    with fresh(kindling):
        one = burst(kindling, count)
    kindling.remove(MANY)
    found.quiet.append(quiet)
    found.alone_ms.append(alone_ms)
    found.bursts.append(one)


def prepare(kindling: node.Node) -> None:
    """Deploy the warm function, and keep worker and callers apart as the warm benches do."""
    kindling.deploy(WARM, wait=True, concurrency=100, cpu_millis=2000, scaling={"min": 1, "max": 1})
    pin([kindling.agent.pids["worker"]], PROXY_CPU)
    for instance in kindling.states():
        pin(processes_of(instance), LOAD_CPU)


@contextmanager
def fresh(kindling: node.Node) -> Iterator[None]:
    """Have the other function without an instance, and every slot ready again."""
    kindling.deploy(OTHER, scaling={"max": 1})
    time.sleep(SETTLE_S)
    try:
        yield
    finally:
        kindling.remove(OTHER)


def first_call(kindling: node.Node) -> float:
    """Return how long the other function's first call takes."""
    took_ms, reply = probe.call(kindling.port, f"/http/{OTHER}/", REPLY_S)
    if not reply.startswith(b"HTTP/1.1 200"):
        raise SystemExit(f"{OTHER} did not answer: {reply[:300]!r}")
    return took_ms


def burst(kindling: node.Node, count: int) -> Burst:
    """Start many at once and call them, the other function a little later, warm ones meanwhile."""
    over = threading.Event()

    def warm() -> list[float]:
        waited_ms: list[float] = []
        while not over.is_set():
            waited_ms += paced(kindling)["calls"]
        return waited_ms

    def other() -> float:
        time.sleep(LATER_S)  # all starts of the burst are wanted by now
        return first_call(kindling)

    with ThreadPoolExecutor(2) as beside:
        try:
            warm_ms = beside.submit(warm)
            time.sleep(LATER_S)  # warm calls go on for a moment first
            began = time.perf_counter()
            many = {"min": count, "max": count}
            kindling.deploy(MANY, memory_mb=128, concurrency=1, scaling=many)
            other_ms = beside.submit(other)
            calls_ms, failed = all_at_once(kindling.port, count)
            while (ready := _ready(kindling)) < count and time.perf_counter() - began < REPLY_S:
                time.sleep(LOOK_S)
            took_ms = (time.perf_counter() - began) * 1000
        finally:
            over.set()
    failed += count - ready
    return Burst(took_ms, calls_ms, failed, warm_ms.result(), other_ms.result())


def _ready(kindling: node.Node) -> int:
    """Return how many instances of the burst serve."""
    states = kindling.states().items()
    found = Counter(state for id, state in states if id.startswith(MANY))
    return found["READY"] + found["FROZEN"]


def all_at_once(port: int, count: int) -> tuple[list[float], int]:
    """Send so many calls and take their replies; returns how long each took, and the failed."""
    request = probe.request(f"/http/{MANY}/")
    calls_ms: list[float] = []
    failed = 0
    with selectors.DefaultSelector() as selector:
        socks = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
        began = time.perf_counter()
        for sock in socks:
            sock.sendall(request)
            selector.register(sock, selectors.EVENT_READ, sock)
        while selector.get_map() and time.perf_counter() - began < REPLY_S:
            for key, _ in selector.select(1.0):
                reply = key.data.recv(4096)
                calls_ms.append((time.perf_counter() - began) * 1000)
                failed += not reply.startswith(b"HTTP/1.1 200")
                selector.unregister(key.data)
        failed += len(selector.get_map())
    for sock in socks:
        sock.close()
    return calls_ms, failed


def report(count: int, found: Found) -> Report:
    """Put the figures together."""
    quiet_ms = [percentile(one, 99) for one in found.quiet]
    warm_ms = [percentile(one.warm_ms, 99) for one in found.bursts]
    other_ms = [one.other_ms for one in found.bursts]
    whole_ms = [one.took_ms for one in found.bursts]
    failed = sum(one.failed for one in found.bursts)
    per_second = count / statistics.median(whole_ms) * 1000
    rows = {
        "warm, quiet, p99": quiet_ms,
        "warm, burst, p99": warm_ms,
        "other's first, alone": found.alone_ms,
        "other's first, burst": other_ms,
        "burst, first call": [min(one.calls_ms) for one in found.bursts],
        "burst, last call": [max(one.calls_ms) for one in found.bursts],
        "burst, all started": whole_ms,
    }
    lines = [
        f"{count} starts at once: {number(per_second)} a second, {failed} failed",
        "",
        *table(rows, "ms"),
    ]
    warm, share = ratio(warm_ms, quiet_ms), ratio(other_ms, whole_ms)
    goals = [
        Goal("warm p99 in a burst / quiet", warm.of_medians, WORSE),
        Goal("calls without an answer, and starts that failed", failed, 0),
        Goal("another function's first call / the burst", share.of_medians, SHARE),
    ]
    ratios = {
        "warm p99, burst / quiet": warm,
        "other's first call, burst / alone": ratio(other_ms, found.alone_ms),
        "other's first call / the burst": share,
    }
    figures = {"starts": count, "starts_per_s": per_second, "failed": failed}
    return Report(f"bursts: {count} cold starts at once", lines, figures, ratios, goals, rows)
