"""What an instance is shown of control groups: its own ones, by the names the host has for them.

Programs size heaps and thread pools by the limits they find below /sys/fs/cgroup. On v1 that is a
directory of mount points and links between them, which is made here once per node; on v2 there is
one group and nothing to make. Only hierarchies with limits are shown: cpuset among them, because
Java takes v1 figures only where it finds memory, cpu, cpuacct and cpuset.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from agent.core.oci import CGROUP_ROOT, ShownCgroups
from agent.rootless.cgroup import CgroupLayout

NAMES = "cgroup-names"  # below the run directory
CONTROLLERS = ("memory", "cpu", "cpuacct", "cpuset", "pids")
NOTHING = ShownCgroups(())


def show(layout: CgroupLayout, names: Path) -> ShownCgroups:
    """Return what to bind for every instance, and make the directory of names that v1 needs.

    Raises OSError naming the path when it cannot be made.
    """
    if layout.version == 2:
        return ShownCgroups((layout.mounts[""],)) if layout.mounts[""] == CGROUP_ROOT else NOTHING
    places: dict[Path, None] = {}  # several controllers may share a hierarchy
    links: dict[str, str] = {}
    for controller in CONTROLLERS:
        place = Path(layout.mounts.get(controller, ""))
        if str(place.parent) != CGROUP_ROOT:
            continue
        places[place] = None
        if place.name != controller:
            links[controller] = place.name
    names.mkdir(mode=0o755, exist_ok=True)
    for place in places:
        (names / place.name).mkdir(mode=0o755, exist_ok=True)
    for link, target in links.items():
        with suppress(FileExistsError):
            (names / link).symlink_to(target)
    return ShownCgroups(tuple(map(str, places)), str(names))
