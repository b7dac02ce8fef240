"""Images that start before they are here, by the real SOCI engine and a registry over TLS.

An agent of its own, whose engine is asked to index an image, mounts it, and is killed, stopped and
cut off from the registry while a function serves files from its mount. The big files of the image
are never fetched but by the reads of the tests.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import IncompleteRead
from pathlib import Path
from typing import Any

import pytest

from agent._pb.worker.v1 import worker_pb2 as pb
from agent.cli.deploy import spec_message
from tests import oci, registry
from tests.integration.functions import Functions
from tests.integration.running import LIB, RunningAgent, own, signal_pid
from tests.tls_registry import TlsRegistry, tls_registry

FILES = 8
FILE_BYTES = 3 << 20
NEVER_S = 86_400.0
SOCI = "application/vnd.amazon.soci.index.v1+json"
CONFIG = {"Cmd": ["/bin/httpd", "-f", "-p", "9000", "-h", "/srv"]}

pytestmark = pytest.mark.skipif(
    not (LIB / "bin" / "soci-snapshotter-grpc").exists(), reason="no lazy engine is installed"
)


@contextmanager
def directory() -> Iterator[Path]:
    """A directory that the agent's user can read, which pytest's own ones are not."""
    made = Path(tempfile.mkdtemp(prefix="kd-registry-", dir="/tmp"))
    made.chmod(0o755)
    try:
        yield made
    finally:
        shutil.rmtree(made)


@pytest.fixture(scope="module")
def tls() -> Iterator[TlsRegistry]:
    with directory() as place, tls_registry(place) as made:
        yield made


@pytest.fixture(scope="module")
def locked() -> Iterator[TlsRegistry]:
    """A registry that wants a password; whoever pushes needs none."""
    with directory() as place, tls_registry(place, auth=registry.with_passwords(place)) as made:
        yield made


@pytest.fixture(scope="module")
def authorities(tls: TlsRegistry, locked: TlsRegistry) -> Iterator[Path]:
    """The directory in which an operator says whom to believe."""
    with directory() as place:
        for one in (tls, locked):
            (place / one.address).mkdir()
            shutil.copy(one.ca, place / one.address / "ca.crt")
        yield place


@pytest.fixture(scope="module")
def place(make_agent: Callable[..., RunningAgent], authorities: Path) -> Iterator[RunningAgent]:
    """An agent that trusts the registries and completes no image by itself."""
    agent = make_agent(
        node="lazy",
        sections={
            "lazy": {"least_mb": 1, "complete_after_s": NEVER_S, "stuck_after_s": 2.0},
            "registries": {"directory": str(authorities)},
            "storage": {"writable": "tmpfs"},  # others of this session have the slots
        },
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


AWAY_S = 61.0


def reads(agent: RunningAgent, name: str, path: str, timeout_s: float = 120.0) -> bytes:
    """Return a file, b"" where reading it fails."""
    try:
        reply = agent.http("GET", f"/http/{name}/{path}", timeout_s=timeout_s)
    except IncompleteRead:
        return b""
    return reply.body if reply.status == 200 else b""


def anew(agent: RunningAgent, image: str) -> None:
    """Have the next deploy of an image mount it, with nothing of it fetched yet."""
    listed = agent.cli("image", "ls", "--json").json()["images"]
    if image in [one["name"] for one in listed]:
        agent.cli("image", "rm", image)


def wait_replaced(lazy: Functions, name: str, before: str) -> None:
    """Wait until `before` is gone and others serve: as many as calls waited for, and all ready."""

    def replaced() -> bool:
        found = lazy.instances(name)
        ready = [one.id for one in found if one.state == pb.INSTANCE_STATE_READY]
        return bool(ready) and len(ready) == len(found) and before not in ready

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
        push_false_index(tls, "broken")
        with lazy.watching() as watched:
            reply = deploy(lazy, "broken", name, acceleration="lazy")
            assert ["unpacked whole" in one for one in reply.warnings] == [True], reply.warnings
            lazy.agent.wait_until(
                lambda: any(e.type == "LazyMountFailed" for e in watched.events), 10, "the event"
            )
        assert reads(lazy.agent, "broken", "0") == content[0]


def push_false_index(tls: TlsRegistry, repository: str) -> None:
    """Put an index beside an image whose tables of contents are none."""
    layout = tls.directory / "registry/docker/registry/v2/repositories" / repository
    subject = (layout / "_manifests/tags/1/current/link").read_text()
    blobs = {oci.digest(data): data for data in (b"{}", b"no table of contents")}
    config, table = (
        {"mediaType": SOCI, "digest": digest, "size": len(data)} for digest, data in blobs.items()
    )
    layers = [
        table | {"annotations": {"com.amazon.soci.image-layer-digest": link.read_text()}}
        for link in (layout / "_layers/sha256").glob("*/link")
    ]
    manifest = {"schemaVersion": 2, "mediaType": oci.OCI_MANIFEST, "config": config}
    data = json.dumps(manifest | {"layers": layers}).encode()
    entry = {"mediaType": oci.OCI_MANIFEST, "digest": oci.digest(data), "size": len(data)}
    index = {"schemaVersion": 2, "mediaType": oci.OCI_INDEX}
    whole = json.dumps(index | {"manifests": [entry | {"artifactType": SOCI}]}).encode()
    blobs |= {oci.digest(data): data, oci.digest(whole): whole}
    at = {"mediaType": oci.OCI_INDEX, "digest": oci.digest(whole), "size": len(whole)}
    registry.push(tls.plain, repository, subject.replace(":", "-"), oci.OciImage(blobs, at))


class TestAhead:
    """`image pull --acceleration lazy`: an image mounted before any function is there."""

    def test_an_image_mounted_ahead_is_what_a_deploy_goes_on_with(self, lazy, tls, content):
        agent = lazy.agent
        name = push(tls, "ahead", content)
        agent.cli("image", "accelerate", name)
        agent.cli("image", "rm", name)
        before = len(mounts(agent))
        lines = agent.cli("image", "pull", name, "--acceleration", "lazy", "--json").out
        first, *_, last = map(json.loads, lines.splitlines())
        assert (first["phase"], last["phase"], last["warnings"]) == ("resolving", "done", [])
        mounted = len(mounts(agent))
        assert mounted > before
        assert last["image"]["form"] == "lazy"
        reply = deploy(lazy, "ahead", name, pull="never")
        assert (list(reply.warnings), len(mounts(agent))) == ([], mounted)
        assert reads(agent, "ahead", "3") == content[3]
        lazy.remove("ahead")
        agent.cli("image", "rm", name)
        agent.wait_until(lambda: len(mounts(agent)) == before, 20, "the mounts gone")

    def test_what_has_no_index_is_fetched_whole_and_told(self, lazy, tls, content):
        name = push(tls, "whole", content[:1])
        said = lazy.agent.cli("image", "pull", name, "--acceleration", "lazy")
        assert f"warning: image {name} has no index" in said.err
        listed = lazy.agent.cli("image", "ls", "--json").json()["images"]
        (row,) = [one for one in listed if one["name"] == name]
        assert row["form"] == "unpacked"
        lazy.agent.cli("image", "rm", name)


class TestCredentials:
    """The engine asks the registry by itself, long after the deploy."""

    def test_a_password_opens_a_registry_to_the_engine_and_lies_nowhere_after(
        self, lazy, locked, content
    ):
        agent = lazy.agent
        name = push(locked, "private", content)
        given = ["--username", registry.USER, "--password-stdin"]
        agent.cli("image", "accelerate", name, *given, stdin=registry.PASSWORD)
        agent.cli("image", "rm", name)
        secrets = {"username": registry.USER, "password": registry.PASSWORD}
        reply = deploy(lazy, "private", name, acceleration="lazy", registry=secrets)
        assert list(reply.warnings) == []
        assert reads(agent, "private", "7") == content[7]
        file = agent.run / "lazy/soci/config.json"
        assert file.stat().st_mode & 0o777 == 0o600
        assert registry.PASSWORD not in agent.log()
        lazy.remove("private")
        agent.wait_until(lambda: not file.exists(), 60, "no credentials any more")

    def test_an_authority_of_the_deploys_own_is_not_the_engines(self, lazy, indexed, tls):
        anew(lazy.agent, indexed)
        reply = deploy(
            lazy, "big", indexed, acceleration="lazy", registry={"ca_pem": tls.ca.read_text()}
        )
        assert ["registry.ca_pem" in one for one in reply.warnings] == [True]
        lazy.remove("big")
        lazy.agent.cli("image", "rm", indexed)  # it is here whole now, and would be used so


class TestTrouble:
    """Each test kills or cuts off something while a function serves from a mount."""

    @pytest.fixture
    def big(self, lazy: Functions, indexed: str) -> str:
        """A function that serves from a mount and has read its first file; its instance."""
        anew(lazy.agent, indexed)
        reply = deploy(lazy, "big", indexed, acceleration="lazy", scaling={"min": 1}, timeout_s=180)
        assert list(reply.warnings) == []
        lazy.deploy("other", "static", memory_mb=128, scaling={"min": 1})
        assert reads(lazy.agent, "big", "small") == b"small\n"
        return lazy.ready("big")[0].id

    def test_the_engine_is_killed(self, lazy, big, content):
        with lazy.watching() as watched:
            signal_pid(lazy.agent.pids["soci"], signal.SIGKILL)
            wait_replaced(lazy, "big", big)
            lost = watched.of("big", "InstanceLostFiles")
        assert [event.instance for event in lost] == [big]
        assert "has ended" in lazy.log("big")
        assert reads(lazy.agent, "big", "1") == content[1]
        assert reads(lazy.agent, "other", "") == b"hello\n"

    def test_the_engine_hangs(self, lazy, big, content):
        signal_pid(lazy.agent.pids["soci"], signal.SIGSTOP)
        # More reads that hang than the worker has threads.
        hanging = [Reader(lazy.agent, "big", "2") for _ in range(12)]
        assert reads(lazy.agent, "other", "", timeout_s=5) == b"hello\n"
        lazy.agent.cli("status", timeout_s=5)
        wait_replaced(lazy, "big", big)
        assert [reader.end() for reader in hanging] != []
        assert reads(lazy.agent, "big", "2") == content[2]

    def test_the_registry_is_away_for_a_minute(self, lazy, tls, big, content):
        """It takes that minute."""
        agent = lazy.agent
        tls.stop()
        until = time.monotonic() + AWAY_S
        try:
            # Far from what was read before, `small` at the end too: it fetches 4 MB at a time, and
            # an engine that goes on running has what the tests before this one have read.
            readers = [Reader(agent, "big", path) for path in ("5", "5", "4")]
            assert reads(agent, "big", "small") == b"small\n"
            lazy.deploy("while-away", "static", memory_mb=128)
            before = agent.pids["worker"]
            agent.cli("reload", timeout_s=60)
            agent.wait_until(lambda: agent.pids["worker"] not in (0, before), 10, "a worker")
            lazy.reconnect()
            while time.monotonic() < until:
                assert reads(agent, "other", "", timeout_s=5) == b"hello\n"
                assert reads(agent, "while-away", "", timeout_s=5) == b"hello\n"
                agent.cli("status", timeout_s=5)
                time.sleep(1)  # sleeps: the minute that the registry is away
            assert [reader.waits() for reader in readers] == [True] * 3
            lazy.remove("while-away")
        finally:
            tls.start()
        assert [reader.end() for reader in readers] == [content[5], content[5], content[4]]
        assert big in [one.id for one in lazy.ready("big")]
        assert reads(agent, "big", "7") == content[7]

    def test_containerd_is_killed(self, lazy, big, content):
        agent = lazy.agent
        before = agent.pids["containerd"]
        signal_pid(before, signal.SIGKILL)
        agent.wait_until(lambda: agent.pids["containerd"] not in (0, before), 10, "a containerd")
        assert reads(agent, "big", "4") == content[4]
        # What is removed before the worker has found the new one is cleared by a control cycle.
        agent.wait_until(
            lambda: agent.cli("image", "ls", check=False).status == 0, 20, "the new containerd"
        )
        lazy.remove("big", force=True)

    def test_the_worker_is_killed_and_then_the_engine(self, lazy, big, content):
        agent = lazy.agent
        before = agent.pids["worker"]
        signal_pid(before, signal.SIGKILL)
        agent.wait_until(lambda: agent.pids["worker"] not in (0, before), 10, "a worker")
        agent.wait_until(lambda: reads(agent, "big", "small") == b"small\n", 20, "an answer")
        lazy.reconnect()
        assert [one.id for one in lazy.ready("big")] == [big]
        signal_pid(agent.pids["soci"], signal.SIGKILL)
        wait_replaced(lazy, "big", big)
        assert reads(agent, "big", "5") == content[5]

    def test_everything_is_killed(self, lazy, big, content):
        agent = lazy.agent
        agent.kill_everything()
        agent.start()
        lazy.reconnect()
        assert reads(agent, "big", "6") == content[6]
        assert mounts(agent) != []


class TestCompletion:
    def test_a_completed_image_needs_neither_registry_nor_engine(self, lazy, tls, indexed, content):
        agent = lazy.agent
        agent.configure({"lazy": {"complete_after_s": 0.0}})
        assert agent.stop() == 0
        agent.start()
        lazy.reconnect()
        anew(agent, indexed)
        with lazy.watching() as watched:
            deploy(lazy, "big", indexed, acceleration="lazy", scaling={"min": 1})
            before = lazy.ready("big")[0].id
            agent.wait_until(
                lambda: any(event.type == "ImageCompleted" for event in watched.events),
                30,
                "the image complete",
            )
        tls.stop()
        try:
            signal_pid(agent.pids["soci"], signal.SIGKILL)
            wait_replaced(lazy, "big", before)
            assert [reads(agent, "big", str(n)) for n in range(FILES)] == content
            agent.wait_until(lambda: not mounts(agent), 20, "nothing mounted any more")
        finally:
            tls.start()


class TestDisk:
    """What an engine keeps is counted, and given back once nothing is mounted."""

    def test_an_accelerated_image_that_came_and_went_leaves_no_byte(
        self, lazy, tls, locked, content
    ):
        agent = lazy.agent
        for one in agent.cli("image", "ls", "--json").json()["images"]:
            if one["name"].startswith((tls.address, locked.address)):
                agent.cli("image", "rm", one["name"])
        agent.wait_until(lambda: kept(agent) == 0, 30, "an engine that has kept nothing")
        before = used(agent)
        name = push(tls, "passing", content)
        agent.cli("image", "accelerate", name)
        assert kept(agent) > 0
        agent.cli("image", "rm", name)
        with lazy.watching() as watched:
            reply = deploy(lazy, "passing", name, acceleration="lazy")
            assert list(reply.warnings) == []
            assert reads(agent, "passing", "1") == content[1]
            assert used(agent) > before + len(content[1])
            agent.wait_until(
                lambda: any(event.type == "ImageCompleted" for event in watched.events),
                30,
                "the image complete",
            )
        lazy.remove("passing")
        agent.cli("image", "rm", name)
        agent.wait_until(lambda: (used(agent), kept(agent)) == (before, 0), 30, "no byte left")
        assert mounts(agent) == []


def kept(agent: RunningAgent) -> int:
    """How many bytes the engines' directories hold."""
    files = [path for path in (agent.data / "lazy").rglob("*") if not path.is_dir()]
    return sum(path.lstat().st_size for path in files)


def used(agent: RunningAgent) -> int:
    """How many bytes the image store holds, as the agent counts them."""
    return int(agent.cli("gc", "--dry-run", "--json").json()["used_bytes"])


class TestPreparing:
    def test_a_deploy_answers_before_its_image_is_here_and_calls_wait(self, lazy, tls, content):
        name = push(tls, "slow", content)
        spec = {"name": "slow", "image": name, "contract": "fc", "kind": "http", "port": 9000}
        request = pb.DeployRequest(spec=spec_message({**spec, "acceleration": "eager"}))
        with lazy.watching() as watched:
            reply = lazy.client.ask("Deploy", request, pb.DeployResponse, within_s=30)
            assert reply.version.state == pb.VERSION_STATE_PREPARING
            assert reads(lazy.agent, "slow", "0") == content[0]
            found = lazy.client.ask("Get", pb.GetRequest(name="slow"), pb.Function)
            assert found.latest.state == pb.VERSION_STATE_READY
            lazy.agent.wait_until(lambda: bool(watched.of("slow", "ImageReady")), 5, "the event")
        lazy.remove("slow")


class TestDiskFull:
    """An agent whose data lie on a file system too small for one of the images."""

    @pytest.fixture
    def narrow(
        self, make_agent: Callable[..., RunningAgent], authorities: Path
    ) -> Iterator[RunningAgent]:
        agent = make_agent(
            node="narrow",
            sections={
                "lazy": {"least_mb": 1},
                "storage": {"writable": "tmpfs"},
                "registries": {"directory": str(authorities)},
            },
        )
        agent.data.mkdir()
        tmpfs = ["mount", "-t", "tmpfs", "-o", "size=44m,mode=0750", "tmpfs", str(agent.data)]
        subprocess.run(tmpfs, check=True)
        own(agent.data)
        try:
            yield agent.start()
            agent.stop()
        finally:
            subprocess.run(["umount", str(agent.data)], check=True)
            agent.close()

    def test_what_does_not_fit_is_refused_and_the_rest_serves(self, narrow, tls, content, tmp_path):
        toml = 'name = "{}"\nimage = "{}"\ncontract = "fc"\nkind = "http"\nport = 9000\n'
        for name, files in (("small", content[:1]), ("huge", content), ("next", content[1:2])):
            spec = toml.format(name, push(tls, name, files)) + "memory_mb = 128\n"
            (tmp_path / f"{name}.toml").write_text(spec)
        narrow.cli("deploy", tmp_path / "small.toml", "--wait")
        assert reads(narrow, "small", "0") == content[0]
        refused = narrow.cli("deploy", tmp_path / "huge.toml", "--wait", check=False)
        assert refused.status == 1
        # The store's own limit, a part of the disk, may be met first.
        assert re.search("no space left on device|the image store's limit is", refused.err)
        assert reads(narrow, "small", "0") == content[0]
        narrow.cli("remove", "small")
        narrow.cli("deploy", tmp_path / "next.toml", "--wait")
        assert reads(narrow, "next", "0") == content[1]
        narrow.cli("remove", "next")

    def test_a_mounted_image_is_completed_when_a_full_disk_has_room_again(
        self, narrow, tls, content
    ):
        small, name = push(tls, "small", content[:1]), push(tls, "half", content[:2])
        narrow.cli("image", "accelerate", name)
        narrow.cli("image", "rm", name)
        filler = narrow.data / "filler"
        with (
            Functions(narrow, same_worker=False) as lazy,
            lazy.watching() as watched,
        ):

            def told(type: str) -> str:
                return " ".join(event.message for event in watched.events if event.type == type)

            deploy(lazy, "other", small, acceleration="eager", scaling={"min": 1})
            deploy(lazy, "half", name, acceleration="lazy", scaling={"min": 1})
            assert reads(narrow, "half", "small") == b"small\n"
            fill(filler)
            narrow.wait_until(lambda: told("ImageNotComplete") != "", 30, "the reason")
            assert "disk full" in told("ImageNotComplete")
            assert name in told("ImageNotComplete")
            # What is here serves. What is not has no place to be kept: an error, not a wait.
            assert reads(narrow, "half", "small") == b"small\n"
            assert reads(narrow, "other", "0") == content[0]
            assert reads(narrow, "half", "1", timeout_s=30) in (b"", content[1])
            assert reads(narrow, "other", "0") == content[0]
            filler.unlink()
            narrow.wait_until(lambda: told("ImageCompleted") != "", 90, "the image complete")
            narrow.wait_until(
                lambda: [reads(narrow, "half", str(n)) for n in range(2)] == content[:2],
                20,
                "all of it",
            )


def fill(path: Path) -> None:
    """Write until not one byte more fits."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with suppress(OSError):
                while file.write(b"x" * size):
                    pass


class Reader:
    """A call in a thread of its own."""

    def __init__(self, agent: RunningAgent, name: str, path: str) -> None:
        self.body: bytes | None = None
        self._thread = threading.Thread(target=self._run, args=(agent, name, path))
        self._thread.start()

    def _run(self, agent: RunningAgent, name: str, path: str) -> None:
        self.body = reads(agent, name, path, timeout_s=180)

    def waits(self) -> bool:
        return self._thread.is_alive()

    def end(self) -> bytes | None:
        self._thread.join(120)
        assert not self.waits()
        return self.body
