"""A second rootless house, for the peers: rootlesskit, a private containerd, and our client in it.

The peers get what Kindling has: the same user, the same kind of namespaces, the same containerd
binary and image, cgroups of their own. `bench.inside` runs in there and takes one JSON line per
measurement. When the house closes nothing of it is left.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from agent.rootless import cgroup, containerd_config
from agent.rootless.rootlesskit import root_is_shared
from agent.rootless.sweep import sweep
from bench.node import ARCHIVE, REPOSITORY
from tests.integration.running import LIB, as_kindling, own

NODE = "peers"
ANSWER_S = 400.0
END_S = 20.0


class PeerFailed(Exception):
    """A measurement in the house failed; the text says how."""


class House:
    """The running house."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process = process
        self._log = log

    def ask(self, what: str, **parameters: Any) -> Any:
        """Run one measurement of `bench.inside` and return its answer; raises PeerFailed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"what": what} | parameters) + "\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], ANSWER_S)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            raise PeerFailed(f"{what}: no answer\n{self._log.read_text()[-4000:]}")
        answer = json.loads(line)
        if "error" in answer:
            raise PeerFailed(f"{what}: {answer['error']}\n{self._log.read_text()[-4000:]}")
        return answer["result"]


@contextmanager
def opened(archives: Sequence[Path] = (ARCHIVE,), parent: Path = Path("/tmp")) -> Iterator[House]:
    """Open the house with these images, below `parent`; nothing of it is left afterwards."""
    layout = cgroup.detect()
    if layout is None:
        raise PeerFailed("this host has no cgroups")
    root = Path(tempfile.mkdtemp(prefix="kd-peers-", dir=parent))
    root.chmod(0o755)
    try:
        _furnish(root, archives)
        _own_groups(layout)
        process = _start(root, layout)
        try:
            house = House(process, root / "log")
            house.ask("ready")
            yield house
        finally:
            _end(process)
    finally:
        sweep(layout.node_directories(NODE), within_s=10)
        shutil.rmtree(root, ignore_errors=True)


def _furnish(root: Path, archives: Sequence[Path]) -> None:
    code = root / "code"
    for part in ("agent", "bench", "tests/inside"):
        ignored = shutil.ignore_patterns("__pycache__", "out")
        shutil.copytree(REPOSITORY / part, code / part, ignore=ignored)
    work = root / "work"
    bundle = work / "bundle" / "rootfs"
    bundle.mkdir(parents=True)
    for archive in archives:
        shutil.copy(archive, work)
    _unpack(ARCHIVE, bundle)
    (work / "config.toml").write_text(
        containerd_config.text(
            root=work / "root",
            state=work / "state",
            socket=work / "containerd.sock",
            python=Path(sys.executable),
        )
    )
    for path in (work, *work.rglob("*")):
        own(path)


def _unpack(archive: Path, rootfs: Path) -> None:
    """Unpack the layers of an OCI archive with one image in it."""
    with tarfile.open(archive) as outer:

        def blob(digest: str) -> bytes:
            file = outer.extractfile(f"blobs/{digest.replace(':', '/')}")
            assert file is not None, digest
            return file.read()

        index = outer.extractfile("index.json")
        assert index is not None, archive
        manifest = json.loads(blob(json.load(index)["manifests"][0]["digest"]))
        for layer in manifest["layers"]:
            with tarfile.open(fileobj=BytesIO(blob(layer["digest"]))) as files:
                files.extractall(rootfs)


def _own_groups(layout: cgroup.CgroupLayout) -> None:
    cgroup.create_node(layout, NODE)
    for directory in layout.node_directories(NODE):
        for path in (directory, *directory.rglob("*")):
            own(path)


def _start(root: Path, layout: cgroup.CgroupLayout) -> subprocess.Popen[str]:
    work, code = root / "work", root / "code"
    shared = root_is_shared(Path("/proc/self/mountinfo").read_text())
    procs = layout.agent_directory(NODE) / "cgroup.procs"
    command = [
        *("sh", "-c", 'echo $$ >"$0" && exec "$@"', str(procs)),
        *as_kindling(),
        str(LIB / "bin" / "rootlesskit"),
        *("--net=slirp4netns", "--detach-netns", "--disable-host-loopback", "--copy-up=/run"),
        f"--propagation={'rslave' if shared else 'rprivate'}",
        f"--state-dir={work / 'rootlesskit'}",
        *("sh", str(code / "tests" / "inside" / "containerd_up.sh"), str(work)),
        *(str(LIB / "venv" / "bin" / "python"), "-P", "-m", "bench.inside"),
    ]
    environment = {
        "PATH": f"{LIB}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(work),
        "XDG_RUNTIME_DIR": str(work),
        "PYTHONPATH": str(code),
        "PYTHONDONTWRITEBYTECODE": "1",
        "BENCH_WORK": str(work),
        "BENCH_GROUP": layout.oci_prefix(NODE),
    }
    with (root / "log").open("w") as log:
        return subprocess.Popen(
            command,
            env=environment,
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )


def _end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.close()
        process.wait(END_S)
    except (subprocess.TimeoutExpired, BrokenPipeError):
        # A session of its own: this is rootlesskit with everything below it, shims excepted.
        os.killpg(process.pid, 9)
        process.wait()
    finally:
        process.stdout.close()
