"""Cold starts against `crun run`, `runc run`, `ctr run` and rootless `podman run`.

L1 is a local image with nothing prepared, L2 an image that is new while its layers are here.
Kindling's clock runs from the moment the request is sent to the first byte of the function's reply
(L2: from the deploy, which comes right before the request); a peer's from the start of its command
to the first byte of the same server's reply. Each round takes every one of them once, in an order
of its own, after a pause: a start right behind another finds the kernel's cgroup lock warm and
would flatter whoever comes second. What a peer's command takes to start itself is measured beside.
Deletes are taken on the way.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import drawing, house, node, podman, rounds
from bench.figures import Goal, Ratio, ratio, summary, table
from bench.options import Options
from bench.report import Report
from tests import strangers
from tests.integration.running import free_ports

NEEDS = ("crun", "runc", "podman")
PAUSE_S = 0.2
BARE = ("crun", "runc")
PEERS = ("crun run", "runc run", "ctr run", "podman run")
NEW = "image new"
AS_SHIPPED = {"writable": "slots"}
"""Starts pay for what a node has by default: a quota slot, not a tmpfs."""
PHASES = ("queue", "image", "slots", "create", "start", "listen", "init")
PHASE, NEW_PHASE = "phase ", "phase, image new: "


@dataclass(frozen=True, slots=True)
class Bench:
    """Who is measured, each by the number of its round."""

    kindling: node.Node
    peers: house.House
    podman: podman.Podman
    place: Path

    def contenders(self) -> dict[str, rounds.Contender]:
        """Return everything that a round takes, by name."""
        return {
            "kindling": self.known,
            "kindling, image new": self.new,
            **{f"{name} run": self._bare(name) for name in BARE},
            "ctr run": self.ctr,
            "ctr run, image new": self.ctr_new,
            "podman run": self.podmans,
            "plain": self.plain,
            "clients": self.clients,
        }

    def known(self, number: int) -> rounds.Found:
        """L1, and the end of the instance."""
        name = f"cold{number}"
        self.kindling.deploy(name, scaling={"min": 0})
        time.sleep(PAUSE_S)
        answer = self.peers.ask("http", port=self.kindling.port, path=f"/http/{name}/")
        found = phases_of(answer["phases"], PHASE) | {"kindling": answer["ms"]}
        time.sleep(PAUSE_S)
        mark = time.perf_counter()
        self.kindling.remove(name)
        return found | {"delete, kindling": (time.perf_counter() - mark) * 1000}

    def new(self, number: int) -> rounds.Found:
        """L2: deploy and first call of an image whose layers another one has brought."""
        name = f"new{number}"
        with self._fresh(name) as archive:
            self.kindling.load(archive)
        time.sleep(PAUSE_S)
        mark = time.perf_counter()
        self.kindling.deploy(name, image=ref_of(name), scaling={"min": 0})
        deploy_ms = (time.perf_counter() - mark) * 1000
        answer = self.peers.ask("http", port=self.kindling.port, path=f"/http/{name}/")
        self.kindling.remove(name)
        found = phases_of(answer["phases"], NEW_PHASE)
        return found | {
            f"{NEW_PHASE}deploy": deploy_ms,
            f"kindling, {NEW}": deploy_ms + answer["ms"],
        }

    def _bare(self, runtime: str) -> rounds.Contender:
        def start(number: int) -> rounds.Found:
            time.sleep(PAUSE_S)
            answer = self.peers.ask(runtime, id=f"{runtime}{number}", port=free_ports(1)[0])
            return {f"{runtime} run": answer["ms"]}

        return start

    def ctr(self, number: int) -> rounds.Found:
        """Start the known image by ctr."""
        time.sleep(PAUSE_S)
        answer = self.peers.ask("ctr", id=f"ctr{number}", port=free_ports(1)[0])
        return {"ctr run": answer["ms"]}

    def ctr_new(self, number: int) -> rounds.Found:
        """Start a new image with known layers by ctr."""
        name = f"other{number}"
        with self._fresh(name) as archive:
            self.peers.ask("load", archive=str(archive))
        time.sleep(PAUSE_S)
        answer = self.peers.ask("ctr", id=name, port=free_ports(1)[0], ref=ref_of(name))
        return {f"ctr run, {NEW}": answer["ms"]}

    def podmans(self, number: int) -> rounds.Found:
        """Start the known image by rootless podman."""
        time.sleep(PAUSE_S)
        return {"podman run": self.podman.start(node.IMAGE, f"cold{number}", free_ports(1)[0])}

    def plain(self, number: int) -> rounds.Found:
        """End a container of plain containerd."""
        id = f"gone{number}"
        self.peers.ask("plain_start", id=id, port=free_ports(1)[0])
        time.sleep(PAUSE_S)
        return {"delete, plain containerd": self.peers.ask("plain_end", id=id)["ms"]}

    def clients(self, number: int) -> rounds.Found:
        """Start every peer's command for nothing."""
        del number
        names = (*BARE, "ctr")
        found = {client_of(f"{name} run"): self.peers.ask("client", program=name) for name in names}
        ours = {name: answer["ms"] for name, answer in found.items()}
        return ours | {client_of("podman run"): self.podman.client()}

    @contextmanager
    def _fresh(self, name: str) -> Iterator[Path]:
        """Write the static image under another name and with another config; same layers."""
        file = self.place / f"{name}.tar"
        base = strangers.Base.read(node.ARCHIVE)
        strangers.write(file, ref_of(name), base, config={"Labels": {"bench": name}})
        try:
            yield file
        finally:
            file.unlink()


def ref_of(name: str) -> str:
    """Return the reference of an image made for one round."""
    return f"kindling.local/{name}:1"


def client_of(peer: str) -> str:
    """Return the name of a figure: what a peer's command takes to start itself."""
    return f"{peer.removesuffix(' run')} --version"


def phases_of(found: dict[str, float], prefix: str) -> dict[str, float]:
    """Return the phases of a start as figures."""
    return {f"{prefix}{name}": found.get(name, 0.0) for name in PHASES}


def run(options: Options) -> Report:
    """Measure all of them, interleaved."""
    count = options.count(quick=7, whole=50)
    with (
        tempfile.TemporaryDirectory(prefix="kd-cold-", dir="/tmp") as place,
        node.running(options.sections(storage=AS_SHIPPED)) as kindling,
        house.opened() as peers,
        podman.store() as beside,
    ):
        Path(place).chmod(0o755)
        beside.load(node.ARCHIVE)
        bench = Bench(kindling, peers, beside, Path(place))
        return report(rounds.take(options, count, bench.contenders()), options.without)


def report(samples: dict[str, list[float]], without: Sequence[str] = ()) -> Report:
    """Put the figures of a run together."""
    starts = {name: samples[name] for name in ("kindling", *PEERS)}
    new = {name: samples[name] for name in (f"kindling, {NEW}", f"ctr run, {NEW}")}
    deletes = {name: found for name, found in samples.items() if name.startswith("delete")}
    clients = {client_of(name): samples[client_of(name)] for name in PEERS}
    ratios = ratios_of(samples)
    to = {peer: ratios[f"L1 / {peer}"].of_medians for peer in PEERS}
    deleted = ratios["delete / plain containerd"].of_medians
    goals = [
        Goal("L1 / crun run (final)", to["crun run"], 3.0),
        Goal("L1 / ctr run (final)", to["ctr run"], 0.25),
        Goal("L1 / rootless podman run (final)", to["podman run"], 0.15),
        Goal("D delete / plain containerd (final)", deleted, 0.45),
    ]
    phases = {name: samples[f"{PHASE}{name}"] for name in PHASES}
    median = {name: summary(found).median for name, found in samples.items()}
    outside_ms = median["kindling"] - sum(median[f"{PHASE}{name}"] for name in PHASES)
    return Report(
        title="cold start of a local image, nothing prepared (L1), and of a new one (L2)"
        + "".join(f", without {lever}" for lever in without),
        lines=[
            *table(starts, "ms to the first byte"),
            "",
            "of which the peers' own commands take to start (they do nothing else here):",
            *table(clients, "ms"),
            "",
            "kindling's own phases (medians):",
            *table(phases, "ms"),
            f"outside of them: {outside_ms:.2f} ms (HTTP in, hand-over, the function's reply)",
            "",
            "L2, the image new and its layers here, from deploy to the first byte:",
            *table(new, "ms"),
            "",
            "end of a running instance, killed and wholly removed:",
            *table(deletes, "ms"),
        ],
        figures={name: summary(found) for name, found in samples.items()},
        ratios=ratios,
        goals=goals,
        samples=samples,
        pictures=pictures(samples, median),
    )


def ratios_of(samples: dict[str, list[float]]) -> dict[str, Ratio]:
    """Return every ratio of the run, by name."""
    ours = samples["kindling"]
    found = {f"L1 / {peer}": ratio(ours, samples[peer]) for peer in PEERS}
    for peer in ("ctr run", "podman run"):
        own = zip(samples[peer], samples[client_of(peer)], strict=True)
        less = [max(took - client, 0.1) for took, client in own]
        found[f"L1 / {peer} less its client's start"] = ratio(ours, less)
    found["L2 / ctr run, image new"] = ratio(
        samples[f"kindling, {NEW}"], samples[f"ctr run, {NEW}"]
    )
    found["L2 / L1"] = ratio(samples[f"kindling, {NEW}"], ours)
    found["delete / plain containerd"] = ratio(
        samples["delete, kindling"], samples["delete, plain containerd"]
    )
    return found


def pictures(
    samples: dict[str, list[float]], median: dict[str, float]
) -> Sequence[drawing.Picture]:
    """Draw where the time of a start goes, and how starts are distributed."""
    rows: dict[str, dict[str, float]] = {
        "Kindling": parts_of(median, "kindling", PHASE, PHASES),
        f"Kindling, {NEW}": parts_of(median, f"kindling, {NEW}", NEW_PHASE, ("deploy", *PHASES)),
    }
    for peer in (*PEERS[:3], f"ctr run, {NEW}", *PEERS[3:]):
        client = median[client_of(peer.split(",")[0])]
        rows[peer] = {"its command": client, "": max(median[peer] - client, 0.0)}
    shown = {name: samples[name] for name in ("kindling", *PEERS, f"kindling, {NEW}")}
    return (
        drawing.waterfall("waterfall", "Cold start to the first byte of a reply", rows, "ms"),
        drawing.cdf("cdf", "Cold starts", shown, "ms to the first byte"),
    )


def parts_of(
    median: dict[str, Any], whole: str, prefix: str, names: Sequence[str]
) -> dict[str, float]:
    """Return the parts of a start, and what is outside of them, as one bar."""
    parts = {name: median[f"{prefix}{name}"] for name in names}
    return parts | {"call": max(median[whole] - sum(parts.values()), 0.0)}
