"""From a deploy to the first reply of an image that is behind a link of 200 Mbit/s and 10 ms.

Kindling fetches whole (eager), by its lazy engine, and as `auto` decides; `ctr` and rootless podman
pull and run. Each round takes every one of them once, in an order of its own, with nothing left
from before: node, containerd and podman's store are new ones each time, on a file system of their
own. So Kindling pays for the start of its lazy engine. Indexes are made by another node beforehand.
Bytes that came over the link are counted until the first reply and drawn over time in a picture for
each image. The worker's memory is watched while it pulls.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from bench import drawing, ground, house, link, node, podman, pull_images
from bench.figures import Goal, ratio, summary, table
from bench.options import Options
from bench.probe import call
from bench.pull_images import Pulled
from bench.report import Report
from tests.integration.running import Sections, free_ports, own

NEEDS = ("docker-registry", "podman", "ip", "tc", "crun", "runc", "mkfs.ext4")
SIZES = ("30", "100", "250", "1000")
WAYS = ("eager", "lazy", "auto")
PEERS = ("ctr", "podman")
REPLY_S = 300.0
MB = 1 << 20
LARGE = 200 * MB  # compressed; from here on a lazy start has to take a fifth of an eager one
BASE = node.ARCHIVE.with_name("hello-http.tar")


class Run:
    """One run: the link, and what was found by image and contender."""

    def __init__(self, here: link.Link, hosts: Path) -> None:
        self._link = here
        self._hosts = hosts
        self.took_ms: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.fetched: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.curves: dict[str, dict[str, list[tuple[float, int]]]] = defaultdict(dict)
        self.worker_mb: list[float] = []

    def take(self, image: Pulled, who: str) -> None:
        """Measure one contender with one image once."""
        ref, (port,) = f"{link.ADDRESS}/{image.name}:1", free_ports(1)
        with ground.fresh() as place:
            if who == "ctr":
                with house.opened(parent=place) as peers, self._link.watching() as watched:
                    asked = {"ref": ref, "hosts": str(self._hosts), "id": f"pull{port}"}
                    took_ms = peers.ask("ctr_pull", **asked, port=port)["ms"]
            elif who == "podman":
                certificates = self._hosts / link.ADDRESS
                with podman.store(certificates, place) as beside, self._link.watching() as watched:
                    took_ms = beside.pull_and_run(ref, port)
            else:
                with (
                    node.running(sections(self._hosts, place)) as kindling,
                    self._link.watching() as watched,
                ):
                    took_ms = self._kindlings(kindling, who, ref)
        until = [point for point in watched.points if point[0] * 1000 <= took_ms + 100]
        self.took_ms[image.name][who].append(took_ms)
        self.fetched[image.name][who].append(until[-1][1] / MB)
        self.curves[image.name][who] = until

    def keep(self, image: Pulled, rounds: int) -> None:
        """Forget what an image has beyond so many rounds; with none, the image."""
        for figures in (self.took_ms, self.fetched):
            for values in figures[image.name].values():
                del values[rounds:]
            if not rounds:
                del figures[image.name]

    def _kindlings(self, kindling: node.Node, way: str, ref: str) -> float:
        before_mb = kindling.worker_mb()
        mark = time.perf_counter()
        kindling.deploy("pull", image=ref, acceleration=way, wait=True)
        call(kindling.port, "/http/pull/", REPLY_S)
        took_ms = (time.perf_counter() - mark) * 1000
        self.worker_mb.append(kindling.worker_peak_mb() - before_mb)
        kindling.remove("pull")
        return took_ms


def run(options: Options) -> Report:
    """Measure all of them, interleaved."""
    rounds = options.count(quick=1, whole=2, alone=5)
    short = ("30",) if options.quick and options.whole else ("30", "250")
    sizes = short if options.quick or options.whole else SIZES
    place = Path(tempfile.mkdtemp(prefix="kd-pull-", dir="/var/tmp"))
    place.chmod(0o755)
    try:
        with link.pushing(place) as address:
            images = pull_images.push_all(address, BASE, sizes)
        with link.opened(place) as here:
            hosts = trust(here)
            with ground.fresh() as ours, node.running(sections(hosts, ours)) as indexing:
                for image in images:
                    indexing.accelerate(f"{link.ADDRESS}/{image.name}:1")
            found = Run(here, hosts)
            for image in images:
                if not options.stopped.is_set():
                    measure(options, found, image, rounds)
        return report(found, [image for image in images if image.name in found.took_ms])
    finally:
        shutil.rmtree(place, ignore_errors=True)


def sections(hosts: Path, place: Path) -> Sections:
    """Return the configuration of a node whose images are at `place`."""
    data = place / "data"
    data.mkdir()
    own(data)
    return {
        "paths": {"data": str(data)},
        "registries": {"directory": str(hosts)},
        # What completes an image later is no part of its first reply.
        "lazy": {"complete_after_s": 600.0},
    }


def measure(options: Options, found: Run, image: Pulled, rounds: int) -> None:
    """Take every contender once a round, so that nobody follows the same one every time.

    Ctrl-C ends it and keeps the whole rounds, if there are any of this or of an earlier image.
    """
    order = [*WAYS, *(PEERS if podman.is_here() else PEERS[:1])]
    shuffled = random.Random(image.name)  # the same at every run
    whole = 0
    try:
        for _ in range(rounds):
            for who in shuffled.sample(order, len(order)):
                found.take(image, who)
            whole += 1
    except KeyboardInterrupt:
        options.stopped.set()
        found.keep(image, whole)
        if not found.took_ms:
            raise


def trust(here: link.Link) -> Path:
    """Write what makes the registry trusted: containerd's layout, which podman reads as well."""
    hosts = here.directory / "hosts"
    folder = hosts / link.ADDRESS
    folder.mkdir(parents=True)
    shutil.copy(here.authority.pem, folder / "ca.crt")
    (folder / "hosts.toml").write_text(
        f'server = "https://{link.ADDRESS}"\n[host."https://{link.ADDRESS}"]\n'
        f'  capabilities = ["pull", "resolve"]\n  ca = "{folder / "ca.crt"}"\n'
    )
    for path in (here.directory, hosts, folder):
        path.chmod(0o755)
    return hosts


def report(found: Run, images: list[Pulled]) -> Report:
    """Put the figures of a run together."""
    lines: list[str] = []
    ratios, goals, figures = {}, [], {}
    pictures = []
    for image in images:
        took, fetched = found.took_ms[image.name], found.fetched[image.name]
        size = f"{image.compressed_bytes // MB} MB, {image.unpacked_bytes // MB} unpacked"
        lines += ["", f"{image.name} ({size}):", *table(took, "ms from deploy to first reply")]
        lines += table(fetched, "MB over the link until then")
        peers = {who: summary(took[who]).median for who in PEERS if who in took}
        best = min(peers, key=lambda who: peers[who])
        ratios[f"{image.name} eager / {best}"] = ratio(took["eager"], took[best])
        ratios[f"{image.name} lazy / eager"] = ratio(took["lazy"], took["eager"])
        ratios[f"{image.name} auto / eager"] = ratio(took["auto"], took["eager"])
        eager = ratios[f"{image.name} eager / {best}"].of_medians
        goals.append(Goal(f"{image.name} eager / better peer", eager, 1.05))
        if image.compressed_bytes > LARGE:
            lazy = ratios[f"{image.name} lazy / eager"].of_medians
            goals.append(Goal(f"{image.name} lazy / eager", lazy, 0.2))
        else:
            auto = ratios[f"{image.name} auto / eager"].of_medians
            goals.append(Goal(f"{image.name} auto / eager", auto, 1.05))
        figures[image.name] = {who: summary(values) for who, values in took.items()}
        lines_drawn = {
            who: [(second, size / MB) for second, size in points]
            for who, points in found.curves[image.name].items()
        }
        shown = f"MB over the link until the first reply, {image.name}"
        pictures.append(drawing.curves(image.name, shown, lines_drawn, drawing.Axis("s")))
    goals.append(Goal("worker's memory while it pulls, MB more", max(found.worker_mb), 10.0))
    samples = {
        f"{image} {who}": values
        for image, all in found.took_ms.items()
        for who, values in all.items()
    }
    title = "deploy to first reply of an image behind 200 Mbit/s and 10 ms"
    return Report(title, lines, figures, ratios, goals, samples, pictures)
