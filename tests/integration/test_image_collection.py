"""The image store of a real agent: it stays below its limit, gives back what it took, and a full
disk neither stops what runs nor what makes room.

Images come from a real registry on loopback; each has a layer of its own that no compression makes
smaller. Each agent here has a store of its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from agent._pb.worker.v1 import worker_pb2 as pb
from agent.cli.client import Client, Refused
from agent.cli.deploy import spec_message
from tests import oci, registry
from tests.inside.containerd_limit import Packed, zeros
from tests.inside.containerd_rig import small_disk
from tests.integration.running import RunningAgent
from tests.integration.test_pulls import a_server

MB = 1 << 20
# Another agent of this session has the slots.
OWN_LAYERS = {"storage": {"writable": "tmpfs"}}
ROUNDS = 100
IMAGES = 12
OWN_MB = 4
LIMIT_MB = 60
DISK_MB = 200
ASK_S = 120.0


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry: its host and port; image0 to image11 are in it, and one that is large."""
    with registry.registry(tmp_path_factory.mktemp("registry")) as found:
        for n in range(IMAGES):
            registry.push(found, f"image{n}", "1", a_server(OWN_MB * MB))
        registry.push(found, "large", "1", a_server(DISK_MB * MB))
        yield found


class Door:
    """Deploys and asks by gRPC: a process per round would take longer than the round."""

    def __init__(self, agent: RunningAgent) -> None:
        options = [("grpc.default_authority", "localhost")]
        self.channel = grpc.insecure_channel(f"unix:{agent.socket}", options)
        self.client = Client(self.channel, str(agent.socket))

    def deploy(self, name: str, image: str, **fields: Any) -> pb.DeployResponse:
        fields = {"contract": "fc", "kind": "http", "memory_mb": 128} | fields
        spec = spec_message({"name": name, "image": image, **fields})
        request = pb.DeployRequest(spec=spec, wait=True)
        return self.client.ask("Deploy", request, pb.DeployResponse, within_s=ASK_S)

    def remove(self, name: str) -> None:
        request = pb.RemoveRequest(name=name, force=True)
        self.client.ask("Remove", request, pb.RemoveResponse, within_s=ASK_S)

    def remove_image(self, name: str) -> None:
        request = pb.RemoveImageRequest(name=name)
        self.client.ask("RemoveImage", request, pb.RemoveImageResponse, within_s=ASK_S)

    def gc(self, *, dry_run: bool = False) -> pb.CollectGarbageResponse:
        request = pb.CollectGarbageRequest(dry_run=dry_run)
        reply = pb.CollectGarbageResponse
        return self.client.ask("CollectGarbage", request, reply, within_s=ASK_S)

    def images(self) -> set[str]:
        reply = self.client.ask("ListImages", pb.ListImagesRequest(), pb.ListImagesResponse)
        return {image.name for image in reply.images}


@contextmanager
def door(agent: RunningAgent) -> Iterator[Door]:
    opened = Door(agent)
    try:
        yield opened
    finally:
        opened.channel.close()


def on_disk(agent: RunningAgent) -> int:
    """Bytes of blobs and layers, as the file system has them; containerd's records left out."""
    found = 0
    for part in ("io.containerd.content.v1.content", "io.containerd.snapshotter.v1.overlayfs"):
        for folder, _, files in os.walk(agent.data / "containerd" / part):
            paths = [Path(folder, file) for file in files if not file.endswith(".db")]
            found += sum(path.lstat().st_blocks * 512 for path in paths)
    return found


@pytest.fixture(scope="module")
def store(make_agent: Any) -> Iterator[RunningAgent]:
    images = {"max_bytes": LIMIT_MB * MB, "gc_interval_s": 0.5, "min_age_s": 0}
    agent = make_agent(node="store", sections={"images": images, **OWN_LAYERS}).start()
    yield agent
    agent.close()


@pytest.fixture
def small(store: RunningAgent) -> Iterator[RunningAgent]:
    """An agent whose store may hold some of the images and is empty; afterwards, too."""
    yield store
    with door(store) as node:
        node.gc()
        assert node.images() == set()
    assert store.leaks() == {}


def pulled(agent: RunningAgent) -> tuple[float, float]:
    """Return how many images were pulled so far, and how many bytes."""
    text = agent.http("GET", "/metrics", port=agent.admin_port).body.decode()
    names = ("kindling_image_pulls_total", r'kindling_image_bytes_total{source="registry"}')
    found = [re.search(rf"^{name} (.*)$", text, re.M) for name in names]
    pulls, size = (float(line[1]) if line else 0.0 for line in found)
    return pulls, size


def test_a_hundred_deploys_and_removals_stay_below_the_limit_and_lose_nothing_in_use(
    small: RunningAgent, address: str
) -> None:
    with door(small) as node:
        empty = on_disk(small)
        node.deploy("stays", f"{address}/image0:1", scaling={"min": 1})
        largest = 0
        for n in range(ROUNDS):
            node.deploy("comes", f"{address}/image{1 + n % (IMAGES - 1)}:1", env={"N": str(n)})
            largest = max(largest, node.gc(dry_run=True).used_bytes)
            node.remove("comes")
            if n % 10 == 0:
                assert small.http("GET", "/http/stays/").body == b"hello\n", n
        assert largest <= LIMIT_MB * MB
        assert on_disk(small) <= LIMIT_MB * MB
        assert f"{address}/image0:1" in node.images()
        node.remove("stays")
        node.gc()
        assert node.images() == set()
        assert on_disk(small) == empty


def test_deploys_and_removals_of_an_image_end_at_the_bytes_they_began_with(
    small: RunningAgent, address: str
) -> None:
    with door(small) as node:
        began = on_disk(small)
        for _ in range(3):
            node.deploy("round", f"{address}/image1:1")
            assert small.http("GET", "/http/round/").body == b"hello\n"
            assert on_disk(small) > began + 2 * OWN_MB * MB
            node.remove("round")
            node.remove_image(f"{address}/image1:1")
            assert on_disk(small) == began


def test_what_a_moved_tag_leaves_goes_with_its_function(small: RunningAgent, address: str) -> None:
    with door(small) as node:
        first, second = a_server(OWN_MB * MB), a_server(OWN_MB * MB)
        began = on_disk(small)
        registry.push(address, "moving", "1", first)
        node.deploy("first", f"{address}/moving:1")
        registry.push(address, "moving", "1", second)
        node.deploy("second", f"{address}/moving:1", pull="always")
        node.gc()
        assert small.http("GET", "/http/first/").body == b"hello\n"
        assert small.http("GET", "/http/second/").body == b"hello\n"
        node.remove("second")
        node.remove_image(f"{address}/moving:1")
        assert on_disk(small) > began + OWN_MB * MB, "the first one's layers are in use"
        node.remove("first")
        small.wait_until(lambda: on_disk(small) == began, 10, "the bytes of a moved tag")


def test_what_an_image_takes_and_what_its_pull_took_is_told(
    small: RunningAgent, address: str
) -> None:
    name = f"{address}/image1:1"
    with door(small) as node:
        before = pulled(small)
        node.deploy("told", name)
        (listed,) = small.cli("image", "ls", "--json").json()["images"]
        assert (listed["form"], listed["used_by"]) == ("unpacked", ["told"])
        assert listed["unpacked_bytes"] > OWN_MB * MB
        assert listed["size_bytes"] > OWN_MB * MB
        shown = small.cli("image", "inspect", name, "--json").json()
        assert shown["image"] == listed
        assert sum(layer["unpacked_bytes"] for layer in shown["layers"]) == listed["unpacked_bytes"]
        assert shown["config"]["rootfs"]["type"] == "layers"
        call = small.cli("invoke", "told", "--json").json()
        cold, meters = call["cold_start"], call["meters"]
        # Its pull was the deploy's: recorded there, and no start's.
        assert (cold["pull_ms"], cold["bytes_pulled"]) == (0, 0)
        assert cold["bytes_cached"] == listed["size_bytes"]
        assert (meters["pull_ms"], meters["pull_gb_s"]) == (0, 0)
        pulls, size = pulled(small)
        assert pulls == before[0] + 1
        assert size >= before[1] + listed["size_bytes"]
        assert small.cli("gc", "--dry-run", "--json").json()["removed"] == []
        node.remove("told")
        (going,) = small.cli("gc", "--dry-run", "--json").json()["removed"]
        assert (going["kind"], going["name"]) == ("image", name)
        assert small.cli("gc", "--json").json()["removed"] == [going]
        assert node.images() == set()


def test_an_image_larger_than_the_store_is_refused_and_leaves_nothing(
    small: RunningAgent, address: str
) -> None:
    with door(small) as node:
        began = on_disk(small)
        with pytest.raises(Refused, match=r"images\.max_bytes") as refused:
            node.deploy("large", f"{address}/large:1")
        assert f"{address}/large:1" in refused.value.message
        assert on_disk(small) == began


def test_a_pulled_image_that_unpacks_to_more_than_the_store_stops_at_its_limit(
    small: RunningAgent, address: str
) -> None:
    registry.push(address, "bomb", "1", oci.image([Packed(zeros(8 * LIMIT_MB * MB))]))
    with door(small) as node:
        node.deploy("stays", f"{address}/image0:1", scaling={"min": 1})
        began = on_disk(small)
        with pytest.raises(Refused, match=r"bomb:1: stopped: .*images\.max_bytes"):
            node.deploy("bomb", f"{address}/bomb:1")
        assert small.http("GET", "/http/stays/").body == b"hello\n"
        small.wait_until(lambda: on_disk(small) == began, 10, "the bytes of a bomb")
        node.remove("stays")


@pytest.fixture
def cramped(make_agent: Any) -> Iterator[RunningAgent]:
    """An agent whose data lie on a small file system of their own."""
    agent = make_agent(node="cramped", sections={"images": {"min_age_s": 0}, **OWN_LAYERS})
    agent.data.mkdir()
    agent.data.chmod(0o777)
    try:
        with small_disk(agent.data, DISK_MB):
            os.chmod(agent.data, 0o777)
            agent.start()
            yield agent
            agent.stop()
    finally:
        agent.close()


def test_with_no_byte_free_functions_serve_and_removals_make_room(
    cramped: RunningAgent, address: str
) -> None:
    with door(cramped) as node:
        node.deploy("runs", f"{address}/image0:1", scaling={"min": 1})
        node.deploy("idle", f"{address}/image1:1")
        fill(cramped.data / "others")
        for _ in range(20):
            assert cramped.http("GET", "/http/runs/").body == b"hello\n"
        for image in ("image1", "image2"):
            with pytest.raises(Refused, match="disk full"):
                node.deploy("new", f"{address}/{image}:1", env={"N": "1"})
        began = on_disk(cramped)
        node.remove("idle")
        try:
            node.remove_image(f"{address}/image1:1")
        except Refused as refused:  # the node, whose disk is full, was first
            if "removed already" not in refused.message and refused.code != "NotFound":
                raise
        cramped.wait_until(lambda: on_disk(cramped) <= began - OWN_MB * MB, 10, "its bytes")
        assert free_bytes(cramped.data) > 0
        assert cramped.http("GET", "/http/runs/").body == b"hello\n"
        (cramped.data / "others").unlink()
        node.deploy("new", f"{address}/image2:1")
        assert cramped.http("GET", "/http/new/").body == b"hello\n"
        for name in ("runs", "new"):
            node.remove(name)


def fill(path: Path) -> None:
    """Write until the file system has no byte left, for root neither."""
    with path.open("wb", buffering=0) as file:
        for size in (MB, 4096, 1):
            try:
                while True:
                    file.write(os.urandom(size))
            except OSError:
                continue
    os.sync()


def free_bytes(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_bfree * found.f_frsize
