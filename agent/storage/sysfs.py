"""The /sys that containers get: a sysfs of our own, for one made by the host says too much.

A bind of the host's /sys brings along whatever is mounted there: cgroup hierarchies that programs
take for theirs, debugfs, tracefs. A sysfs mounted in our own user namespace has none of it, and
shows the interfaces of an empty network namespace instead of the host's. The kernel refuses it
where the host has covered parts of its own /sys (EPERM): containers get a bind of that one then.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path

from agent.errors import RuntimeUnavailable
from agent.linux import mount, namespaces

log = logging.getLogger(__name__)

NAME = "sys"  # below the run directory
HOST = "/sys"


async def provide(run: Path) -> None:
    """Mount it below `run` unless a worker before has; a refusal by the kernel is logged.

    Raises RuntimeUnavailable when the directory cannot be made.
    """
    failed = await asyncio.to_thread(_provide, run / NAME)
    if failed is not None:
        log.warning("no sysfs of our own (%s): functions see the host's /sys", failed)


def source(run: Path) -> str:
    """Return what containers are to get at /sys: ours, else the host's."""
    own = run / NAME
    return str(own) if own.is_mount() else HOST


def _provide(place: Path) -> OSError | None:
    if place.is_mount():
        return None
    try:
        place.mkdir(mode=0o755, exist_ok=True)
    except OSError as error:
        raise RuntimeUnavailable(f"{place} cannot be made: {error.strerror}") from error
    failed: list[OSError] = []

    def mount_here() -> None:
        try:
            # SAFETY: a thread of its own, which ends right after: no other one gets into the
            # empty network namespace, which lives on with the mount.
            namespaces.unshare(namespaces.NETWORK)
            flags = mount.NOSUID | mount.NODEV | mount.NOEXEC | mount.RDONLY
            mount.mount("sysfs", place, "sysfs", flags)
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=mount_here, name="kindling-sysfs")
    thread.start()
    thread.join()
    return failed[0] if failed else None
