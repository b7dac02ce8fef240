"""Which host directories a function may see: those the node's configuration names, no other.

A platform mounts NAS or object storage on the host and names the directory; a function's spec asks
for it by that name. Pure but for looking whether the directory is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from agent.core.oci import Bind
from agent.errors import InvalidSpec, Problem


class WantedMount(Protocol):
    """One entry of a spec's `mounts`."""

    @property
    def volume(self) -> str:
        """The name of a volume of the node."""

    @property
    def target(self) -> str:
        """The absolute path inside the container."""

    @property
    def read_only(self) -> bool:
        """Whether the function may not write."""


def resolve(mounts: Sequence[WantedMount], volumes: Mapping[str, Path]) -> tuple[Bind, ...]:
    """Return what to bind for a spec's mounts.

    Raises InvalidSpec with every mount whose volume this node does not have, or whose directory
    is missing.
    """
    binds, problems = [], []
    for position, mount in enumerate(mounts):
        field = f"mounts[{position}].volume"
        source = volumes.get(mount.volume)
        if source is None:
            known = ", ".join(sorted(volumes)) or "none"
            problems.append(
                Problem(
                    field,
                    f"{mount.volume!r} is no volume of this node (it has: {known}); "
                    "name its directory in the node's config under [volumes]",
                )
            )
        elif not source.is_absolute() or not source.is_dir():
            problems.append(Problem(field, f"{source} is no directory on this node"))
        else:
            binds.append(Bind(str(source), mount.target, mount.read_only))
    if problems:
        raise InvalidSpec(problems)
    return tuple(binds)
