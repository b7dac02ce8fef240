"""Calls to a frozen instance (L4) against calls to one that runs, and what a freeze costs.

Two equal functions on one agent, one frozen after each call, one never; each round calls both once,
in changing order, over kept connections, each after the same pause, in which the one is seen frozen
in the kernel's file: what a pause costs by itself (cold caches, a sleeping processor) is in both.
The clock runs from the sent request to the first byte of the reply. Calls that follow each other
without a pause are taken too: nothing may be frozen between them.
"""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field

from agent.cgroups.tree import CgroupTree
from bench import node, rounds
from bench.figures import Goal, ratio, summary, table
from bench.options import Options
from bench.report import Report

PAUSE_S = 0.03
FROZEN_S = 5.0
REPLY_BYTES = 65536
NEEDS = ("crun",)
STREAK = 200
"""Calls without a pause, per function and round of a tenth."""
FREEZES = "kindling_instance_freezes_total"
WAYS = {
    "GET": ("http", "GET /http/{name}/ HTTP/1.1\r\nHost: bench\r\n\r\n"),
    "event": ("event", "POST /invoke/{name} HTTP/1.1\r\nHost: bench\r\nContent-Length: 0\r\n\r\n"),
}


class Line:
    """One function's kept connection of a caller, and its instance's control group."""

    def __init__(self, kindling: node.Node, way: str, *, frozen: bool) -> None:
        kind, request = WAYS[way]
        self.way = way
        self.label = f"{way}, {'frozen' if frozen else 'after the same pause'}"
        self.name = f"{way.lower()}-{'frozen' if frozen else 'warm'}"
        self.frozen = frozen
        after_ms = 0 if frozen else -1
        scaling = {"min": 1, "max": 1, "freeze_after_ms": after_ms}
        kindling.deploy(self.name, wait=True, kind=kind, scaling=scaling)
        self._request = request.format(name=self.name).encode()
        self._sock = socket.create_connection(("127.0.0.1", kindling.port), 30)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        (id,) = (one for one in kindling.states() if one.startswith(self.name))
        self.group = CgroupTree.load(kindling.agent.run, node.NODE).instance(id)
        self.call()  # before its first call none is frozen

    def close(self) -> None:
        """Let go of connection and group."""
        self._sock.close()
        self.group.close()

    def call(self) -> float:
        """Make one call; return the milliseconds to the first byte of its reply."""
        mark = time.perf_counter()
        self._sock.sendall(self._request)
        first = self._sock.recv(1)
        took_ms = (time.perf_counter() - mark) * 1000
        reply = first + self._sock.recv(REPLY_BYTES)
        assert reply.startswith(b"HTTP/1.1 200"), reply[:500]
        return took_ms

    def rested_call(self, number: int) -> rounds.Found:
        """Make one call after a pause."""
        del number
        self.rest()
        return {self.label: self.call()}

    def rest(self) -> None:
        """Let it rest, to the freeze if it is the frozen one's."""
        time.sleep(PAUSE_S)
        deadline = time.perf_counter() + FROZEN_S
        while self.group.is_frozen() is not self.frozen:
            assert time.perf_counter() < deadline, f"{self.name} is not as it should be"
            time.sleep(PAUSE_S)


def run(options: Options) -> Report:
    """Measure both, interleaved."""
    count = options.count(quick=60, whole=60, alone=300)
    found = Found()
    with node.running() as kindling, ExitStack() as stack:
        for way in WAYS:
            lines = [
                stack.enter_context(closing(Line(kindling, way, frozen=frozen)))
                for frozen in (False, True)
            ]
            try:
                measure(options, kindling, lines, count, found)
            except KeyboardInterrupt:
                options.stopped.set()
                if not found.samples:
                    raise
            if options.stopped.is_set():
                break
    return report(found)


@dataclass
class Found:
    """Milliseconds of calls, microseconds of the freezer's writes, and freezes in each streak."""

    samples: dict[str, list[float]] = field(default_factory=dict)
    costs: dict[str, list[float]] = field(default_factory=dict)
    per_streak: list[float] = field(default_factory=list)


def measure(
    options: Options, kindling: node.Node, lines: Sequence[Line], count: int, found: Found
) -> None:
    """Measure the two functions of one kind; streaks and writes only if nobody wants the end."""
    found.samples |= rounds.take(options, count, {one.label: one.rested_call for one in lines})
    if options.stopped.is_set():
        return
    before, streaks = freezes(kindling), max(1, count // 10)
    unbroken: dict[str, list[float]] = {}
    for _ in range(streaks):
        for line in lines:
            took = [line.call() for _ in range(STREAK)]
            rhythm = "frozen after each call" if line.frozen else "never frozen"
            unbroken.setdefault(f"{line.way} without a pause, {rhythm}", []).extend(took)
    found.per_streak.append((freezes(kindling) - before) / streaks)
    found.samples |= unbroken
    found.costs = freezer_costs(lines[0], count)


def freezes(kindling: node.Node) -> float:
    """Return how often something was frozen so far."""
    page = kindling.agent.http("GET", "/metrics", port=kindling.agent.admin_port).body.decode()
    (line,) = (line for line in page.splitlines() if line.startswith(FREEZES + " "))
    return float(line.split()[1])


def freezer_costs(line: Line, rounds: int) -> dict[str, list[float]]:
    """Return the microseconds of the two writes, on the group of an instance that runs."""
    costs: dict[str, list[float]] = {"freeze, one write": [], "thaw, one write": []}
    for _ in range(rounds):
        marks = [time.perf_counter()]
        line.group.freeze()
        marks.append(time.perf_counter())
        deadline = marks[-1] + FROZEN_S
        while not line.group.is_frozen():
            assert time.perf_counter() < deadline
        marks.append(time.perf_counter())
        line.group.thaw()
        marks.append(time.perf_counter())
        costs["freeze, one write"].append((marks[1] - marks[0]) * 1e6)
        costs["thaw, one write"].append((marks[3] - marks[2]) * 1e6)
    return costs


def report(found: Found) -> Report:
    """Put the figures of a run together."""
    samples, costs = found.samples, found.costs
    ways = [way for way in WAYS if f"{way}, frozen" in samples]
    ratios = {
        f"L4 {way} / the same after a pause": ratio(
            samples[f"{way}, frozen"], samples[f"{way}, after the same pause"]
        )
        for way in ways
    }
    goals = [
        Goal(f"L4 {way} / warm p50 in the same rhythm", one.of_medians, 2.0)
        for way, one in zip(ways, ratios.values(), strict=True)
    ]
    if found.per_streak:
        # Each streak is followed by one, while the other function's runs.
        per_call = max(0.0, statistics.mean(found.per_streak) - 1) / STREAK
        goals.append(Goal("freezes per call without a pause", per_call, 0.01))
    figures = {name: summary(found) for name, found in (samples | costs).items()}
    return Report(
        title=f"calls to a frozen instance (L4), pauses of {PAUSE_S * 1000:.0f} ms",
        lines=[
            *table(samples, "ms to the first byte"),
            "",
            "the freezer file of an instance that runs, written from outside:",
            *table(costs, "us"),
        ],
        figures=figures,
        ratios=ratios,
        goals=goals,
        samples=samples | costs,
    )
