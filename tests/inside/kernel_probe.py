"""What `agent/linux` asks of the kernel, each case in a mount namespace of its own.

`python -m tests.inside.kernel_probe CASE DIRECTORY` ends with 0, or with 77 where this user may
have no namespaces.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from agent.linux import mount, mountinfo, namespaces, prctl, process, trees
from agent.rootless import cgroup, leftovers

NO_NAMESPACES = 77
WITHIN_S = 60.0


def tree_on_a_full_disk(place: Path) -> None:
    mount.mount("tmpfs", place, "tmpfs", mount.NODEV, "size=256k,nr_inodes=300")
    here = os.open(place, os.O_RDONLY)
    with suppress(OSError):
        while True:
            file = os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here)
            os.write(file, b"x" * 4096)
            os.close(file)
            os.mkdir("d" * 200, dir_fd=here)
            here = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
    found = os.statvfs(place)
    assert 0 in (found.f_bfree, found.f_ffree), found
    trees.empty_or_raise(place, within_s=WITHIN_S)
    assert os.listdir(place) == []


def mounts_in_a_tree(place: Path) -> None:
    outside, tree = place / "outside", place / "tree"
    for path in (
        outside,
        tree / "bound" / "point",
        tree / "memory" / "point",
        tree / "plain" / "x",
    ):
        path.mkdir(parents=True)
    (tree / "file").mkdir()
    for path in (outside / "canary", tree / "file" / "point", tree / "bound" / "rest"):
        path.touch()
    mount.mount(outside, tree / "bound" / "point", "", mount.BIND)
    mount.mount(outside / "canary", tree / "file" / "point", "", mount.BIND)
    mount.mount("tmpfs", tree / "memory" / "point", "tmpfs", mount.NODEV)
    (tree / "memory" / "point" / "canary").touch()

    stayed = trees.empty(tree, within_s=WITHIN_S)
    assert sorted(path.name for path in stayed) == ["bound", "file", "memory"], stayed
    assert not (tree / "bound" / "rest").exists()
    assert not trees.remove(tree / "bound" / "point", within_s=WITHIN_S)
    assert not trees.remove(tree / "memory" / "point", within_s=WITHIN_S)
    assert (outside / "canary").exists()
    assert (tree / "memory" / "point" / "canary").exists()
    with pytest.raises(OSError, match="busy"):
        trees.empty_or_raise(tree, within_s=WITHIN_S)

    for name in ("bound", "file", "memory"):
        mount.unmount(tree / name / "point")
    trees.empty_or_raise(tree, within_s=WITHIN_S)
    assert (outside / "canary").exists()


def a_mount_made_while_its_place_is_emptied(place: Path) -> None:
    late = place / "late"
    (late / "inner").mkdir(parents=True)
    real = os.open

    def opened(path, *more, **where):
        if path == "late":
            mount.mount("tmpfs", late, "tmpfs", mount.NODEV)
            (late / "canary").touch()
        return real(path, *more, **where)

    os.open = opened
    assert trees.empty(place, within_s=WITHIN_S) == [late]
    assert (late / "canary").exists()


def mount_points_that_are_no_text(place: Path) -> None:
    names = [
        b"blank and\ttab",
        b"l\nine",
        b"back\\134slash",
        "\u00fc".encode(),
        b"\xff",
        b"\x0b\x1c",
    ]
    points = [Path(os.fsdecode(os.path.join(os.fsencode(place), name))) for name in names]
    for point in points:
        point.mkdir()
        mount.mount("tmpfs", point, "tmpfs", mount.NODEV)
    assert cgroup.layout_of(mountinfo.text(), "") == cgroup.detect()
    mounted = {each.point for each in mountinfo.parse(mountinfo.text())}
    assert set(map(str, points)) <= mounted, mounted
    leftovers.unmount_below(place, keep=(points[0].name,))
    assert [point.is_mount() for point in points] == [True] + [False] * 5


def calls_that_fail_name_the_place(place: Path) -> None:
    for call in (
        lambda: mount.mount("tmpfs", place / "none", "tmpfs", 0),
        lambda: mount.unmount(place),
        lambda: mount.unmount(place / "none"),
    ):
        with pytest.raises(OSError, match=f"(No such file|Invalid argument).*{place}"):
            call()
    (place / "link").symlink_to(place / "memory")
    (place / "memory").mkdir()
    mount.mount("tmpfs", place / "memory", "tmpfs", mount.NODEV)
    with suppress(OSError):
        mount.unmount(place / "link")
    assert (place / "memory").is_mount()


def a_thread_in_a_network_of_its_own(_: Path) -> None:
    where = "/proc/thread-self/ns/net"
    seen: list[str] = []

    def act() -> None:
        namespaces.unshare(namespaces.NETWORK)
        seen.append(os.readlink(where))
        home = os.open(where, os.O_RDONLY)
        namespaces.unshare(namespaces.NETWORK)
        seen.append(os.readlink(where))
        with pytest.raises(OSError, match=r"Invalid argument.*setns"):
            namespaces.enter(home, namespaces.MOUNT)
        namespaces.enter(home, namespaces.NETWORK)
        seen.append(os.readlink(where))

    before = os.readlink(where)
    thread = threading.Thread(target=act)
    thread.start()
    thread.join()
    assert os.readlink(where) == before
    assert len({before, *seen}) == 3, seen
    assert seen[0] == seen[2], seen


def a_process_with_a_name_and_orphans(_: Path) -> None:
    prctl.set_process_name("fifteen bytes and more")
    assert Path("/proc/self/comm").read_text() == "fifteen bytes a\n"
    prctl.become_subreaper()
    with subprocess.Popen(["sh", "-c", "sleep 1000 & echo $!"], stdout=-1) as shell:
        assert shell.stdout
        orphan = int(shell.stdout.readline())
        os.waitid(os.P_PID, shell.pid, os.WEXITED | os.WNOWAIT)
        assert process.parent_of(orphan) == os.getpid()
    os.kill(orphan, signal.SIGKILL)
    os.waitpid(orphan, 0)


CASES = {
    case.__name__: case
    for case in (
        tree_on_a_full_disk,
        mounts_in_a_tree,
        a_mount_made_while_its_place_is_emptied,
        mount_points_that_are_no_text,
        calls_that_fail_name_the_place,
        a_thread_in_a_network_of_its_own,
        a_process_with_a_name_and_orphans,
    )
}


def live_apart() -> None:
    """Enter a mount namespace of our own; where that takes a user namespace, one of those too."""
    uid, gid = os.getuid(), os.getgid()
    namespaces.unshare(namespaces.MOUNT | (namespaces.USER if uid else 0))
    if uid:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    mount.mount("", "/", "", mount.REC | mount.PRIVATE)


def main() -> int:
    try:
        live_apart()
    except OSError as error:
        sys.stderr.write(f"no namespaces: {error}\n")
        return NO_NAMESPACES
    CASES[sys.argv[1]](Path(sys.argv[2]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
