"""The resource limits of a function's processes: what they start with, and up to what they may go.

Entrypoints raise and lower limits under `set -e`; one that may not be raised ends them.
The kernel lets nobody in a user namespace pass the hard limits of whoever made it, so the agent's
own are the most there can be.

| limit  | at first     | at most              | why                                              |
|--------|--------------|----------------------|--------------------------------------------------|
| NOFILE | the contract | the agent's, 1048576 | Docker's most. Open files count as the           |
|        |              |                      | instance's memory; programs of old that go       |
|        |              |                      | through all numbers look at the first            |
| CORE   | 0            | the agent's          | Docker has none. A dump is a file of the         |
|        |              |                      | instance's own, inside its disk limit            |
| others | the agent's  | the agent's          | as with Docker: the groups bound memory and      |
|        |              |                      | processes                                        |

A dump is none of the instance's where the host has the kernel write those of setuid programs with
root's rights to a place of the host's (fs.suid_dumpable 2 and an absolute kernel.core_pattern;
fs/coredump.c): there nothing is dumped.
"""

from __future__ import annotations

from dataclasses import dataclass

MOST_FILES = 1 << 20
UNLIMITED = (1 << 64) - 1  # RLIM_INFINITY


@dataclass(frozen=True, slots=True)
class Rlimit:
    """One limit: `name` without its RLIMIT_, what counts, and up to what that may be raised."""

    name: str
    soft: int
    hard: int


def rlimits(
    files: int, own_files: int, own_core: int, *, outside: bool = False
) -> tuple[Rlimit, ...]:
    """Return the limits of a function whose contract has `files` open files.

    `own_files` and `own_core` are the agent's own hard limits as getrlimit(2) has them, -1 for
    none. `outside` says that dumps may be written outside the instance.
    """
    most = min(_number(own_files), MOST_FILES)
    core = 0 if outside else _number(own_core)
    return (
        Rlimit("NOFILE", min(files, most), most),
        Rlimit("CORE", 0, core),
    )


def dumps_outside(core_pattern: str, suid_dumpable: str) -> bool:
    """Say whether dumps may be written outside, by the texts of the host's two settings."""
    return suid_dumpable.strip() == "2" and core_pattern.startswith("/")


def _number(own: int) -> int:
    return UNLIMITED if own < 0 else own
