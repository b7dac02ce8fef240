"""Cold starts of functions as people write them: Python, Node and Java.

What the node adds to them is what `cold` measures with a static server; here is what is left of
it beside a language's own start. They have both processors, as they have under `ctr run` of the
same image, the peer. Clocks, rounds and pauses are those of `cold`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from bench import drawing, house, node, rounds
from bench.cold import AS_SHIPPED, PHASES, phases_of
from bench.figures import Ratio, ratio, summary, table
from bench.options import Options
from bench.report import Report
from tests.integration.running import free_ports

NEEDS = ("crun", "runc")
SOFTWARE = ("express", "java")
PAUSE_S = 0.1


@dataclass(frozen=True, slots=True)
class Function:
    """An image of images/ and how it is started; `path` answers with 200."""

    name: str
    image: str
    path: str = ""
    arguments: Sequence[str] = ()
    port_variable: str = ""
    memory_mb: int = 128

    @property
    def ref(self) -> str:
        """The image's reference."""
        return f"kindling.local/{self.image}:1"

    @property
    def spec(self) -> dict[str, Any]:
        """The fields of its spec beyond a name."""
        own = {"command": list(self.arguments)} if self.arguments else {}
        env = {self.port_variable: "9000"} if self.port_variable else {}
        limits = {"memory_mb": self.memory_mb, "cpu_millis": 2000}
        return {"image": self.ref, "env": env, **limits, **own}


FUNCTIONS = (
    Function("Python", "hello-http"),
    Function(
        *("Node", "express"), arguments=("node", "server.js"), port_variable="PORT", memory_mb=256
    ),
    Function("Java", "java", path="limits", memory_mb=512),
)


@dataclass(frozen=True, slots=True)
class Bench:
    """Who is measured."""

    kindling: node.Node
    peers: house.House
    functions: Sequence[Function] = field(default=FUNCTIONS)

    def contenders(self) -> dict[str, rounds.Contender]:
        """Return each function under each of both, by name."""
        found: dict[str, rounds.Contender] = {}
        for one in self.functions:
            found[f"{one.name}, kindling"] = partial(self.ours, one)
            found[f"{one.name}, ctr run"] = partial(self.theirs, one)
        return found

    def ours(self, one: Function, number: int) -> rounds.Found:
        """Start it by its first call."""
        name = f"{one.name.lower()}{number}"
        self.kindling.deploy(name, scaling={"min": 0}, **one.spec)
        time.sleep(PAUSE_S)
        path = f"/http/{name}/{one.path}"
        answer = self.peers.ask("http", port=self.kindling.port, path=path)
        self.kindling.remove(name)
        found = phases_of(answer["phases"], f"{one.name}, phase ")
        return found | {f"{one.name}, kindling": answer["ms"]}

    def theirs(self, one: Function, number: int) -> rounds.Found:
        """Start it by ctr."""
        time.sleep(PAUSE_S)
        port = free_ports(1)[0]
        answer = self.peers.ask(
            *("ctr",),
            id=f"{one.name.lower()}{number}",
            port=port,
            ref=one.ref,
            path=f"/{one.path}",
            arguments=list(one.arguments),
            environment=[f"{one.port_variable}={port}"] if one.port_variable else [],
        )
        return {f"{one.name}, ctr run": answer["ms"]}


def run(options: Options) -> Report:
    """Measure all of them, interleaved."""
    count = options.count(quick=3, whole=30, alone=50)
    archives = [node.ARCHIVE.with_name(f"{one.image}.tar") for one in FUNCTIONS]
    with (
        node.running(options.sections(storage=AS_SHIPPED)) as kindling,
        house.opened(archives) as peers,
    ):
        for archive in archives:
            kindling.load(archive)
        return report(rounds.take(options, count, Bench(kindling, peers).contenders()))


def report(samples: dict[str, list[float]]) -> Report:
    """Put the figures of a run together."""
    starts: dict[str, list[float]] = {}
    rows: dict[str, dict[str, float]] = {}
    ratios: dict[str, Ratio] = {}
    for one in FUNCTIONS:
        ours, theirs = f"{one.name}, kindling", f"{one.name}, ctr run"
        starts |= {name: samples[name] for name in (ours, theirs)}
        ratios[f"{one.name}: kindling / ctr run"] = ratio(samples[ours], samples[theirs])
        parts = {name: summary(samples[f"{one.name}, phase {name}"]).median for name in PHASES}
        rest = summary(samples[ours]).median - sum(parts.values())
        rows[f"{one.name}, Kindling"] = parts | {"call": max(rest, 0.0)}
        rows[f"{one.name}, ctr run"] = {"": summary(samples[theirs]).median}
    listens = {one.name: samples[f"{one.name}, phase listen"] for one in FUNCTIONS}
    title = "Cold starts by language; from `listen` on it is the function's own"
    return Report(
        title="cold starts of functions in several languages",
        lines=[
            *table(starts, "ms to the first byte"),
            "",
            "of which the function takes until it listens:",
            *table(listens, "ms"),
        ],
        figures={name: summary(found) for name, found in samples.items()},
        ratios=ratios,
        samples=samples,
        pictures=[drawing.waterfall("waterfall", title, rows, "ms")],
    )
