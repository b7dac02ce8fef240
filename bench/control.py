"""Warm calls while the node is asked about a thousand functions: does anything make callers wait?

One after another everything that a scheduler, an operator or a scrape asks is asked again and again
for a second, and storms of deploys and removals run, each beside a quiet second. `bench.pacing`
calls meanwhile, at a pace. Told are the calls' 99th percentile over the quiet one of the same
round, and the longest that the loop was held. The worker is pinned to one CPU, callers, functions
and those who ask to the other; who asks reads no answer further than its bytes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from agent._pb.worker.v1 import worker_pb2 as pb
from agent.cli.deploy import spec_message
from bench import node
from bench.figures import Goal, Ratio, number, percentile, ratio
from bench.options import Options
from bench.report import Report
from bench.warm import LOAD_CPU, PROXY_CPU
from bench.warm_agent import pin, processes_of

FUNCTIONS, FEW = 1000, 200
ROUNDS, FEW_ROUNDS = 8, 3
SECONDS = 1.0
CONNECTIONS = 4
WARM = "warm"
SERVICE = "/worker.v1.Worker/"
ASK_S = 60.0
WORSE, AIM = 3.0, 2.0
HOLD_MS = 5.0
QUIET = "quiet"
STORM_WIDTH = 4
NEEDS = ("crun",)
ENV = {f"SETTING_{n}": "v" * 40 for n in range(10)}

Ask = Callable[[], object]


class Asker:
    """Asks one agent, without looking at what it answers."""

    def __init__(self, kindling: node.Node) -> None:
        options = [
            ("grpc.default_authority", "localhost"),
            ("grpc.max_receive_message_length", -1),
        ]
        self._channel = grpc.insecure_channel(f"unix:{kindling.agent.socket}", options=options)
        self._metrics = f"http://127.0.0.1:{kindling.agent.admin_port}/metrics"
        self._count = 0

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def ask(self, rpc: str, request: Any) -> bytes:
        """Ask once; returns the answer's bytes."""
        call: Any = self._channel.unary_unary(f"{SERVICE}{rpc}", _serialized)
        answer: bytes = call(request, timeout=ASK_S)
        return answer

    def every_page(self) -> None:
        """Ask for all functions, as a scheduler does that has just started."""
        token = ""
        while True:
            answer = self.ask("List", pb.ListRequest(page_token=token))
            token = pb.ListResponse.FromString(answer).next_page_token
            if not token:
                return

    def status(self) -> None:
        """Ask for what `kindling status` shows."""
        self.ask("GetNode", pb.GetNodeRequest())
        self.every_page()
        self.ask("ListInstances", pb.ListInstancesRequest())
        self.ask("ListImages", pb.ListImagesRequest())

    def scrape(self) -> None:
        """Read the metrics."""
        with urllib.request.urlopen(self._metrics, timeout=ASK_S) as reply:
            reply.read()

    def logs(self, *, follow: bool) -> None:
        """Read the warm function's log, and with `follow` what comes, for half a second."""
        call: Any = self._channel.unary_stream(f"{SERVICE}StreamLogs", _serialized)
        lines = call(pb.StreamLogsRequest(name=WARM, follow=follow), timeout=SECONDS / 2)
        try:
            for _ in lines:
                pass
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                raise

    def deploy(self, name: str, **more: Any) -> None:
        """Deploy a function that nobody calls."""
        values = {"name": name, "image": node.IMAGE, "contract": "fc", "kind": "http", "env": ENV}
        self.ask("Deploy", pb.DeployRequest(spec=spec_message(values | more), wait=True))

    def deploy_and_remove(self) -> None:
        """Deploy a new function and remove it."""
        self._count += 1
        name = f"storm-{threading.get_ident()}-{self._count}"
        self.deploy(name)
        self.ask("Remove", pb.RemoveRequest(name=name, force=True))

    def deploy_again(self) -> None:
        """Deploy one of the many as it is, which changes nothing."""
        self._count += 1
        self.deploy(many(self._count % FEW))

    def deploy_large(self) -> None:
        """Deploy a function whose spec is as large as they get, and remove it."""
        self.deploy("large", args=["v" * 1000] * 500)
        self.ask("Remove", pb.RemoveRequest(name="large", force=True))


def _serialized(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


def many(n: int) -> str:
    """Return the name of one of the many functions."""
    return f"many-{n:04}"


def run(options: Options) -> Report:
    """Deploy, then ask everything in turn."""
    count = FEW if options.quick else FUNCTIONS
    rounds = options.count(quick=FEW_ROUNDS, whole=ROUNDS)
    with node.running({"limits": {"max_functions": FUNCTIONS + 100}}) as kindling:
        asker = Asker(kindling)
        try:
            took_s = prepare(kindling, asker, count)
            waited, probed, asked = measure(options, kindling, questions(asker), rounds)
        finally:
            asker.close()
    return report(count, took_s, waited, probed, asked)


def prepare(kindling: node.Node, asker: Asker, count: int) -> float:
    """Deploy the many and one that is warm; return how long a deploy of the many took."""
    began = time.monotonic()
    for n in range(count):
        asker.deploy(many(n))
    took_s = (time.monotonic() - began) / count
    kindling.deploy(WARM, wait=True, concurrency=100, cpu_millis=2000, scaling={"min": 1, "max": 1})
    pin([kindling.agent.pids["worker"]], PROXY_CPU)
    for instance in kindling.states():
        pin(processes_of(instance), LOAD_CPU)
    return took_s


def questions(asker: Asker) -> dict[str, tuple[Ask, int]]:
    """Return what is asked, by name, and how many ask at a time."""

    def one(rpc: str, request: Any) -> tuple[Ask, int]:
        return partial(asker.ask, rpc, request), 1

    return {
        "List": (asker.every_page, 1),
        "Get": one("Get", pb.GetRequest(name=many(1))),
        "GetNode": one("GetNode", pb.GetNodeRequest()),
        "ListImages": one("ListImages", pb.ListImagesRequest()),
        "status": (asker.status, 1),
        "metrics": (asker.scrape, 1),
        "logs": (lambda: asker.logs(follow=False), 1),
        "log follow": (lambda: asker.logs(follow=True), 1),
        "deploys that change nothing": (asker.deploy_again, STORM_WIDTH),
        "deploys and removals": (asker.deploy_and_remove, STORM_WIDTH),
        "deploys of a large spec": (asker.deploy_large, 1),
    }


Samples = dict[str, list[list[float]]]


def measure(
    options: Options, kindling: node.Node, asked: dict[str, tuple[Ask, int]], rounds: int
) -> tuple[Samples, Samples, dict[str, int]]:
    """Return what calls and probes waited, a list for each round, and how often was asked.

    Ctrl-C ends it and keeps the whole rounds, if there are any.
    """
    waited: Samples = defaultdict(list)
    probed: Samples = defaultdict(list)
    count: dict[str, int] = defaultdict(int)
    whole = 0

    def called(name: str) -> None:
        found = paced(kindling)
        waited[name].append(found["calls"])
        probed[name].append(found["probes"])

    try:
        for _ in range(rounds):
            for name, (ask, width) in asked.items():
                called(QUIET)
                with asking(ask, width) as done:
                    called(name)
                count[name] += done[0]
            whole += 1
    except KeyboardInterrupt:
        options.stopped.set()
        if not whole:
            raise
        for samples in (waited, probed):
            for name, found in samples.items():
                del found[whole * (len(asked) if name == QUIET else 1) :]
    return waited, probed, count


def paced(kindling: node.Node) -> dict[str, list[float]]:
    """Call for a second, from a process of its own."""
    given = ("--seconds", str(SECONDS), "--connections", str(CONNECTIONS))
    command = (sys.executable, "-m", "bench.pacing", str(kindling.port), f"/http/{WARM}/", *given)
    done = subprocess.run(
        ["taskset", "-c", str(LOAD_CPU), *command],
        stdout=subprocess.PIPE,
        check=True,
        cwd=Path(__file__).resolve().parents[1],
    )
    found: dict[str, list[float]] = json.loads(done.stdout)
    return found


@contextmanager
def asking(ask: Ask, width: int) -> Iterator[list[int]]:
    """Ask again and again until the block ends, so many at a time; yields how often, at the end."""
    over = threading.Event()
    done = [0]
    failed: list[Exception] = []

    def work() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)  # the callers come first
        try:
            while not over.is_set():
                ask()
                done[0] += 1
        except Exception as error:  # told when the block ends
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(width)]
    for thread in threads:
        thread.start()
    try:
        yield done
    finally:
        over.set()
        for thread in threads:
            thread.join()
    if failed:
        raise failed[0]


def report(
    count: int, deploy_s: float, waited: Samples, probed: Samples, asked: dict[str, int]
) -> Report:
    """Put the figures together."""
    pairs = neighbours(waited, list(asked))
    ratios: dict[str, Ratio] = {
        name: ratio(
            [percentile(one, 99) for one in waited[name]],
            [percentile(one, 99) for one in pairs[name]],
        )
        for name in asked
    }
    quiet_ms = [one for some in waited[QUIET] for one in some]
    quiet = percentile(quiet_ms, 99)
    lines = [
        f"{count} functions, deployed in {deploy_s * 1000:.1f} ms each; {CONNECTIONS} connections",
        "",
        f"{'':28} {'p50':>8} {'p99':>8} {'longest hold':>13} {'asked':>8}   ms",
        _line(QUIET, quiet_ms, probed[QUIET], 0),
    ]
    lines += [
        _line(name, [one for some in waited[name] for one in some], probed[name], asked[name])
        for name in asked
    ]
    worst = max(ratios, key=lambda name: ratios[name].of_medians)
    # The quiet seconds say what the machine itself does to the longest of so many waits.
    quiet_hold = _hold(probed[QUIET])
    holds = {name: _hold(probed[name]) for name in asked}
    longest = max(holds, key=lambda name: holds[name])
    beyond = max(0.0, holds[longest] - quiet_hold)
    goals = [
        Goal(f"warm p99 under {worst} / quiet", ratios[worst].of_medians, WORSE),
        Goal(f"warm p99 under {worst} / quiet (final)", ratios[worst].of_medians, AIM),
        Goal(f"longest hold beyond a quiet one, ms: {longest}", beyond, HOLD_MS),
    ]
    figures = {
        "functions": count,
        "deploy_ms": deploy_s * 1000,
        "quiet_p99_ms": quiet,
        "hold_ms": {QUIET: quiet_hold, **holds},
        "asked": asked,
    }
    samples = {name: [percentile(one, 99) for one in some] for name, some in waited.items()}
    return Report("warm calls while the node is asked", lines, figures, ratios, goals, samples)


def neighbours(waited: Samples, names: list[str]) -> Samples:
    """Return the quiet second just before each second of asking, by what was asked then."""
    return {name: waited[QUIET][place :: len(names)] for place, name in enumerate(names)}


def _hold(rounds: list[list[float]]) -> float:
    """Return the longest wait of a probe in a usual round: the machine itself stalls sometimes."""
    return percentile([max(one) for one in rounds], 50)


def _line(name: str, waited_ms: list[float], probed: list[list[float]], asked: int) -> str:
    cells = (percentile(waited_ms, 50), percentile(waited_ms, 99))
    shown = "".join(f" {number(one):>8}" for one in cells)
    return f"{name:28}{shown} {number(_hold(probed)):>13} {asked:>8}"
