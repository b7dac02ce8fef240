"""What entrypoints commonly do at their start, one row each: as root and as another user.

Each row was compared with Docker 20.10 (runc, its default seccomp profile) on the same kernel;
where an instance differs, `OTHERWISE` says how and why. All of them are done by one start each
(`acts.py`), of a contract that begins with few open files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.acts import ACTS
from tests.integration.functions import Functions
from tests.integration.running import RunningAgent
from tests.integration.strange_images import Strangers
from tests.strangers import BUSYBOX, Entry, directory, link

PROGRAM = Path(__file__).with_name("acts.py")
APPLETS = (
    *("cat", "grep", "hostname", "ip", "ls", "mkdir", "mkfifo", "mktemp"),
    *("mv", "rm", "sed", "sh", "tr"),
)
FILES = [
    Entry("bin/busybox", BUSYBOX.read_bytes()),
    *(link(f"bin/{name}", "busybox") for name in APPLETS),
    Entry("app/acts.py", PROGRAM.read_bytes()),
    Entry("srv/image/file", b"x"),
    directory("var/tmp/", 0o1777),
    directory("var/log/"),
    link("var/log/app.log", "/dev/stdout"),
]
DENIED = ": Operation not permitted"


@dataclass(frozen=True)
class Both:
    """What comes of an act as root and as another user, or the end of what is said."""

    root: Any
    user: Any


# As with Docker: what is not "ok" there either.
AS_ELSEWHERE: dict[str, Any] = {
    "open_files": "0 1 2 3",  # the last one is ls's own
    "signals_ignored_or_blocked": "SigBlk: 0000000000000000 SigIgn: 0000000000000000",
    "umask": "0022",
    "nice_and_policy": [0, 0],
    "no_terminal": [False] * 3,
    "dev_tty": "ENXIO",
    "terminal_of_its_own": "x",
    "set_name_of_the_host": "EPERM",
    "chown_to_another_user": Both("ok", "EACCES"),
    "become_another_user": Both("ok", "EPERM"),
    "drop_a_capability": Both("ok", "EPERM"),
    "pass_a_capability_on": "EPERM",
    "setcap": Both("ok", "EPERM"),
    "chroot": Both("ok", "EPERM"),
    "unshare_user": "EPERM",
    "mount": "EPERM",
    "append_to_hosts": Both("ok", "EACCES"),
    "append_to_resolv_conf": Both("ok", "EACCES"),
    "directories_of_run": Both("ok", "Permission denied"),
    "direct_io": 4096,
    "rename_a_directory_of_the_image": Both("ok", "Permission denied"),
    "file_in_dev": Both("ok", "Permission denied"),
    "open_stdout_as_another_user": Both("EACCES", "EPERM"),
    "give_stdout_to_another_user": Both("ok", "EPERM"),
    "lock_all_memory": "ENOMEM",
    "huge_pages": "ENOMEM",
    "less_nice": "EACCES",
    "real_time": "EPERM",
    "killed_later_when_memory_is_short": "EACCES",
    "clone3": "ENOSYS",
    **dict.fromkeys(("perf", "bpf", "userfaultfd", "fanotify", "keyctl", "kernel_log"), "EPERM"),
    **dict.fromkeys(("memory_policy", "set_the_clock"), "EPERM"),
    **dict.fromkeys(("ulimit -n unlimited", "ulimit -l unlimited"), DENIED),
    "read /sys/block": "EISDIR",
    "write /sys/kernel/mm/transparent_hugepage/enabled": Both("EROFS", "EROFS"),
    "socket_in_run": Both("ok", "EACCES"),
    "add_an_address": DENIED,
    "ip_a": "2",
    "ip_route": "1",
    **dict.fromkeys(("tun_device", "fuse_device"), "ENOENT"),
}
# Not as with Docker, and why.
OTHERWISE: dict[str, Any] = {
    # These are files of the instance, no mounts: Docker says "device or resource busy".
    "sed_in_place": Both("ok", "Permission denied"),
    # No device can be made in a user namespace; Docker's could not be opened.
    "make_a_device": "EPERM",
    # Docker closes it since version 25.
    "io_uring": "EPERM",
    # The network belongs to a namespace above the container's own.
    **dict.fromkeys(("raw_socket", "packet_socket", "mark_packets"), "EPERM"),
    # Not among the families that are open; Docker's is by the kernel's configuration.
    "hash_of_the_kernel": "EPERM",
    # The kernel's settings belong to a namespace above; Docker's are read-only.
    **{
        f"write /proc/sys/{name}": "EACCES"
        for name in ("net/core/somaxconn", "net/ipv4/ip_forward", "vm/overcommit_memory")
    },
    **{
        f"write /proc/sys/{name}": Both("EROFS", "EACCES")
        for name in ("kernel/shmmax", "fs/mqueue/msg_max")
    },
}
EXPECTED = dict.fromkeys(ACTS, "ok") | AS_ELSEWHERE | OTHERWISE


@pytest.fixture(scope="module")
def found(
    agent: RunningAgent, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, dict[str, Any]]]:
    """Return what came of every act, as root and as another user."""
    with Functions(agent) as functions:
        strange = Strangers(functions, tmp_path_factory.mktemp("acts"))
        said = {}
        for who in ("root", "user"):
            config = {"Entrypoint": ["python3", "-u", "/app/acts.py"], "Cmd": None}
            user = {"User": "1000"} if who == "user" else {}
            strange.deploy(f"acts-{who}", FILES, config | user, contract="scf-web")
            reply = agent.http("GET", f"/http/acts-{who}/")
            assert reply.status == 200, reply
            said[who] = reply.json()
        yield said


@pytest.mark.parametrize("who", ["root", "user"])
@pytest.mark.parametrize("name", EXPECTED)
def test_an_act_ends_as_elsewhere(found: dict[str, dict[str, Any]], name: str, who: str) -> None:
    wanted = EXPECTED[name]
    if isinstance(wanted, Both):
        wanted = getattr(wanted, who)
    got = found[who][name]
    if isinstance(wanted, str) and " " in wanted and isinstance(got, str):
        assert got.endswith(wanted), got
    else:
        assert got == wanted, json.dumps(got)
