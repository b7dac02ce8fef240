"""The command line of rootlesskit: which namespaces the house gets.

A pure function. The network namespace is detached: the supervisor, containerd and the worker stay
in the host's, containers live below `<state>/netns`. `/etc` is not copied up, because nothing of
ours replaces a file in it and the host's resolv.conf stays visible as it changes.
"""

from __future__ import annotations

from collections.abc import Sequence

from agent.linux import mountinfo
from agent.rootless.settings import House


def command(house: House, inner: Sequence[str], *, shared_root: bool) -> list[str]:
    """Return the argv that runs `inner` inside the house's namespaces.

    `shared_root` says that mounts below the host's / are propagated, as systemd sets it up.
    """
    return [
        str(house.lib / "bin" / "rootlesskit"),
        "--net=slirp4netns",
        "--detach-netns",
        # Functions must not reach what listens on the host's 127.0.0.1 through slirp's 10.0.2.2.
        "--disable-host-loopback",
        # /run becomes private, so that shims can have their fixed /run/containerd in there.
        "--copy-up=/run",
        # Slots that root mounts later on the host become visible, where the host allows it.
        f"--propagation={'rslave' if shared_root else 'rprivate'}",
        f"--state-dir={house.rootlesskit_state}",
        *inner,
    ]


def root_is_shared(mounts: str) -> bool:
    """Return whether / propagates its mounts, by the text of /proc/self/mountinfo."""
    roots = [mounted for mounted in mountinfo.parse(mounts) if mounted.point == "/"]
    return bool(roots) and roots[-1].shared
