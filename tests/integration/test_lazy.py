"""Images that start before they are here, by the real SOCI engine and a registry over TLS.

An agent of its own, whose engine is asked to index an image, mounts it, and is killed, stopped and
cut off from the registry while a function serves files from its mount. The big files of the image
are never fetched but by the reads of the tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent._pb.worker.v1 import worker_pb2 as pb
from tests import oci, registry
from tests.integration.functions import Functions
from tests.integration.running import LIB, RunningAgent
from tests.tls_registry import TlsRegistry, tls_registry

FILES = 8
FILE_BYTES = 3 << 20
NEVER_S = 86_400.0
CONFIG = {"Cmd": ["/bin/httpd", "-f", "-p", "9000", "-h", "/srv"]}

pytestmark = pytest.mark.skipif(
    not (LIB / "bin" / "soci-snapshotter-grpc").exists(), reason="no lazy engine is installed"
)


@pytest.fixture(scope="module")
def tls() -> Iterator[TlsRegistry]:
    # Not below pytest's own directory, which is closed to the agent's user.
    directory = Path(tempfile.mkdtemp(prefix="kd-registry-", dir="/tmp"))
    directory.chmod(0o755)
    try:
        with tls_registry(directory) as made:
            yield made
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="module")
def place(make_agent: Callable[..., RunningAgent], tls: TlsRegistry) -> Iterator[RunningAgent]:
    """An agent that trusts the registry and completes no image by itself."""
    agent = make_agent(
        node="lazy",
        sections={"lazy": {"least_mb": 1, "complete_after_s": NEVER_S, "stuck_after_s": 2.0}},
        environment={"SSL_CERT_FILE": str(tls.ca)},
    ).start()
    yield agent
    agent.close()


@pytest.fixture
def lazy(place: RunningAgent) -> Iterator[Functions]:
    with Functions(place, same_worker=False) as found:
        yield found


@pytest.fixture(scope="module")
def content() -> list[bytes]:
    return [os.urandom(FILE_BYTES) for _ in range(FILES)]


@pytest.fixture(scope="module")
def indexed(tls: TlsRegistry, place: RunningAgent, content: list[bytes]) -> str:
    """A server's image with an index beside it; nothing of it is on the agent."""
    name = push(tls, "big", content)
    said = place.cli("image", "accelerate", name, "--json").json()
    assert said["engine"] == "soci"
    place.cli("image", "rm", name)
    return name


def push(tls: TlsRegistry, repository: str, content: list[bytes]) -> str:
    files: dict[str, oci.File] = {f"srv/{n}": data for n, data in enumerate(content)}
    files |= {"srv/small": b"small\n", "srv/own": os.urandom(64)}
    image = oci.image([oci.static_busybox(), oci.layer(files)], CONFIG)
    registry.push(tls.plain, repository, "1", image)
    return f"{tls.address}/{repository}:1"


def deploy(lazy: Functions, name: str, image: str, **fields: Any) -> pb.DeployResponse:
    return lazy.deploy(name, image, memory_mb=128, port=9000, **fields)


def mounts(agent: RunningAgent) -> list[str]:
    """What the engine has mounted in the agent's namespace."""
    lines = Path(f"/proc/{agent.pids['supervise']}/mountinfo").read_text().splitlines()
    return [line.split()[4] for line in lines if " fuse." in line]


def reads(agent: RunningAgent, name: str, path: str, timeout_s: float = 60.0) -> bytes:
    reply = agent.http("GET", f"/http/{name}/{path}", timeout_s=timeout_s)
    return reply.body if reply.status == 200 else b""


def wait_replaced(lazy: Functions, name: str, before: str) -> None:
    """Wait until another instance than `before` serves, and nothing but it is left."""

    def replaced() -> bool:
        found = lazy.instances(name)
        ready = [one for one in found if one.state == pb.INSTANCE_STATE_READY]
        return len(found) == len(ready) == 1 and ready[0].id != before

    lazy.agent.wait_until(replaced, 40, f"another instance of {name}")


class TestDeploy:
    def test_lazy_without_an_index_is_unpacked_whole_and_says_so(self, lazy, tls, content):
        name = push(tls, "plain", content[:1])
        reply = deploy(lazy, "plain", name, acceleration="lazy")
        assert [f"kindling image accelerate {name}" in one for one in reply.warnings] == [True]
        assert reads(lazy.agent, "plain", "0") == content[0]
        assert mounts(lazy.agent) == []

    @pytest.mark.parametrize("asked", ["lazy", "auto"])
    def test_an_indexed_image_is_mounted_and_serves_what_its_layers_hold(
        self, lazy, indexed, content, asked
    ):
        reply = deploy(lazy, "big", indexed, acceleration=asked)
        assert list(reply.warnings) == []
        assert len(mounts(lazy.agent)) == 2
        assert reads(lazy.agent, "big", "small") == b"small\n"
        assert reads(lazy.agent, "big", "0") == content[0]
        stored = subprocess.run(
            ["du", "-sb", lazy.agent.data / "containerd/io.containerd.content.v1.content/blobs"],
            capture_output=True,
            check=True,
        )
        assert int(stored.stdout.split()[0]) < FILES * FILE_BYTES

    def test_eager_is_unpacked_whole_though_an_index_is_there(self, lazy, tls, content):
        name = push(tls, "eager", content[:1])
        lazy.agent.cli("image", "accelerate", name)
        lazy.agent.cli("image", "rm", name)
        deploy(lazy, "eager", name, acceleration="eager")
        before = len(mounts(lazy.agent))
        assert reads(lazy.agent, "eager", "0") == content[0]
        assert len(mounts(lazy.agent)) == before

    def test_a_mount_that_fails_falls_back_to_unpacking_and_says_so(self, lazy, tls, content):
        name = push(tls, "broken", content[:1])
        lazy.agent.cli("image", "accelerate", name)
        lazy.agent.cli("image", "rm", name)
        for blob in index_blobs(tls, "broken"):
            blob.unlink()
        with lazy.watching() as watched:
            reply = deploy(lazy, "broken", name, acceleration="lazy")
            assert ["unpacked whole" in one for one in reply.warnings] == [True], reply.warnings
            lazy.agent.wait_until(
                lambda: any(e.type == "LazyMountFailed" for e in watched.events), 10, "the event"
            )
        assert reads(lazy.agent, "broken", "0") == content[0]


def index_blobs(tls: TlsRegistry, repository: str) -> list[Path]:
    """What a registry keeps of the layers' indexes; the engine cannot mount without."""
    root = tls.directory / "registry/docker/registry/v2"
    links = (root / f"repositories/{repository}/_layers/sha256").glob("*/link")
    blobs = [root / "blobs/sha256" / digest[7:9] / digest[7:] / "data" for digest in texts(links)]
    return [blob for blob in blobs if blob.exists() and blob.read_bytes()[4:8] == b"\x0c\0\x14\0"]


def texts(paths: Any) -> list[str]:
    return [path.read_text() for path in paths]
