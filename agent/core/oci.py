"""The runtime's view of a container: an OCI runtime spec out of explicit values.

`oci_spec` is the whole of it as plain data; `SpecTemplate` encodes it once per version and fills in
what differs per container by joining bytes: a seccomp profile encoded for every start would hold up
the loop. Follows the OCI runtime specification 1.0.2 (crun 1.8 refuses newer numbers).

Isolation in short: all namespaces, a user namespace split at the parent's extents, the small
capability set, the seccomp profile, /proc masked, /sys read-only with the container's own group
under cgroup and nothing else. Whose figures these are and where the paths come from is decided by
`agent/sandbox`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from signal import SIGTERM
from typing import Any

from agent.core.rlimits import Rlimit
from agent.core.seccomp import profile
from agent.errors import Bug, InvalidSpec, Problem

OCI_VERSION = "1.0.2"
CPU_PERIOD_US = 100_000
INIT_TARGET = "/dev/init"
CGROUP_ROOT = "/sys/fs/cgroup"
DEV_BYTES = 64 << 10  # device nodes and links only; the init is bound over a name in it
MAX_SHM_BYTES = 64 << 20
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Docker's and containerd's default set. A file that carries a capability outside of this set cannot
# be executed at all, void or not, and images carry the lot: web servers NET_BIND_SERVICE, ping
# NET_RAW. In the nested user namespace each counts for the container's own ids and files only.
# Void are NET_RAW and NET_BIND_SERVICE (its network belongs to a namespace above; ports and ping
# are opened by sysctl), MKNOD (no device can be made in a user namespace) and AUDIT_WRITE (the
# audit log is the first namespace's). Not in it is what reaches the kernel as a whole: SYS_ADMIN,
# SYS_PTRACE, SYS_MODULE, NET_ADMIN, DAC_READ_SEARCH and the like.
CAPABILITIES = (
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)

# The agent's own namespace maps 0 (the agent's user) and 1-65535 (its subids) apart; one line over
# both is EPERM.
ID_MAPPINGS = (
    {"containerID": 0, "hostID": 0, "size": 1},
    {"containerID": 1, "hostID": 1, "size": 65535},
)

MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READONLY_PATHS = (
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
)


@dataclass(frozen=True, slots=True)
class Bind:
    """A host directory inside the instance."""

    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class ShownCgroups:
    """How containers see their own control groups: read-only below /sys/fs/cgroup.

    `hierarchies` are mount points of cgroup file systems below CGROUP_ROOT; the container's own
    group in each is bound at that place. On v1 they need `names`, a directory of the host with an
    empty directory (or a link between two of them) per hierarchy; "" on v2, where CGROUP_ROOT is
    the only one.
    """

    hierarchies: tuple[str, ...]
    names: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionPlan:
    """What all containers of a version share.

    `argv` is the program's own command line, without the init; `init_path` is where the host has
    that, "" for a program that is the first process itself. `stop_signal` is what ends it.
    `limit_swap` says that the kernel counts swap (always on cgroup v2; on v1 where memory.memsw.*
    exists). `sysfs` is what containers get at /sys. `masked` are paths that only this host has:
    they are hidden beside MASKED_PATHS.
    """

    argv: tuple[str, ...]
    memory_bytes: int
    cpu_millis: int
    pids: int
    rlimits: tuple[Rlimit, ...] = ()
    cwd: str = "/"
    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    shm_bytes: int = MAX_SHM_BYTES
    init_path: str = ""
    stop_signal: int = int(SIGTERM)
    oom_score_adj: int = 500
    binds: tuple[Bind, ...] = ()
    limit_swap: bool = True
    sysfs: str = "/sys"
    cgroups: ShownCgroups = ShownCgroups(())
    masked: tuple[str, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class InstancePlan:
    """What differs per instance; the paths are the host's. `env` is the whole environment."""

    hostname: str
    rootfs: str
    netns: str
    cgroups_path: str
    env: Mapping[str, str]


def oci_spec(version: VersionPlan, instance: InstancePlan) -> dict[str, Any]:
    """Return the whole runtime spec as plain JSON values."""
    return {
        "ociVersion": OCI_VERSION,
        "hostname": instance.hostname,
        "root": {"path": instance.rootfs, "readonly": False},
        "process": _process(version, [f"{k}={v}" for k, v in instance.env.items()]),
        "mounts": [
            *_kernel_mounts(version),
            *_cgroup_binds(version.cgroups, instance.cgroups_path),
            *_binds(version),
        ],
        "annotations": dict(version.annotations),
        "linux": _linux(version, instance.cgroups_path, instance.netns),
    }


def _process(version: VersionPlan, env: Sequence[str]) -> dict[str, Any]:
    own = list(CAPABILITIES)
    held = own if version.uid == 0 else []  # as the kernel would leave it after setuid and exec
    capabilities = {"bounding": own, "effective": held, "permitted": held}
    if version.uid != 0 and version.init_path:
        # Its init alone keeps it, to pass signals to what has become another user (sudo).
        keep = ("inheritable", "ambient", "effective", "permitted")
        capabilities |= {name: ["CAP_KILL"] for name in keep}
    return {
        "terminal": False,
        "user": {
            "uid": version.uid,
            "gid": version.gid,
            # With the first one among them, as Docker and podman do since CVE-2022-36109: else a
            # setgid program of the image takes it away, and what is closed to that group opens.
            "additionalGids": [version.gid, *(gid for gid in version.groups if gid != version.gid)],
        },
        "args": [*_first_process(version), *version.argv],
        "env": list(env),
        "cwd": version.cwd,
        "capabilities": capabilities,
        "rlimits": [
            {"type": f"RLIMIT_{each.name}", "soft": each.soft, "hard": each.hard}
            for each in version.rlimits
        ],
        # setuid programs (sudo, su) and capabilities in files count, as elsewhere: all they lead to
        # is the container's own root, whose rights CAPABILITIES bounds.
        "noNewPrivileges": False,
        "oomScoreAdj": version.oom_score_adj,
    }


def _first_process(version: VersionPlan) -> list[str]:
    """Return the words before the program's own: the init, as init/kindling-init.c takes them."""
    return [INIT_TARGET, str(version.stop_signal)] if version.init_path else []


def _mount(target: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": target, "type": kind, "source": source, "options": list(options)}


def _bind(target: str, source: str, *options: str) -> dict[str, Any]:
    return _mount(target, "bind", source, *options)


def _kernel_mounts(version: VersionPlan) -> list[dict[str, Any]]:
    quiet = ("nosuid", "noexec", "nodev")
    only_read = ("bind", "ro", "nosuid", "nodev")
    return [
        _mount("/proc", "proc", "proc", *quiet),
        _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", f"size={DEV_BYTES}"),
        _mount(
            "/dev/pts",
            "devpts",
            "devpts",
            "nosuid",
            "noexec",
            "newinstance",
            "ptmxmode=0666",
            "mode=0620",
            "gid=5",
        ),
        _mount("/dev/shm", "tmpfs", "shm", *quiet, "mode=1777", f"size={version.shm_bytes}"),
        _mount("/dev/mqueue", "mqueue", "mqueue", *quiet),
        # A fresh sysfs needs the network namespace to be the container's own; it is not. `rro` is
        # read-only for what is mounted below, too (crun and runc 1.1 by mount_setattr(2)).
        _bind("/sys", version.sysfs, "rbind", "rro", *quiet),
    ] + ([_bind(INIT_TARGET, version.init_path, *only_read)] if version.init_path else [])


def _cgroup_binds(shown: ShownCgroups, cgroups_path: str) -> list[dict[str, Any]]:
    """Return binds of the container's own groups: programs ask them for their limits.

    A fresh cgroup mount would do the same, but waits for RCU grace periods (11 ms). Inside the
    cgroup namespace nothing above the group has a name. Without any the place is empty.
    """
    options = ("bind", "ro", "nosuid", "noexec", "nodev")
    if not shown.hierarchies:
        return [_mount(CGROUP_ROOT, "tmpfs", "tmpfs", *options[1:], "mode=555", "size=4k")]
    names = [_bind(CGROUP_ROOT, shown.names, *options)] if shown.names else []
    return names + [_bind(at, at + cgroups_path, *options) for at in shown.hierarchies]


def _binds(version: VersionPlan) -> list[dict[str, Any]]:
    return [
        _bind(
            bind.target,
            bind.source,
            *("rbind", "rprivate", "nosuid", "nodev"),
            *(("rro",) if bind.read_only else ()),
        )
        for bind in version.binds
    ]


def _linux(version: VersionPlan, cgroups_path: str, netns: str) -> dict[str, Any]:
    namespaces: list[dict[str, str]] = [
        {"type": name} for name in ("pid", "ipc", "uts", "mount", "cgroup", "user")
    ]
    namespaces.append({"type": "network", "path": netns})
    memory: dict[str, Any] = {"limit": version.memory_bytes}
    if version.limit_swap:
        memory["swap"] = version.memory_bytes  # memory and swap together: no swap
    return {
        "namespaces": namespaces,
        "uidMappings": [dict(line) for line in ID_MAPPINGS],
        "gidMappings": [dict(line) for line in ID_MAPPINGS],
        "cgroupsPath": cgroups_path,
        "resources": {
            "memory": memory,
            "cpu": {
                "quota": version.cpu_millis * CPU_PERIOD_US // 1000,
                "period": CPU_PERIOD_US,
            },
            "pids": {"limit": version.pids},
        },
        "maskedPaths": [*MASKED_PATHS, *version.masked],
        "readonlyPaths": list(READONLY_PATHS),
        "seccomp": profile(CAPABILITIES),
    }


# No path, variable or argument can hold a NUL byte, so no input can be taken for a hole.
_HOLES = InstancePlan(
    hostname="\0hostname\0",
    env={"\0env": "\0"},
    rootfs="\0rootfs\0",
    netns="\0netns\0",
    cgroups_path="\0cgroups_path\0",
)
_ENV_HOLE = '"\0env=\0"'
# All backslashes before a NUL's four zeros. It begins with a letter, which is looked for fast, and
# of a row of backslashes only the first is where it may begin.
_ESCAPED_NUL = re.compile(r"\\(?<!\\\\)\\*+u0000")


class SpecTemplate:
    """The spec of one version, encoded once."""

    __slots__ = ("_holes", "_pieces", "version")

    def __init__(self, version: VersionPlan) -> None:
        self.version = version
        text = json.dumps(oci_spec(version, _HOLES), separators=(",", ":"))
        text = _ESCAPED_NUL.sub(_unescaped, text).replace(_ENV_HOLE, "\0env\0")
        # Pieces and hole names take turns: text, hole, text, hole, … text.
        parts = text.split("\0")
        self._pieces = [part.encode() for part in parts[0::2]]
        self._holes = parts[1::2]

    def encode(self, instance: InstancePlan) -> bytes:
        """Return the spec of one container as JSON; raises Bug when one of its paths is empty."""
        values = {
            "env": _encoded_env(instance.env),
            "hostname": _inner(instance.hostname, "hostname"),
            "rootfs": _inner(instance.rootfs, "rootfs"),
            "netns": _inner(instance.netns, "netns"),
            "cgroups_path": _inner(instance.cgroups_path, "cgroups_path"),
        }
        out = [self._pieces[0]]
        for hole, piece in zip(self._holes, self._pieces[1:], strict=True):
            out += (values[hole], piece)
        return b"".join(out)


def _unescaped(found: re.Match[str]) -> str:
    """Return a NUL for an escaped one, and the zeros of somebody's text as they are."""
    text = found[0]
    slashes = text.count("\\")
    return text[: slashes - 1] + "\0" if slashes % 2 else text


def _inner(text: str, name: str) -> bytes:
    if not text:
        raise Bug(f"a container without {name} was about to be made")
    return json.dumps(text)[1:-1].encode()


def _encoded_env(env: Mapping[str, str]) -> bytes:
    return ",".join(json.dumps(f"{name}={value}") for name, value in env.items()).encode()


def argv_of(
    entrypoint: Sequence[str],
    cmd: Sequence[str],
    command: Sequence[str] | None,
    args: Sequence[str] | None,
) -> tuple[str, ...]:
    """Return the program's command line out of the image's and the function's.

    `command` replaces ENTRYPOINT and drops CMD, `args` replaces CMD; None is not given. Raises
    InvalidSpec when nothing is left to run.
    """
    program = tuple(entrypoint if command is None else command)
    default = tuple(cmd) if command is None else ()
    argv = program + (default if args is None else tuple(args))
    if not argv or not argv[0]:
        raise InvalidSpec(
            [Problem("command", "the image has neither ENTRYPOINT nor CMD; name the program here")]
        )
    return argv


def merged_env(
    image_env: Iterable[str], contract_env: Mapping[str, str], own_env: Mapping[str, str]
) -> dict[str, str]:
    """Return the environment: the image's, over it the contract's, over that the function's own.

    A PATH is there always. Lines of the image without a name or with a NUL are passed over.
    """
    env = {"PATH": DEFAULT_PATH}
    for line in image_env:
        name, equals, value = line.partition("=")
        if name and equals and "\0" not in line:
            env[name] = value
    env.update(contract_env)
    env.update(own_env)
    return env
