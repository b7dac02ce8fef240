"""Looking at the host for `preflight`: reads files, opens devices, tries addresses.

Changes nothing. Sees what the calling user sees: `kindling check` becomes the agent's user first.
"""

from __future__ import annotations

import json
import os
import pwd
import resource
import shutil
import stat
import subprocess
from contextlib import suppress
from pathlib import Path

from agent.errors import FailedPrecondition
from agent.linux import mountinfo
from agent.rootless import cgroup, lock, preflight, sockets
from agent.rootless.installed import form, init_path
from agent.rootless.preflight import Check
from agent.rootless.settings import House

_BINARIES = ("containerd", "containerd-shim-runc-v2", "ctr", "rootlesskit")
# Where daemons live on Debian; not on every user's PATH.
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# What setup writes for programs that log the agent's user in.
_LOGIN_LIMITS = "/etc/security/limits.d/60-kindling.conf"
_SYSTEM_UNIT = Path("/etc/systemd/system/kindling.service")


def checks(house: House, *, starting: bool) -> list[Check]:
    """Return every check of this host, in the order a newcomer would mend them.

    `starting` says that this very process is about to become the agent, so that where it stands
    in the cgroup tree matters too.
    """
    user = pwd.getpwuid(os.getuid()).pw_name
    return [
        *preflight.kernel(os.uname().release, _read("/proc/filesystems")),
        *_identities(user),
        *_programs(house),
        preflight.device("/dev/net/tun", _open_error("/dev/net/tun"), required=True),
        preflight.device("/dev/fuse", _open_error("/dev/fuse"), required=False),
        _cgroups(starting),
        preflight.cgroup_moves(mountinfo.text(), os.uname().release),
        _swap_limit(),
        _slots(house),
        _sysctls(house),
        _open_files(house, user, starting),
        preflight.directory("run", str(house.run), _directory_error(house.run), user),
        preflight.directory("data", str(house.data), _directory_error(house.data), user),
        preflight.tmpfs(str(house.run), _filesystem(house.run)),
        _ports(house, starting),
    ]


def _identities(user: str) -> list[Check]:
    uid = os.getuid()
    keys = (
        "kernel.unprivileged_userns_clone",
        "kernel.apparmor_restrict_unprivileged_userns",
        "user.max_user_namespaces",
    )
    limits = {key: value for key in keys if (value := _sysctl(key))}
    tools = [_which(name) for name in ("newuidmap", "newgidmap")]
    return [
        preflight.subordinate_ids("subuid", _read("/etc/subuid"), user, uid),
        preflight.subordinate_ids("subgid", _read("/etc/subgid"), user, uid),
        preflight.mapping_tool("newuidmap", tools[0], _privileged(tools[0])),
        preflight.mapping_tool("newgidmap", tools[1], _privileged(tools[1])),
        preflight.user_namespaces(limits, _userns_error()),
    ]


def _programs(house: House) -> list[Check]:
    private = house.lib / "bin"
    missing = [name for name in _BINARIES if not os.access(private / name, os.X_OK)]
    versions = {}
    for line in _read(str(house.lib / "versions")).splitlines():
        name, version, *origin = line.split()
        versions[name] = (version, " ".join(origin) or "unknown origin")
    return [
        *preflight.private_binaries(str(house.lib), missing, versions),
        preflight.runtime(house.runtime, {name: _which(name) for name in ("crun", "runc")}),
        preflight.init(str(init_path()), os.access(init_path(), os.X_OK)),
        preflight.warm_path(form()),
        preflight.program("slirp4netns", _which("slirp4netns"), "slirp4netns"),
        preflight.program("nft", _which("nft"), "nftables"),
        preflight.program("ip", _which("ip"), "iproute2"),
        preflight.lazy_images([engine.name for engine in house.engines]),
    ]


def _cgroups(starting: bool) -> Check:
    found = cgroup.detect()
    if found is None:
        return preflight.cgroups("", ["no cgroup filesystem is mounted"], "setup/host.sh")
    description = "v2" if found.version == 2 else "hybrid (v1)" if found.hybrid else "v1"
    problems = cgroup.writable_problems(found)
    mend = "setup/host.sh --boot"
    if found.version == 2 and (problems or cgroup.outside(found, _read("/proc/self/cgroup"))):
        if not starting and _SYSTEM_UNIT.exists():
            return preflight.cgroups("v2, delegated by kindling.service", [], "")
        problems = problems or [f"this process is outside {found.base}"]
        mend = "systemctl start kindling"
    return preflight.cgroups(f"{description}, {found.base} delegated", problems, mend)


def _swap_limit() -> Check:
    found = cgroup.detect()
    # Always counted on v2; on v1 only where the kernel was built and booted with it.
    memory = found.mounts.get("memory") if found else None
    counted = memory is None or Path(memory, "memory.memsw.limit_in_bytes").exists()
    return preflight.swap_limit(counted, _read("/proc/swaps"))


def _slots(house: House) -> Check:
    kind = "unknown"
    with suppress(OSError, ValueError, AttributeError):
        described = json.loads(house.slots_file.read_text("utf-8"))
        kind = str(described.get("kind", kind))
    ready: dict[int, int] = {}
    free_mb: dict[int, int] = {}
    with suppress(OSError):
        for slot in house.slots.glob("*/*/upper"):
            size = slot.parts[-3]
            if not size.isdigit() or not os.access(slot, os.W_OK):
                continue
            figures = os.statvfs(slot)
            free = figures.f_bavail * figures.f_frsize >> 20
            ready[int(size)] = ready.get(int(size), 0) + 1
            free_mb[int(size)] = min(free, free_mb.get(int(size), free))
    # Slots of a running agent are in use; their free space says nothing.
    if lock.holder(house.run) is not None:
        free_mb = {}
    return preflight.slots(house.writable, str(house.slots), kind, ready, free_mb)


def _sysctls(house: House) -> Check:
    wanted: dict[str, int] = {}
    for line in _read(str(house.lib / "setup" / "60-kindling.conf")).splitlines():
        key, equals, value = line.partition(" = ")
        if equals and not key.startswith("#") and value.strip().isdigit():
            wanted[key] = int(value)
    found = {key: int(value) for key in wanted if (value := _sysctl(key)).isdigit()}
    return preflight.sysctls(wanted, found)


def _open_files(house: House, user: str, starting: bool) -> Check:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    granted = preflight.granted_open_files(_read(_LOGIN_LIMITS), user)
    running = None
    pid = None if starting else lock.holder(house.run)
    if pid and (limits := _read(f"/proc/{pid}/limits")):
        running = preflight.hard_open_files(limits)
    return preflight.open_files(hard, 0 if starting else granted, running)


def _ports(house: House, starting: bool) -> Check:
    running = None if starting else lock.holder(house.run)
    taken: dict[str, str] = {}
    for door in house.doors:
        if not door.is_unix and running is None:
            try:
                sockets.open_door(door).close()
            except FailedPrecondition as error:
                taken[door.address] = str(error.__cause__)
    return preflight.ports(taken, running)


def _read(path: str) -> str:
    try:
        return Path(path).read_text("utf-8", "replace")
    except OSError:
        return ""


def _sysctl(key: str) -> str:
    return _read(f"/proc/sys/{key.replace('.', '/')}").strip()


def _which(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_PATH}")


def _privileged(path: str | None) -> bool:
    if path is None:
        return False
    status = os.stat(path)
    if status.st_uid == 0 and status.st_mode & stat.S_ISUID:
        return True
    try:
        return bool(os.getxattr(path, "security.capability"))
    except OSError:
        return False


def _userns_error() -> str:
    unshare = _which("unshare")
    if unshare is None:
        return ""
    # Root may have asked, and others of this user may trace the child: no terminal of root's.
    made = subprocess.run(
        [unshare, "--user", "true"],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    return made.stderr.strip() if made.returncode else ""


def _open_error(path: str) -> str:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _directory_error(path: Path) -> str:
    if not path.is_absolute():
        return f"{path} is not absolute"
    if not path.exists():
        # `kindling run` makes it where it may.
        nearest = next(parent for parent in path.parents if parent.exists())
        return "" if os.access(nearest, os.W_OK | os.X_OK) else f"{path} does not exist"
    return "" if os.access(path, os.R_OK | os.W_OK | os.X_OK) else f"{path} is not writable"


def _filesystem(path: Path) -> str:
    best, kind = "", "unknown"
    for mounted in mountinfo.parse(mountinfo.text()):
        point = mounted.point
        inside = point == "/" or f"{path}/".startswith(f"{point}/")
        if inside and len(point) >= len(best):
            best, kind = point, mounted.kind
    return kind
