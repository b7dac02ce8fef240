"""The OCI spec of an anchor: a container whose only purpose is that its shim stays alive.

Its process is created and never started, so the runtime's own init waits for ever; it holds no
network, no image and about a megabyte. `agent/sandbox/shims.py` makes and removes anchors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ANCHOR_PREFIX = "kindling-anchor-"
MEMORY_BYTES = 32 << 20  # the waiting init of the runtime, nothing else
INIT_TARGET = "/init"  # the runtime looks the executable up before it waits


def anchor_spec(
    rootfs: str,
    init: str,
    cgroups_path: str,
    *,
    seccomp: Mapping[str, Any],
    annotations: Mapping[str, str],
) -> dict[str, Any]:
    """Return the spec.

    `rootfs` is a directory with nothing but the mount points /init, /dev and /proc; `init` any
    static executable of the host. `seccomp` is the functions' profile: it confines nothing here,
    but what the runtime compiles of it is then there for all. `annotations` as functions have them.
    """
    return {
        "ociVersion": "1.0.2",
        "root": {"path": rootfs, "readonly": True},
        "process": {
            "cwd": "/",
            "args": [INIT_TARGET],
            "user": {"uid": 0, "gid": 0},
            "noNewPrivileges": True,
            "capabilities": {},
        },
        "annotations": dict(annotations),
        "mounts": [
            {
                "destination": INIT_TARGET,
                "type": "bind",
                "source": init,
                "options": ["bind", "ro", "nosuid", "nodev"],
            },
            {"destination": "/proc", "type": "proc", "source": "proc"},
        ],
        "linux": {
            "cgroupsPath": cgroups_path,
            "namespaces": [{"type": name} for name in ("pid", "mount")],
            "resources": {"memory": {"limit": MEMORY_BYTES}, "pids": {"limit": 8}},
            "seccomp": dict(seccomp),
        },
    }
