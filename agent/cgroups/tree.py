"""The node's control groups as the worker sees them: names for the runtime, groups by instance.

The directories themselves are made before the worker starts; the layout is read from the file that
`kindling run` left in the run directory. Removing is only for what a runtime forgot.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from agent.cgroups.instance import InstanceCgroup
from agent.cgroups.shown import NAMES, NOTHING, show
from agent.core.oci import ShownCgroups
from agent.errors import RuntimeUnavailable
from agent.rootless import cgroup, settings


class CgroupTree:
    """All instance groups of one node."""

    def __init__(
        self, layout: cgroup.CgroupLayout, node: str, shown: ShownCgroups = NOTHING
    ) -> None:
        self._layout = layout
        self._node = node
        self.shown = shown
        """What instances see of their own groups."""

    @classmethod
    def load(cls, run: Path, node: str) -> CgroupTree:
        """Read the layout from a run directory; raises RuntimeUnavailable if it is not there."""
        path = run / settings.CGROUP_NAME
        try:
            layout = cgroup.load(path)
            return cls(layout, node, show(layout, run / NAMES))
        except (OSError, ValueError, KeyError) as error:
            raise RuntimeUnavailable(
                f"{path} cannot be read ({error}): start the agent with 'kindling run'"
            ) from error

    @property
    def version(self) -> int:
        """1 (also on hybrid hosts) or 2."""
        return self._layout.version

    def path(self, id: str) -> str:
        """Return `linux.cgroupsPath` of an instance or anchor."""
        return f"{self._layout.oci_prefix(self._node)}/{id}"

    def instance(self, id: str) -> InstanceCgroup:
        """Return the group of an instance, whether it exists yet or not."""
        return InstanceCgroup(self._layout, self._node, id)

    def instances(self) -> set[str]:
        """Return the names of all groups that exist, anchors included, the agent's own not."""
        found: set[str] = set()
        for directory in self._layout.node_directories(self._node):
            with suppress(FileNotFoundError):
                found |= {entry.name for entry in directory.iterdir() if entry.is_dir()}
        return found - {cgroup.AGENT_GROUP}

    def remove(self, id: str) -> bool:
        """Remove what is left of an instance's group; False if a process is still in it."""
        roots = [path / id for path in self._layout.node_directories(self._node)]
        for group in cgroup.subtree(roots):
            with suppress(FileNotFoundError):
                try:
                    group.rmdir()
                except OSError:
                    return False
        return True
