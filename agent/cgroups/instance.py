"""One instance's control group: its figures by kept descriptors, its freezer, its processes.

A kept descriptor makes a reading about a microsecond, cheap enough for the warm path; each is
opened when first needed, because the runtime makes the group only with the task. Nothing here
waits. A group that does not exist, or no longer does, reads as 0.
"""

from __future__ import annotations

import os
from pathlib import Path

from agent.cgroups.figures import V1, V2, Figure, value
from agent.linux import process
from agent.rootless.cgroup import CgroupLayout, processes

# The longest file read here, memory.events and cpu.stat, has a few hundred bytes.
_READ_BYTES = 4096
# A file of one number: 20 digits and a newline.
_NUMBER_BYTES = 32
_V1_COLD = (b"FROZEN", b"FREEZING")


class InstanceCgroup:
    """The group of one instance; close it when the instance is gone."""

    def __init__(self, layout: CgroupLayout, node: str, id: str) -> None:
        self._layout = layout
        self._node = node
        self._id = id
        self._sources = V2 if layout.version == 2 else V1
        self._descriptors: dict[str, int] = {}

    # Figures. Some are read once per call: no allocation beyond the bytes read.

    def peak_bytes(self) -> int:
        """Return the most memory the instance ever held, 0 if the kernel does not tell."""
        return self._figure("memory_peak")

    def memory_bytes(self) -> int:
        """Return the memory it holds now, page cache included."""
        return self._figure("memory_usage")

    def oom_kills(self) -> int:
        """Return how many of its processes the kernel killed for memory."""
        return self._figure("oom_kills")

    def cpu_ns(self) -> int:
        """Return the CPU time it consumed so far, in nanoseconds."""
        return self._figure("cpu_ns")

    # Freezing: by file, because the runtime refuses tasks it believes not to be started.

    def freeze(self) -> bool:
        """Ask the kernel to stop all its processes where they are; False if the group is gone.

        Returns before the last one stands still: see `is_frozen`.
        """
        return self._write_freezer(frozen=True)

    def thaw(self) -> bool:
        """Let its processes go on; False if the group is gone. Takes microseconds."""
        return self._write_freezer(frozen=False)

    def is_frozen(self) -> bool:
        """Return whether every process of it stands still."""
        if self._layout.version == 2:
            return b"frozen 1" in self._read("", "cgroup.events")
        # Reading moves v1 on from FREEZING to FROZEN (freezer-subsystem.rst).
        return self._freezer_says() == b"FROZEN"

    def is_told_to_freeze(self) -> bool:
        """Return whether it was told to stand still, by whichever worker, and not thawed since."""
        return self._freezer_says() in ((b"1",) if self._layout.version == 2 else _V1_COLD)

    def kill(self) -> int:
        """Thaw it and kill every process in it; return how many were signalled."""
        # v1: a frozen process does not take its SIGKILL.
        self.thaw()
        return process.kill_members(self.pids)

    def pids(self) -> list[int]:
        """Return the processes in it."""
        controller = "" if self._layout.version == 2 else "memory"
        return processes(self._directory(controller))

    def exists(self) -> bool:
        """Return whether the group is there."""
        return self._directory("" if self._layout.version == 2 else "memory").is_dir()

    def close(self) -> None:
        """Give the descriptors back; safe to repeat."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def _figure(self, figure: Figure) -> int:
        source = self._sources[figure]
        descriptor = self._descriptors.get(source.file)
        if descriptor is None or source.key:
            return value(self._read(source.controller, source.file), source)
        try:
            return int(os.pread(descriptor, _NUMBER_BYTES, 0)) * source.factor
        except (OSError, ValueError):  # removed meanwhile, or "max"
            return 0

    def _read(self, controller: str, file: str) -> bytes:
        try:
            descriptor = self._descriptors.get(file)
            if descriptor is None:
                descriptor = self._open(controller, file, os.O_RDONLY)
            return os.pread(descriptor, _READ_BYTES, 0)
        except (OSError, KeyError):
            # ENOENT before it exists, ENODEV after it was removed; KeyError: no such controller.
            return b""

    def _open(self, controller: str, file: str, flags: int) -> int:
        path = self._directory(controller) / file
        descriptor = os.open(path, flags | os.O_CLOEXEC)
        self._descriptors[file] = descriptor
        return descriptor

    def _freezer(self) -> int:
        """Return the freezer file's descriptor, kept, because a call may wait for the thaw."""
        v2 = self._layout.version == 2
        controller, file = ("", "cgroup.freeze") if v2 else ("freezer", "freezer.state")
        descriptor = self._descriptors.get(file)
        return self._open(controller, file, os.O_RDWR) if descriptor is None else descriptor

    def _freezer_says(self) -> bytes:
        try:
            return os.pread(self._freezer(), _NUMBER_BYTES, 0).strip()
        except (OSError, KeyError):
            return b""

    def _write_freezer(self, *, frozen: bool) -> bool:
        words = (b"0", b"1") if self._layout.version == 2 else (b"THAWED", b"FROZEN")
        try:
            os.pwrite(self._freezer(), words[frozen], 0)
        except (OSError, KeyError):
            return False
        return True

    def _directory(self, controller: str) -> Path:
        return self._layout.directory(controller, self._node) / self._id
