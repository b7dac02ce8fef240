"""What a process can tell about its cage, read from /proc and by trying.

Everything is plain JSON; nothing here changes anything that outlives the call.
"""

import errno
import os
import resource
import socket

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
STATUS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Groups")
SECRET_FILES = ("/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sysrq-trigger")
SYSCTLS = ("net/ipv4/ip_unprivileged_port_start", "net/ipv4/ping_group_range")
LIMITS = ("NOFILE", "NPROC", "CORE", "MEMLOCK")
KEYCTL, GET_KEYRING_ID, SESSION_KEYRING = 250, 0, -3
"""syscall number on x86-64, and two constants of <linux/keyctl.h>."""


def facts():
    """Return everything."""
    status = read_status()
    return {
        "uid": os.getuid(),
        "gid": os.getgid(),
        "groups": os.getgroups(),
        "pid": os.getpid(),
        "init": text("/proc/1/comm").strip(),
        "hostname": socket.gethostname(),
        "cwd": os.getcwd(),
        "status": {name: status.get(name, "") for name in STATUS},
        "uid_map": rows("/proc/self/uid_map"),
        "gid_map": rows("/proc/self/gid_map"),
        "setgroups": text("/proc/self/setgroups").strip(),
        "namespaces": {name: link(f"/proc/self/ns/{name}") for name in NAMESPACES},
        "init_namespaces": {name: link(f"/proc/1/ns/{name}") for name in NAMESPACES},
        "cgroups": text("/proc/self/cgroup").splitlines(),
        "cgroup_writable": writable_below("/sys/fs/cgroup"),
        "sys_writable": writable_below("/sys"),
        "mounts": mounts(),
        "secret_files": {path: how_readable(path) for path in SECRET_FILES},
        "sysctls": {name: text(f"/proc/sys/{name}").strip() for name in SYSCTLS},
        "sysctl_writable": os.access("/proc/sys/kernel/hostname", os.W_OK),
        "oom_score_adj": text("/proc/self/oom_score_adj").strip(),
        "limits": {
            name: resource.getrlimit(getattr(resource, f"RLIMIT_{name}")) for name in LIMITS
        },
        "devices": sorted(os.listdir("/dev")),
        "interfaces": [name for _, name in socket.if_nameindex()],
        "routes": rows("/proc/net/route"),
        "resolv_conf": text("/etc/resolv.conf"),
        "session_keyring": session_keyring(),
        "may_unshare_user": may_unshare_user(),
        "may_mount": may_mount(),
        "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
        "environment": dict(os.environ),
        "disk": disk("/"),
        "shm": disk("/dev/shm"),
    }


def text(path):
    """Return a file's text, or the error's name in angle brackets."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError as failed:
        return f"<{named(failed)}>"


def named(error):
    """Return ENOENT, EPERM …"""
    return errno.errorcode.get(error.errno, str(error.errno))


def rows(path):
    """Return a file's lines, split."""
    return [line.split() for line in text(path).splitlines()]


def link(path):
    """Return where a link points, or the error."""
    try:
        return os.readlink(path)
    except OSError as failed:
        return f"<{named(failed)}>"


def read_status():
    """Return /proc/self/status as a dict."""
    pairs = (line.partition(":") for line in text("/proc/self/status").splitlines())
    return {name: value.strip() for name, _, value in pairs}


def writable_below(root, most=20):
    """Return paths below `root` that can be opened for writing or made, at most so many."""
    found = []
    for place, directories, files in os.walk(root):
        if os.access(place, os.W_OK):
            found.append(place)
        found += [path for name in files if os.access(path := os.path.join(place, name), os.W_OK)]
        directories[:] = [name for name in directories if not os.path.islink(f"{place}/{name}")]
        if len(found) >= most:
            break
    return found[:most]


def mounts():
    """Return mount points with their type and options."""
    found = []
    for fields in rows("/proc/self/mountinfo"):
        after = fields.index("-")
        found.append({"target": fields[4], "type": fields[after + 1], "options": fields[5]})
    return found


def how_readable(path):
    """Return `readable`, `empty` or the error of reading one byte."""
    try:
        with open(path, "rb") as file:
            return "readable" if file.read(1) else "empty"
    except OSError as failed:
        return named(failed)


def session_keyring():
    """Return the id of the session keyring, or the error: it shows whether it is our own."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    found = libc.syscall(KEYCTL, GET_KEYRING_ID, SESSION_KEYRING, 0)
    return found if found >= 0 else errno.errorcode.get(ctypes.get_errno(), "?")


def may_unshare_user():
    """Say whether a child may make a user namespace: `yes` or the error."""
    return in_child(lambda libc: libc.unshare(0x10000000))


def may_mount():
    """Say whether a child may mount a tmpfs: `yes` or the error."""
    return in_child(mount_and_undo)


def mount_and_undo(libc):
    """Mount a tmpfs over /tmp and take it away again; returns non-zero when it may not."""
    failed = libc.mount(b"none", b"/tmp", b"tmpfs", 0, None)
    if not failed:
        libc.umount2(b"/tmp", 0)
    return failed


def in_child(call):
    """Make a system call in a child; `yes`, or the name of its error."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    child = os.fork()
    if child == 0:
        failed = call(libc)
        os._exit(ctypes.get_errno() if failed else 0)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return "yes"
    return errno.errorcode.get(code, f"ended with {code}")


def disk(path):
    """Return size and free space of a file system."""
    try:
        found = os.statvfs(path)
    except OSError as failed:
        return named(failed)
    return {
        "total_bytes": found.f_blocks * found.f_frsize,
        "free_bytes": found.f_bavail * found.f_frsize,
    }
