"""Which platforms run here: names as builders write them, and levels of x86-64 by the CPU's flags.

Pure. Levels are those of the x86-64 psABI; a level is told by the flags that the kernel shows, the
same that glibc asks for (`ld.so --help` prints what it found). An image for amd64/v3 dies of SIGILL
on a CPU of level 2, so it is refused there, and the highest level that runs is taken of an index.
"""

from __future__ import annotations

import re
from collections.abc import Collection

HERE = "linux/amd64"
BASELINE = 1

# What /proc/cpuinfo calls them: pni is SSE3, abm is LZCNT. The kernel shows avx and what builds on
# it only where it saves their registers (OSXSAVE).
_LEVELS = (
    {"cx16", "lahf_lm", "pni", "popcnt", "sse4_1", "sse4_2", "ssse3"},
    {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"},
    {"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"},
)
_ARCHITECTURES = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "i386": "386"}
_VARIANT = re.compile(r"v([1-4])")


def level_of(flags: Collection[str]) -> int:
    """Return the level of a CPU, 1 to 4, by its flags in /proc/cpuinfo."""
    level = BASELINE
    for needed in _LEVELS:
        if not needed.issubset(flags):
            break
        level += 1
    return level


def named(system: str, architecture: str, variant: str = "") -> str:
    """Return "os/arch[/variant]" in the usual spelling, "" where nothing is said.

    What is left out of one that says something means Linux on amd64, as containerd reads it.
    """
    if not system and not architecture:
        return ""
    arch = architecture.lower() or "amd64"
    parts = (system.lower() or "linux", _ARCHITECTURES.get(arch, arch), variant.lower())
    return "/".join(part for part in parts if part)


def rank(platform: str, level: int) -> int:
    """Return how well a platform fits a CPU of `level`: its own level, 0 if it does not run."""
    if platform == HERE:
        return BASELINE
    base, _, variant = platform.rpartition("/")
    match = _VARIANT.fullmatch(variant)
    if base != HERE or match is None or int(match[1]) > level:
        return 0
    return int(match[1])


def why_not(platform: str, level: int) -> str:
    """Say why a platform does not run on a CPU of `level`."""
    base, _, variant = platform.rpartition("/")
    if base == HERE and _VARIANT.fullmatch(variant):
        return f"is for {platform}; this CPU has the instructions of {HERE}/v{level} at most"
    return f"is for {platform}; this node runs {HERE} only"
