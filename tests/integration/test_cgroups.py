"""Instance groups on the kernel's own cgroups, in every version this host has mounted."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.cgroups.instance import InstanceCgroup
from agent.cgroups.tree import CgroupTree
from agent.rootless import cgroup
from agent.rootless.sweep import sweep

NODE = "cgroups"
TRY = "/kindling-try"
ALLOCATE = """
import mmap
kept = []
while True:
    block = mmap.mmap(-1, 1 << 20)
    for offset in range(0, 1 << 20, 4096):
        block[offset] = 1
    kept.append(block)
"""


def layouts() -> list[cgroup.CgroupLayout]:
    """Return the host's layout, and on hybrid hosts the cgroup2 beside it as one of its own.

    On v2 in a group of its own: what `detect` names there is the one these tests run in.
    """
    found = cgroup.detect()
    assert found is not None, "this host has no cgroups"
    if found.version == 2:
        return [cgroup.CgroupLayout(2, False, TRY, found.mounts)]
    if found.hybrid:
        return [found, cgroup.CgroupLayout(2, False, TRY, {"": cgroup.UNIFIED})]
    return [found]


@pytest.fixture(params=layouts(), ids=lambda layout: f"v{layout.version}")
def layout(request):
    layout = request.param
    roots = layout.node_directories(NODE)
    for root in roots:
        (root / "hello-1").mkdir(parents=True)
        if layout.version == 2:
            for group in (root.parent, root):
                if "memory" in (group / "cgroup.controllers").read_text().split():
                    (group / "cgroup.subtree_control").write_text("+memory")
        elif root.parts[4] == "cpuset":
            for group in (root, root / "hello-1"):
                for name in ("cpuset.cpus", "cpuset.mems"):
                    (group / name).write_text((group.parent / name).read_text())
    yield layout
    swept = sweep(roots, within_s=5)
    assert (swept.alive, swept.stayed) == ((), ())
    if layout.version == 2:
        roots[0].parent.rmdir()


@pytest.fixture
def instance(layout):
    instance = CgroupTree(layout, NODE).instance("hello-1")
    yield instance
    instance.close()


def start_inside(layout: cgroup.CgroupLayout, argv: list[str]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(["sh", "-c", 'read go; exec "$@"', "sh", *argv], stdin=-1)
    for root in layout.node_directories(NODE):
        cgroup.join(root / "hello-1", process.pid)
    assert process.stdin is not None
    with process.stdin as go:
        go.write(b"\n")
    return process


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline, "did not happen in 10 s"
        time.sleep(0.01)


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_freezing_stops_a_process_where_it_is_and_thawing_lets_it_go_on(layout, instance):
    process = start_inside(layout, ["sh", "-c", "while :; do :; done"])
    try:
        assert instance.freeze()
        wait_until(instance.is_frozen)
        before = Path(f"/proc/{process.pid}/schedstat").read_text()
        time.sleep(0.05)  # sleeps: time in which it would run
        assert Path(f"/proc/{process.pid}/schedstat").read_text() == before
        assert instance.thaw()
        assert not instance.is_frozen()
        wait_until(lambda: Path(f"/proc/{process.pid}/schedstat").read_text() != before)
    finally:
        instance.thaw()
        process.kill()
        process.wait()


def test_killing_ends_a_frozen_instance(layout, instance):
    process = start_inside(layout, ["sleep", "1000"])
    assert instance.pids() == [process.pid]
    assert instance.freeze()
    wait_until(instance.is_frozen)
    assert instance.kill() == 1
    assert process.wait(10) == -signal.SIGKILL
    wait_until(lambda: instance.pids() == [])


def test_a_sweep_ends_a_frozen_instance_and_removes_its_group(layout, instance):
    process = start_inside(layout, ["sleep", "1000"])
    assert instance.freeze()
    swept = sweep(layout.node_directories(NODE), within_s=5, keep_roots=True)
    assert swept.ended == (process.pid,)
    assert swept.stayed == ()
    assert process.wait(10) == -signal.SIGKILL
    assert not instance.exists()


def memory_layout() -> cgroup.CgroupLayout:
    return layouts()[0]


@pytest.mark.parametrize("layout", [memory_layout()], indirect=True, ids=["memory"])
def test_a_process_killed_for_memory_is_counted_and_its_peak_is_told(layout, instance):
    limit = 16 << 20
    group = layout.directory("memory", NODE) / "hello-1"
    name = "memory.max" if layout.version == 2 else "memory.limit_in_bytes"
    (group / name).write_text(str(limit))
    assert instance.oom_kills() == 0
    process = start_inside(layout, ["/usr/bin/python3", "-c", ALLOCATE])
    assert process.wait(60) == -signal.SIGKILL
    assert instance.oom_kills() == 1
    assert limit // 2 < instance.peak_bytes() <= limit
    assert instance.cpu_ns() > 0


def test_the_tree_lists_and_removes_what_a_runtime_forgot(layout):
    tree = CgroupTree(layout, NODE)
    assert tree.instances() == {"hello-1"}
    process = start_inside(layout, ["sleep", "1000"])
    assert not tree.remove("hello-1")
    process.kill()
    process.wait()
    wait_until(lambda: tree.remove("hello-1"))
    assert tree.instances() == set()
    assert isinstance(tree.instance("hello-1"), InstanceCgroup)


def test_a_new_node_can_hold_instances_at_once(layout):
    if layout.version == 2:
        # The node's creator moves into a leaf beside it: a process of its own has to do that.
        code = (
            "from agent.rootless import cgroup\n"
            f"cgroup.create_node(cgroup.{layout!r}, {NODE!r})\n"
            "print(open('/proc/self/cgroup').read())\n"
        )
        done = subprocess.run(
            ["/usr/bin/python3", "-c", code],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parents[2],
        )
        assert f"0::{layout.base}/{cgroup.RUN_GROUP}" in done.stdout, done.stderr
        (Path(layout.mounts[""] + layout.base) / cgroup.RUN_GROUP).rmdir()
    else:
        cgroup.create_node(layout, NODE)
    assert layout.agent_directory(NODE).is_dir()
    group = layout.agent_directory(NODE).parent / "hello-2"
    group.mkdir()
    process = subprocess.Popen(["sleep", "1000"])
    try:
        cgroup.join(group, process.pid)
        assert cgroup.processes(group) == [process.pid]
    finally:
        process.kill()
        process.wait()
    assert os.path.isdir(group)
