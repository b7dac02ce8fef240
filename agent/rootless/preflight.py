"""What a host must have before the agent can start, each as one line: ok, or what mends it.

`checks` looks at the host through `probe` and judges here; judging is pure, so that a broken host
can be described to it in a test. Nothing is changed. Setup (setup/host.sh) does what these lines
ask for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from agent.linux import mountinfo
from agent.rootless.installed import Form

USER = "kindling"
# Overlay mounts in a user namespace came with 5.11 (fs/overlayfs, FS_USERNS_MOUNT).
LEAST_KERNEL = (5, 11)
# Ids 0..65535 of ordinary images, less the one that is the user itself.
LEAST_SUBIDS = 65536
# Package: (least version that works at all, least version for everything).
LEAST_VERSIONS = {"containerd": ((1, 7), (2, 1)), "rootlesskit": ((2, 0), (2, 0))}
# The largest number of open files a contract promises to one function.
LEAST_OPEN_FILES = 100_000


class Mark(StrEnum):
    """What a row comes to: MISSING blocks a start and fails `kindling check`, ADVICE neither."""

    OK = "ok"
    ADVICE = "advice"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Check:
    """One prerequisite. `mend` is a command to type; what is `required` blocks a start."""

    name: str
    ok: bool
    detail: str
    mend: str = ""
    required: bool = True

    @property
    def mark(self) -> Mark:
        """What this row comes to."""
        if self.ok:
            return Mark.OK
        return Mark.MISSING if self.required else Mark.ADVICE

    def line(self) -> str:
        """Say it in one line."""
        if self.mark is Mark.OK:
            return f"{self.name}: ok, {self.detail}"
        advice = "advice, " if self.mark is Mark.ADVICE else ""
        return f"{self.name}: {advice}{self.detail}: run '{self.mend}'"


def version_of(text: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: "2.1.9+ds1-5" gives (2, 1, 9)."""
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def kernel(release: str, filesystems: str) -> list[Check]:
    """Judge `uname -r` and /proc/filesystems."""
    new = version_of(release)[:2] >= LEAST_KERNEL
    overlay = "overlay" in filesystems.split()
    return [
        Check("kernel", new, release, "apt-get install linux-image-amd64, then reboot"),
        Check(
            "overlayfs", overlay, "known" if overlay else "not in this kernel", "modprobe overlay"
        ),
    ]


def subordinate_ids(kind: str, text: str, user: str, uid: int) -> Check:
    """Judge /etc/subuid or /etc/subgid (`kind` is "subuid" or "subgid") for one user."""
    sizes = []
    for line in text.splitlines():
        owner, _, rest = line.partition(":")
        first, _, size = rest.partition(":")
        if owner in (user, str(uid)) and first.isdigit() and size.isdigit():
            sizes.append((int(size), int(first)))
    largest, begin = max(sizes, default=(0, 0))
    enough = largest >= LEAST_SUBIDS
    option = "--add-subuids" if kind == "subuid" else "--add-subgids"
    start = _free_range(text)
    return Check(
        f"{kind} range",
        enough,
        f"{begin}+{largest}" if enough else f"missing for user {user}",
        f"usermod {option} {start}-{start + LEAST_SUBIDS - 1} {user}",
    )


def _free_range(text: str) -> int:
    used = [line.split(":")[1:3] for line in text.splitlines() if line.count(":") == 2]
    ends = [int(first) + int(size) for first, size in used if first.isdigit() and size.isdigit()]
    return max([100000, *ends])


def user_namespaces(limits: Mapping[str, str], error: str) -> Check:
    """Judge the sysctls that forbid user namespaces, and whether making one worked (`error`)."""
    forbidding = {
        "kernel.unprivileged_userns_clone": ("0", "1"),
        "kernel.apparmor_restrict_unprivileged_userns": ("1", "0"),
        "user.max_user_namespaces": ("0", "16384"),
    }
    for key, (bad, good) in forbidding.items():
        if limits.get(key) == bad:
            return Check("user namespaces", False, f"{key} is {bad}", f"sysctl -w {key}={good}")
    mend = "sysctl -w user.max_user_namespaces=16384"
    return Check("user namespaces", not error, error or "allowed", mend)


def mapping_tool(name: str, path: str | None, privileged: bool) -> Check:
    """Judge newuidmap or newgidmap: there, and setuid root or with file capabilities."""
    if path is None:
        return Check(name, False, "not installed", "apt-get install uidmap")
    detail = path if privileged else f"{path} is neither setuid root nor has capabilities"
    return Check(name, privileged, detail, f"chmod u+s {path}")


def program(name: str, path: str | None, package: str, *, required: bool = True) -> Check:
    """Judge one program of the host."""
    return Check(
        name, path is not None, path or "not installed", f"apt-get install {package}", required
    )


def init(path: str, executable: bool) -> Check:
    """Judge the first process of instances, which setup builds with the agent."""
    detail = path if executable else f"{path} is missing or not executable"
    return Check("init", executable, detail, "setup/host.sh")


def warm_path(form: Form) -> Check:
    """Judge the form of what calls go through: a node works in either, slower when pure."""
    detail = f"{form.name}: {form.why}" if form.why else form.name
    good = form.compiled or not form.wanted
    return Check("warm path", good, detail, "setup/host.sh", required=False)


def runtime(wanted: str, found: Mapping[str, str | None]) -> Check:
    """Judge the OCI runtimes; `wanted` is the config's auto, crun or runc."""
    names = ("crun", "runc") if wanted == "auto" else (wanted,)
    paths = [path for name in names if (path := found.get(name))]
    detail = paths[0] if paths else f"no {' or '.join(names)} installed"
    return Check("OCI runtime", bool(paths), detail, f"apt-get install {names[0]}")


def private_binaries(
    lib: str, missing: Sequence[str], versions: Mapping[str, tuple[str, str]]
) -> list[Check]:
    """Judge what setup put below `lib`; `versions` maps a package to (version, origin)."""
    found = [
        Check(
            "private binaries",
            not missing,
            f"{lib}/bin" if not missing else f"missing in {lib}/bin: {', '.join(missing)}",
            "setup/host.sh",
        )
    ]
    for package, (works, whole) in LEAST_VERSIONS.items():
        version, origin = versions.get(package, ("unknown", "unknown origin"))
        have = version_of(version)
        wanted = ".".join(map(str, whole))
        detail = f"{version} ({origin})" + ("" if have >= whole else f", wanted {wanted}")
        found.append(
            Check(package, have >= whole, detail, "setup/host.sh --refresh", required=have < works)
        )
    return found


def lazy_images(engines: Sequence[str]) -> Check:
    """Judge the engines for lazy images that are installed; a node works without."""
    detail = ", ".join(engines) or "no engine: every image is unpacked whole"
    return Check("lazy images", bool(engines), detail, "setup/host.sh", required=False)


def device(path: str, error: str, *, required: bool) -> Check:
    """Judge a device node by what opening it said (empty: it opened)."""
    return Check(path, not error, error or "usable", f"chmod 0666 {path}", required)


def sysctls(wanted: Mapping[str, int], found: Mapping[str, int]) -> Check:
    """Judge kernel limits; keys the kernel lacks are left out by the caller."""
    low = {key: value for key, value in wanted.items() if key in found and found[key] < value}
    if not low:
        return Check("kernel limits", True, f"{len(found)} as wanted or higher", required=False)
    detail = ", ".join(f"{key} is {found[key]}, wanted {value}" for key, value in low.items())
    mend = "sysctl -w " + " ".join(f"{key}={value}" for key, value in low.items())
    return Check("kernel limits", False, detail, mend, required=False)


def open_files(hard: int, granted: int, running: int | None) -> Check:
    """Judge the hard limit of open files: nobody below it, functions included, can go higher.

    `running` is that of the agent that runs, and then decides. Else `hard` is the caller's, and
    `granted` what a login program (runuser, su) gives the agent's user, 0 for nothing.
    """
    mend = "ulimit -n 1048576"
    if running is not None:
        enough, detail = running >= LEAST_OPEN_FILES, f"{running} of the running agent"
    else:
        enough, detail = max(hard, granted) >= LEAST_OPEN_FILES, str(hard)
        if hard < LEAST_OPEN_FILES <= granted:
            detail = f"{granted} from the unit or runuser, {hard} in this shell"
    if not enough:
        detail += f", some functions may have {LEAST_OPEN_FILES}"
    return Check("open files", enough, detail, mend, required=False)


def hard_open_files(limits: str) -> int:
    """Return the hard limit of open files in /proc/<pid>/limits; 0 for one that is not told."""
    words = next((line.split() for line in limits.splitlines() if "open files" in line), [])
    return int(words[4]) if len(words) > 4 and words[4].isdigit() else 0


def granted_open_files(text: str, user: str) -> int:
    """Return what a file of limits.conf(5) gives a user as hard limit of open files, 0 for none."""
    rows = [line.partition("#")[0].split() for line in text.splitlines()]
    found = [
        int(row[3]) for row in rows if len(row) == 4 and row[3].isdigit() if _grants(row, user)
    ]
    return max(found, default=0)


def _grants(row: Sequence[str], user: str) -> bool:
    return row[0] == user and row[1] in ("-", "hard") and row[2] == "nofile"


def slots(
    writable: str, directory: str, kind: str, ready: Mapping[int, int], free_mb: Mapping[int, int]
) -> Check:
    """Judge writable-layer slots: per class in MB how many are ready, and the least free space."""
    if writable != "slots":
        return Check("writable layers", True, "tmpfs, counted as the instance's memory")
    mend = "setup/host.sh --boot"
    if not any(ready.values()):
        return Check("writable layers", False, f"no slot ready in {directory}", mend)
    parts = [f"{count} x {size} MB" for size, count in sorted(ready.items())]
    small = [size for size, free in free_mb.items() if free < size]
    if small:
        size = small[0]
        detail = f"slots of {size} MB have only {free_mb[size]} MB free"
        return Check("writable layers", False, detail, mend, required=False)
    return Check("writable layers", True, f"{kind} slots, {', '.join(parts)}")


def cgroups(description: str, problems: Sequence[str], mend: str) -> Check:
    """Judge cgroup delegation; `problems` as `cgroup.writable_problems` gives them."""
    detail = "; ".join(problems) if problems else description
    return Check("cgroups", not problems, detail, mend)


def cgroup_moves(mounts: str, release: str) -> Check:
    """Judge whether moving a process into a group waits for RCU (10 ms and more of every start)."""
    groups = [mounted for mounted in mountinfo.parse(mounts) if mounted.kind == "cgroup2"]
    if version_of(release) < (6, 0) or not groups:
        return Check("cgroup moves", True, "as the kernel has them", required=False)
    quick = any("favordynmods" in mounted.options for mounted in groups)
    mend = f"mount -o remount,favordynmods {groups[0].point}"
    detail = "favoured" if quick else "slow: every start waits about 10 ms for them"
    return Check("cgroup moves", quick, detail, mend, required=False)


def swap_limit(counted: bool, swaps: str) -> Check:
    """Judge whether instances' swap is limited: `counted` by the kernel, `swaps` as /proc/swaps."""
    if not swaps:
        return Check("swap limit", True, "no swap in this kernel", required=False)
    line = r"GRUB_CMDLINE_LINUX=\"\$GRUB_CMDLINE_LINUX swapaccount=1\""
    mend = f"echo {line} >>/etc/default/grub && update-grub, then reboot"
    detail = "swap is counted" if counted else "none: functions may swap beyond their memory"
    return Check("swap limit", counted, detail, mend, required=False)


def directory(name: str, path: str, error: str, user: str) -> Check:
    """Judge a directory of the agent by what went wrong using it (empty: nothing)."""
    return Check(f"{name} directory", not error, error or path, _make_directory(path, user))


def _make_directory(path: str, user: str) -> str:
    return f"install -d -o {user} -g {user} -m 0750 {path}"


def tmpfs(path: str, kind: str) -> Check:
    """Judge the run directory's filesystem: records of running instances must not cost a disk."""
    mend = f"mount -t tmpfs -o mode=0750,uid={USER},gid={USER} kindling {path}"
    return Check("run directory on tmpfs", kind in ("tmpfs", "ramfs"), kind, mend, required=False)


def ports(taken: Mapping[str, str], running: int | None) -> Check:
    """Judge the doors' addresses: `taken` maps an address to what listening on it said."""
    if running is not None:
        return Check("listening addresses", True, f"held by the running agent (pid {running})")
    if not taken:
        return Check("listening addresses", True, "free")
    detail = "; ".join(f"{address}: {reason}" for address, reason in taken.items())
    port = next(iter(taken)).rpartition(":")[2]
    return Check("listening addresses", False, detail, f"ss -ltnp sport = :{port}")
