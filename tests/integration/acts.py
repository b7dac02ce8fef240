"""What entrypoints do at their start, done one after the other in a container, told as JSON.

Each act is a function of its name; what it returns is told, or the name of its error. It runs with
nothing but Python and a busybox, as root or as another user, and ends with a server that repeats
what was found: `tests/integration/test_common_acts.py` says what must come of each, and why.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)
ACTS: dict[str, Callable[[], Any]] = {}
OTHER = 4321  # a user that nobody is

# Numbers of x86-64 (asm/unistd_64.h), for what Python and libc have no words for.
CLONE3, IO_URING_SETUP, IO_SETUP, PERF, BPF, USERFAULTFD = 435, 425, 206, 298, 321, 323
KEYCTL, SYSLOG, FANOTIFY_INIT, GET_MEMPOLICY = 250, 103, 300, 239
TIMER_CREATE, TIMERFD_CREATE = 222, 283
NEW_USER = 0x10000000
PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_SUBREAPER, PR_CAP_AMBIENT = 4, 24, 36, 47
MAP_HUGETLB = 0x40000


def act(function: Callable[[], Any]) -> Callable[[], Any]:
    """Have it done."""
    ACTS[function.__name__] = function
    return function


def call(number: int, *arguments: Any) -> int:
    """Make a system call, raising OSError."""
    # SAFETY: every argument is a number, or bytes that live until the call is over.
    got = int(LIBC.syscall(ctypes.c_long(number), *arguments))
    if got < 0:
        raise OSError(ctypes.get_errno(), "")
    return got


def libc(name: str, *arguments: Any) -> int:
    """Call a function of libc that says by -1 that it failed, raising OSError."""
    # SAFETY: as above.
    got = int(getattr(LIBC, name)(*arguments))
    if got == -1:
        raise OSError(ctypes.get_errno(), "")
    return got


def apart(work: Callable[[], Any]) -> Any:
    """Do it in a child, where it can spoil nothing; returns or raises what came of it."""
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(there, json.dumps(told(work)).encode())
        os._exit(0)
    os.close(there)
    with os.fdopen(here, "rb") as file:
        text = file.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else "died"


def told(work: Callable[[], Any]) -> Any:
    """Return what came of it as JSON has it."""
    try:
        got = work()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "ok" if got is None or got is True or (got == 0 and got is not False) else got


def sh(line: str) -> str:
    """Run a shell line; returns what it printed, or its last words."""
    done = subprocess.run(["/bin/sh", "-ec", line], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else done.stderr.strip()[-80:] or "failed"


def as_other(work: Callable[[], Any]) -> Callable[[], Any]:
    """Return what su-exec, gosu and setpriv do before it."""

    def become() -> Any:
        os.setgroups([OTHER])
        os.setgid(OTHER)
        os.setuid(OTHER)
        return work()

    return lambda: apart(become)


# -- who and where it is


@act
def open_files() -> Any:
    return sh("ls /proc/self/fd | tr '\\n' ' '")


@act
def signals_ignored_or_blocked() -> Any:
    return sh("grep -E 'Sig(Blk|Ign)' /proc/self/status | tr '\\n\\t' '  '")


@act
def umask() -> Any:
    return sh("umask")


@act
def nice_and_policy() -> Any:
    return [os.nice(0), os.sched_getscheduler(0)]


@act
def stdin_is_at_its_end() -> Any:
    return os.read(0, 1).decode() or None


@act
def no_terminal() -> Any:
    return [os.isatty(fd) for fd in (0, 1, 2)]


@act
def dev_tty() -> Any:
    os.open("/dev/tty", os.O_RDWR)


@act
def terminal_of_its_own() -> Any:
    master, slave = pty.openpty()
    os.write(slave, b"x")
    return os.read(master, 1).decode()


@act
def name_of_the_host() -> Any:
    return sh(
        "[ $(hostname) = $(cat /etc/hostname) ] && [ $(hostname -i) != 127.0.0.1 ] && echo ok"
    )


@act
def set_name_of_the_host() -> Any:
    return apart(lambda: socket.sethostname("other"))


@act
def mtab() -> Any:
    with open("/etc/mtab") as file:
        return " / " in file.read()


# -- users and rights


@act
def chown_to_another_user() -> Any:
    Path("/var/lib/app").mkdir(parents=True, exist_ok=True)
    os.chown("/var/lib/app", OTHER, OTHER)


@act
def become_another_user() -> Any:
    return as_other(lambda: os.getresuid() == (OTHER,) * 3)()


@act
def drop_a_capability() -> Any:
    return apart(lambda: libc("prctl", PR_CAPBSET_DROP, 27, 0, 0, 0))


@act
def pass_a_capability_on() -> Any:
    return apart(lambda: libc("prctl", PR_CAP_AMBIENT, 2, 0, 0, 0))


@act
def setcap() -> Any:
    with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:
        value = bytes.fromhex("0100000200040000") + bytes(12)
        os.setxattr(file.name, "security.capability", value)


@act
def setfacl() -> Any:
    acl = "0200000001000600ffffffff02000400e810000004000400ffffffff10000400ffffffff20000400ffffffff"
    with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:
        os.setxattr(file.name, "system.posix_acl_access", bytes.fromhex(acl))


@act
def user_attribute() -> Any:
    with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:
        os.setxattr(file.name, "user.k", b"v")


@act
def chroot() -> Any:
    return apart(lambda: os.chroot("/"))


@act
def unshare_user() -> Any:
    return apart(lambda: libc("unshare", NEW_USER))


@act
def mount() -> Any:
    return apart(lambda: libc("mount", b"t", b"/tmp", b"tmpfs", 0, None))


@act
def make_a_device() -> Any:
    os.mknod("/var/tmp/null", 0o666 | 0o020000, os.makedev(1, 3))


# -- files


def append(path: str) -> None:
    with open(path, "a") as file:
        file.write("# x\n")


@act
def append_to_hosts() -> Any:
    append("/etc/hosts")


@act
def append_to_resolv_conf() -> Any:
    append("/etc/resolv.conf")


@act
def sed_in_place() -> Any:
    return sh("sed -i s/x/y/ /etc/hosts; sed -i s/x/y/ /etc/passwd; echo ok")


@act
def mktemp() -> Any:
    return sh("rm -rf $(mktemp -d) $(mktemp) && echo ok")


@act
def mkfifo() -> Any:
    return sh("f=$(mktemp -u); mkfifo $f; rm $f; echo ok")


@act
def directories_of_run() -> Any:
    return sh("mkdir -p /run/app /var/run/app2 && echo $$ > /run/app/app.pid && echo ok")


@act
def file_lock() -> Any:
    with tempfile.TemporaryFile() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@act
def file_without_a_name() -> Any:
    fd = os.open("/var/tmp", os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(fd, b"x")


@act
def direct_io() -> Any:
    with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:
        fd = os.open(file.name, os.O_RDWR | os.O_DIRECT)
        block = mmap.mmap(-1, 4096)
        return os.write(fd, block)


@act
def fallocate() -> Any:
    with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:
        os.posix_fallocate(file.fileno(), 0, 1 << 20)


@act
def rename_a_directory_of_the_image() -> Any:
    return sh("mv /srv/image /srv/moved; [ -f /srv/moved/file ] && echo ok")


@act
def inotify() -> Any:
    with tempfile.TemporaryDirectory() as place:
        fd = libc("inotify_init1", os.O_NONBLOCK)
        libc("inotify_add_watch", fd, place.encode(), 0x100)
        Path(place, "x").touch()
        return bool(select.select([fd], [], [], 5)[0])


@act
def file_in_dev() -> Any:
    return sh("mkdir /dev/x && echo x > /dev/x/y && echo ok")


# -- standard streams by their names


@act
def open_stdout_by_name() -> Any:
    append("/dev/stdout")


@act
def open_stderr_of_the_first_process() -> Any:
    append("/proc/1/fd/2")


@act
def log_file_that_is_a_link_to_stdout() -> Any:
    append("/var/log/app.log")


@act
def open_stdout_as_another_user() -> Any:
    return as_other(lambda: append("/dev/stdout"))()


@act
def give_stdout_to_another_user() -> Any:
    was = os.fstat(1)
    os.chown("/dev/stdout", OTHER, -1)
    try:
        return as_other(lambda: append("/dev/stdout"))()
    finally:
        os.fchown(1, was.st_uid, was.st_gid)


@act
def open_stdin_by_name() -> Any:
    return Path("/dev/stdin").read_text() or None


# -- memory and processes


@act
def sysv_memory() -> Any:
    id = libc("shmget", 0, 1 << 20, 0o1600)
    libc("shmctl", id, 0, None)


@act
def sysv_semaphore_and_queue() -> Any:
    libc("semctl", libc("semget", 0, 1, 0o1600), 0, 0)
    libc("msgctl", libc("msgget", 0, 0o1600), 0, None)


@act
def posix_memory() -> Any:
    block = shared_memory.SharedMemory(create=True, size=1 << 20)
    block.close()
    block.unlink()


@act
def posix_queue() -> Any:
    fd = libc("mq_open", b"/acts", os.O_CREAT | os.O_RDWR, 0o600, None)
    os.close(fd)
    libc("mq_unlink", b"/acts")


@act
def lock_memory() -> Any:
    block = ctypes.create_string_buffer(4096)
    libc("mlock", block, 4096)
    libc("munlock", block, 4096)


@act
def lock_all_memory() -> Any:
    return apart(lambda: libc("mlockall", 3))


@act
def huge_pages() -> Any:
    mmap.mmap(-1, 2 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB)


@act
def nicer() -> Any:
    return apart(lambda: os.setpriority(os.PRIO_PROCESS, 0, 5))


@act
def less_nice() -> Any:
    return apart(lambda: os.setpriority(os.PRIO_PROCESS, 0, -5))


@act
def real_time() -> Any:
    return apart(lambda: os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1)))


@act
def choose_processors() -> Any:
    os.sched_setaffinity(0, os.sched_getaffinity(0))


@act
def killed_later_when_memory_is_short() -> Any:
    return apart(lambda: Path("/proc/self/oom_score_adj").write_text("-500"))


@act
def killed_sooner_when_memory_is_short() -> Any:
    return apart(lambda: Path("/proc/self/oom_score_adj").write_text("1000") and None)


@act
def trace_a_child() -> Any:
    child = os.fork()
    if child == 0:
        LIBC.ptrace(0, 0, None, None)
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    stopped = os.WIFSTOPPED(os.waitpid(child, 0)[1])
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return stopped


@act
def adopt_orphans() -> Any:
    return apart(lambda: libc("prctl", PR_SET_SUBREAPER, 1, 0, 0, 0))


@act
def not_dumpable() -> Any:
    return apart(lambda: libc("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0))


@act
def memory_file() -> Any:
    os.close(os.memfd_create("x"))


@act
def process_descriptor() -> Any:
    os.close(os.pidfd_open(os.getpid()))


@act
def asynchronous_io() -> Any:
    context = ctypes.c_ulong()
    call(IO_SETUP, 8, ctypes.byref(context))


@act
def io_uring() -> Any:
    call(IO_URING_SETUP, 1, ctypes.create_string_buffer(120))


@act
def clone3() -> Any:
    call(CLONE3, None, 0)


@act
def perf() -> Any:
    call(PERF, ctypes.create_string_buffer(128), 0, -1, -1, 0)


@act
def bpf() -> Any:
    call(BPF, 0, ctypes.create_string_buffer(128), 128)


@act
def userfaultfd() -> Any:
    call(USERFAULTFD, 1)


@act
def fanotify() -> Any:
    call(FANOTIFY_INIT, 0, 0)


@act
def keyctl() -> Any:
    call(KEYCTL, 0, -3, 0)


@act
def kernel_log() -> Any:
    call(SYSLOG, 3, ctypes.create_string_buffer(16), 16)


@act
def memory_policy() -> Any:
    call(GET_MEMPOLICY, None, None, 0, None, 0)


@act
def timers() -> Any:
    call(TIMER_CREATE, 1, None, ctypes.byref(ctypes.c_int()))
    os.close(call(TIMERFD_CREATE, 1, 0))
    signal.setitimer(signal.ITIMER_REAL, 0)


@act
def set_the_clock() -> Any:
    return apart(lambda: time.clock_settime(time.CLOCK_REALTIME, 1.0))


# -- limits


for _line in (
    *("-n 1024", "-n 4096", "-n $(ulimit -Hn)", "-Sn 2048", "-n unlimited"),
    *("-c 0", "-c unlimited", "-Sc unlimited", "-u $(ulimit -Hu)", "-l 64", "-l unlimited"),
    *("-s 8192", "-s unlimited", "-v unlimited", "-m unlimited", "-f unlimited", "-t unlimited"),
):
    ACTS[f"ulimit {_line}"] = lambda line=_line: sh(f"ulimit {line}; echo ok")  # type: ignore[misc]


# -- what the kernel tells


def reads(path: str) -> Callable[[], Any]:
    return lambda: bool(Path(path).read_bytes()) or "empty"


for _path in (
    "/proc/meminfo",
    "/proc/cpuinfo",
    "/proc/self/cgroup",
    "/proc/sys/net/core/somaxconn",
    "/proc/sys/net/ipv4/ip_local_port_range",
    "/proc/sys/vm/max_map_count",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/fs/file-max",
    "/proc/sys/kernel/pid_max",
    "/proc/sys/kernel/random/uuid",
    "/proc/sys/kernel/core_pattern",
    "/proc/loadavg",
    "/proc/uptime",
    "/proc/version",
    "/proc/net/tcp",
    "/proc/net/route",
    "/proc/net/if_inet6",
    "/proc/1/cmdline",
    "/proc/1/environ",
    "/proc/1/cgroup",
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/devices/system/cpu/online",
    "/sys/block",
):
    ACTS[f"read {_path}"] = reads(_path)

for _path in (
    "/proc/sys/net/core/somaxconn",
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/kernel/shmmax",
    "/proc/sys/fs/mqueue/msg_max",
    "/sys/kernel/mm/transparent_hugepage/enabled",
):
    ACTS[f"write {_path}"] = lambda path=_path: append(path)  # type: ignore[misc]


# -- the network


def bound(family: int, address: Any, kind: int = socket.SOCK_STREAM) -> None:
    with socket.socket(family, kind) as sock:
        sock.bind(address)
        if kind == socket.SOCK_STREAM:
            sock.listen()


@act
def listen_on_80() -> Any:
    bound(socket.AF_INET, ("0.0.0.0", 80))


@act
def listen_on_all_of_both_families() -> Any:
    bound(socket.AF_INET6, ("::", 8080))


@act
def listen_on_loopback_of_ipv6() -> Any:
    bound(socket.AF_INET6, ("::1", 8080))


@act
def listen_on_localhost() -> Any:
    family, _, _, _, address = socket.getaddrinfo("localhost", 8080, type=socket.SOCK_STREAM)[0]
    bound(family, address)


@act
def call_itself_by_localhost() -> Any:
    with socket.create_server(("127.0.0.1", 8090)):
        socket.create_connection(("localhost", 8090), 5).close()


@act
def call_itself_by_its_name() -> Any:
    with socket.create_server(("0.0.0.0", 8091)):
        socket.create_connection((socket.gethostname(), 8091), 5).close()


@act
def abstract_socket() -> Any:
    bound(socket.AF_UNIX, "\0acts")


@act
def socket_in_run() -> Any:
    bound(socket.AF_UNIX, "/run/acts.sock")


@act
def socket_in_tmp() -> Any:
    bound(socket.AF_UNIX, "/tmp/acts.sock")


@act
def ip_a() -> Any:
    return sh("ip a | grep -c UP")


@act
def ip_route() -> Any:
    return sh("ip route | grep -c default")


@act
def add_an_address() -> Any:
    return sh("ip a add 127.0.0.2/8 dev lo && echo ok")[-31:]


@act
def ping_socket() -> Any:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP).close()


@act
def raw_socket() -> Any:
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()


@act
def packet_socket() -> Any:
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()


@act
def events_of_the_kernel() -> Any:
    bound(socket.AF_NETLINK, (0, 1), socket.SOCK_DGRAM)


@act
def hash_of_the_kernel() -> Any:
    socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET).close()


@act
def mark_packets() -> Any:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 1)


@act
def bind_to_an_interface() -> Any:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")


@act
def join_a_multicast_group() -> Any:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        group = socket.inet_aton("239.1.2.3") + socket.inet_aton("0.0.0.0")
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)


@act
def tun_device() -> Any:
    os.open("/dev/net/tun", os.O_RDWR)


@act
def fuse_device() -> Any:
    os.open("/dev/fuse", os.O_RDWR)


def serve(found: bytes) -> None:
    """Repeat what was found to whoever asks."""

    class Teller(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(found)))
            self.end_headers()
            self.wfile.write(found)

    HTTPServer(("0.0.0.0", 9000), Teller).serve_forever()


if __name__ == "__main__":
    document = json.dumps({name: told(work) for name, work in ACTS.items()}).encode()
    if sys.argv[1:] == ["print"]:  # for a look at what another runtime does
        sys.stdout.buffer.write(document)
    else:
        serve(document)
