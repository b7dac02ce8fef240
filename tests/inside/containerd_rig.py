"""Runs a probe program as user kindling, in rootlesskit, beside a containerd of its own.

Used from outside by tests (as root). Everything it makes lies in one run directory, one data
directory and one cgroup directory, and is gone afterwards: `run` reports what a probe left behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.rootless.containerd_config import owners_processor

LIB = Path("/usr/lib/kindling")
USER = "kindling"
CGROUPS = Path("/sys/fs/cgroup")
PARENT = "kindling-test"
DATA = Path("/var/lib/kindling-test")
REPO = Path(__file__).resolve().parents[2]
PYTHON = LIB / "venv/bin/python"
LIMIT_S = 300

CONFIG = """\
version = 3
root = "{data}"
state = "{run}/state"
disabled_plugins = [
  "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime",
  "io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing",
  "io.containerd.podsandbox.controller.v1.podsandbox", "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
address = "{run}/containerd.sock"
uid = 0
gid = 0
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux/amd64"
snapshotter = "overlayfs"
differ = "walking"
"""


@dataclass
class Rig:
    """One place to run probes in; `leftovers` says what was found after the last one."""

    name: str
    run_dir: Path
    data_dir: Path
    leftovers: list[str] = field(default_factory=list)

    @property
    def code(self) -> Path:
        """A copy of the code under test: the user may not be able to read the checkout."""
        return self.run_dir / "code"

    def run(self, program: str, *scenarios: str, **env: str) -> dict[str, Any]:
        """Run `python -m program scenarios…` inside and return the JSON it prints."""
        command = [
            *("setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups"),
            *(str(LIB / "bin/rootlesskit"), "--net=slirp4netns", "--detach-netns"),
            *("--disable-host-loopback", "--copy-up=/etc", "--copy-up=/run"),
            *("--propagation=rslave", f"--state-dir={self.run_dir}/rootlesskit"),
            *(str(self.code / "tests/inside/containerd_up.sh"), str(self.run_dir)),
            *(str(PYTHON), "-m", program, *scenarios),
        ]
        ended = subprocess.run(
            command, env=self._env() | env, cwd="/", capture_output=True, timeout=LIMIT_S, text=True
        )
        self.leftovers = self.sweep()
        if ended.returncode != 0 or not ended.stdout:
            raise AssertionError(f"{program} failed:\n{ended.stderr}\n{self.log_tail()}")
        results: dict[str, Any] = json.loads(ended.stdout)
        return results

    def log_tail(self, lines: int = 30) -> str:
        """The end of containerd's log."""
        with contextlib.suppress(FileNotFoundError):
            return "\n".join((self.run_dir / "containerd.log").read_text().splitlines()[-lines:])
        return "(no containerd log)"

    def sweep(self) -> list[str]:
        """End and remove what is left of processes and cgroups; returns what that was."""
        found: list[str] = []
        for pid, words in _processes():
            if any(str(self.run_dir) in word for word in words):
                found.append(f"process {pid}: {' '.join(words)}"[:200])
                _end(pid)
        for procs in CGROUPS.glob(f"*/{PARENT}/{self.name}/**/cgroup.procs"):
            for word in procs.read_text().split():
                found.append(f"process {word} in {procs.parent}")
                _end(int(word))
        for top in self._cgroups():
            for group in sorted((g for g in top.glob("**/") if g != top), reverse=True):
                found.append(f"cgroup {group}")
                _rmdir(group)
        return sorted(set(found))

    def _env(self) -> dict[str, str]:
        return {
            "HOME": "/var/lib/kindling",
            "PATH": f"{LIB}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": str(self.code),
            "PYTHONDONTWRITEBYTECODE": "1",
            "XDG_RUNTIME_DIR": str(self.run_dir),
            "PROBE_DIR": str(self.run_dir),
            "PROBE_DATA": str(self.data_dir),
            "PROBE_CGROUP": f"/{PARENT}/{self.name}",
        }

    def _cgroups(self) -> list[Path]:
        return [
            group
            for group in CGROUPS.glob(f"*/{PARENT}/{self.name}")
            # cpu and cpuacct may be links to one directory
            if not group.parents[1].is_symlink()
        ]


@contextlib.contextmanager
def small_disk(path: Path, size_mb: int) -> Iterator[None]:
    """Put an empty ext4 of that size at `path`, owned by who owned `path`."""
    owner, image = path.stat(), path.with_name(f"{path.name}.ext4")
    with image.open("wb") as file:
        file.truncate(size_mb << 20)
    try:
        subprocess.run(["mkfs.ext4", "-q", "-m0", "-O", "^has_journal", image], check=True)
        subprocess.run(["mount", "-o", "loop", image, path], check=True)
        try:
            os.chown(path, owner.st_uid, owner.st_gid)
            yield
        finally:
            subprocess.run(["umount", path], check=True)
    finally:
        image.unlink()


@contextlib.contextmanager
def rig(name: str, disk_mb: int = 0) -> Iterator[Rig]:
    """Make a rig's directories and cgroups, and remove them afterwards.

    With `disk_mb` containerd's data is on a file system of its own, of that size.
    """
    user = pwd.getpwnam(USER)
    full = f"{name}-{os.getpid()}"
    made = Rig(full, Path(f"/run/kindling-{full}"), DATA / full)
    for path in (made.run_dir, made.data_dir):
        path.mkdir()
        os.chown(path, user.pw_uid, user.pw_gid)
    _copy_code(made.code)
    for parent in CGROUPS.glob(f"*/{PARENT}"):
        group = parent / full
        group.mkdir(exist_ok=True)
        for path in (group, *group.iterdir()):
            os.chown(path, user.pw_uid, user.pw_gid)
    config = CONFIG.format(data=made.data_dir, run=made.run_dir) + owners_processor(PYTHON)
    (made.run_dir / "config.toml").write_text(config)
    disk = small_disk(made.data_dir, disk_mb) if disk_mb else contextlib.nullcontext()
    try:
        with disk:
            yield made
            made.sweep()
    finally:
        made.sweep()
        for group in CGROUPS.glob(f"*/{PARENT}/{full}"):
            _rmdir(group)
        shutil.rmtree(made.run_dir)
        shutil.rmtree(made.data_dir)


def _copy_code(code: Path) -> None:
    unwanted = shutil.ignore_patterns("__pycache__")
    for part in ("agent", "tests/inside"):
        shutil.copytree(REPO / part, code / part, ignore=unwanted)
    for file in ("tests/__init__.py", "tests/oci.py"):
        shutil.copy(REPO / file, code / file)


def _processes() -> Iterator[tuple[int, Sequence[str]]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                yield int(entry.name), words


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _rmdir(group: Path) -> None:
    until = time.monotonic() + 2.5
    while group.exists() and time.monotonic() < until:
        with contextlib.suppress(OSError):  # busy until the kernel has collected its processes
            group.rmdir()
            return
        time.sleep(0.05)
