"""Volumes: host directories that the node's configuration names, bound into containers.

The platform mounts (NAS, OSS, file storage), we bind; a function names a volume, never a path of
the host. Pure but for one look whether the directory is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent.errors import InvalidSpec, Problem


class VolumeMount(Protocol):
    """A mount as a spec has it."""

    @property
    def volume(self) -> str:
        """The volume's name in the node's configuration."""

    @property
    def target(self) -> str:
        """Where the container finds it, absolute."""

    @property
    def read_only(self) -> bool:
        """Whether the container may not write."""


@dataclass(frozen=True, slots=True)
class Bind:
    """A directory of the host and where the container finds it."""

    source: Path
    target: str
    read_only: bool


def resolve(mounts: Iterable[VolumeMount], volumes: Mapping[str, Path]) -> tuple[Bind, ...]:
    """Return the binds of a spec's mounts.

    Raises InvalidSpec with every mount whose volume this node does not name or does not have.
    """
    problems: list[Problem] = []
    binds: list[Bind] = []
    for number, mount in enumerate(mounts):
        source = volumes.get(mount.volume)
        field = f"mounts[{number}].volume"
        if source is None:
            there = ", ".join(sorted(volumes)) or "none"
            problems.append(
                Problem(field, f"this node has no volume {mount.volume!r}; it has: {there}")
            )
        elif not source.is_dir():
            problems.append(Problem(field, f"{source} is not a directory on this node"))
        else:
            binds.append(Bind(source, mount.target, mount.read_only))
    if problems:
        raise InvalidSpec(problems)
    return tuple(binds)
