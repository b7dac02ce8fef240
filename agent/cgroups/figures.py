"""Reading the numbers in cgroup files, v1 and v2. Pure: bytes in, numbers out.

Formats follow the kernel's cgroup-v1/memory.rst, cgroup-v1/cpuacct.rst and cgroup-v2.rst.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Source:
    """Where one figure stands: v1 controller ("" on v2), file, key ("" for a single number)."""

    controller: str
    file: str
    key: bytes = b""
    factor: int = 1


Figure = Literal["memory_peak", "memory_usage", "oom_kills", "cpu_ns"]

V1: dict[Figure, Source] = {
    "memory_peak": Source("memory", "memory.max_usage_in_bytes"),
    "memory_usage": Source("memory", "memory.usage_in_bytes"),
    "oom_kills": Source("memory", "memory.oom_control", b"oom_kill"),
    "cpu_ns": Source("cpuacct", "cpuacct.usage"),
}
V2: dict[Figure, Source] = {
    # 5.19 and later; without it there is no peak.
    "memory_peak": Source("", "memory.peak"),
    "memory_usage": Source("", "memory.current"),
    "oom_kills": Source("", "memory.events", b"oom_kill"),
    "cpu_ns": Source("", "cpu.stat", b"usage_usec", 1000),
}


def value(data: bytes, source: Source) -> int:
    """Return the figure from a file's content in the source's unit; 0 if it is not there."""
    if not source.key:
        text = data.strip()
        return int(text) * source.factor if text.isdigit() else 0
    for line in data.splitlines():
        key, _, text = line.partition(b" ")
        if key == source.key and text.isdigit():
            return int(text) * source.factor
    return 0
