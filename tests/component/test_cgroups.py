"""Instance groups on files that look like the kernel's, v1 and v2."""

from __future__ import annotations

import pytest

from agent.cgroups.tree import CgroupTree
from agent.errors import RuntimeUnavailable
from agent.rootless import cgroup

FILES = {
    1: {
        "memory": {
            "memory.max_usage_in_bytes": "7000\n",
            "memory.usage_in_bytes": "5000\n",
            "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
            "cgroup.procs": "",
        },
        "cpuacct": {"cpuacct.usage": "123456789\n"},
        "freezer": {"freezer.state": "THAWED\n"},
    },
    2: {
        "": {
            "memory.peak": "7000\n",
            "memory.current": "5000\n",
            "memory.events": "low 0\nhigh 0\nmax 3\noom 2\noom_kill 2\noom_group_kill 0\n",
            "cpu.stat": "usage_usec 123456\nuser_usec 100\n",
            "cgroup.freeze": "0\n",
            "cgroup.events": "populated 1\nfrozen 0\n",
            "cgroup.procs": "",
        },
    },
}


@pytest.fixture(params=[1, 2])
def tree(request, tmp_path):
    mounts = {
        controller: str(tmp_path / (controller or "v2")) for controller in FILES[request.param]
    }
    layout = cgroup.CgroupLayout(request.param, False, "/kindling", mounts)
    for controller, files in FILES[request.param].items():
        group = layout.directory(controller, "node") / "hello-1"
        group.mkdir(parents=True)
        for name, content in files.items():
            (group / name).write_text(content)
    run = tmp_path / "run"
    run.mkdir()
    cgroup.save(layout, run / "cgroup.json")
    return CgroupTree.load(run, "node")


def test_figures_are_the_kernels(tree):
    instance = tree.instance("hello-1")
    assert instance.peak_bytes() == 7000
    assert instance.memory_bytes() == 5000
    assert instance.oom_kills() == 2
    assert instance.cpu_ns() == {1: 123456789, 2: 123456000}[tree.version]
    instance.close()
    instance.close()


def test_a_figure_is_read_anew_through_the_kept_descriptor(tree, tmp_path):
    instance = tree.instance("hello-1")
    assert instance.memory_bytes() == 5000
    name = {1: "memory.usage_in_bytes", 2: "memory.current"}[tree.version]
    (file,) = tmp_path.rglob(name)
    file.write_text("9000\n")
    assert instance.memory_bytes() == 9000
    instance.close()


def test_freezing_writes_the_freezer_file(tree, tmp_path):
    instance = tree.instance("hello-1")
    assert instance.freeze()
    name, frozen = {1: ("freezer.state", "FROZEN"), 2: ("cgroup.freeze", "1")}[tree.version]
    (file,) = tmp_path.rglob(name)
    assert file.read_text().startswith(frozen)
    assert instance.is_frozen() == (tree.version == 1)
    assert instance.thaw()
    assert not file.read_text().startswith(frozen)
    instance.close()


def test_who_looked_at_the_freezer_first_can_still_freeze_and_thaw(tree):
    instance = tree.instance("hello-1")
    assert not instance.is_frozen()
    assert not instance.is_told_to_freeze()
    assert instance.freeze()
    assert instance.is_told_to_freeze()
    assert instance.thaw()
    assert not instance.is_told_to_freeze()
    instance.close()


def test_a_successor_finds_what_is_still_on_its_way_to_stand_still(tree, tmp_path):
    (file,) = tmp_path.rglob({1: "freezer.state", 2: "cgroup.freeze"}[tree.version])
    file.write_text({1: "FREEZING\n", 2: "1\n"}[tree.version])
    instance = tree.instance("hello-1")
    assert not instance.is_frozen()
    assert instance.is_told_to_freeze()
    instance.close()


def test_a_group_that_does_not_exist_reads_as_nothing(tree):
    instance = tree.instance("gone-1")
    assert instance.peak_bytes() == instance.oom_kills() == instance.cpu_ns() == 0
    assert instance.pids() == []
    assert not instance.exists()
    assert not instance.freeze()
    assert not instance.thaw()
    assert not instance.is_told_to_freeze()
    instance.close()


def test_the_tree_names_paths_and_groups(tree):
    assert tree.path("hello-1") == "/kindling/node/hello-1"
    assert tree.instances() == {"hello-1"}
    assert tree.instance("hello-1").exists()


def test_without_a_layout_file_the_way_out_is_named(tmp_path):
    with pytest.raises(RuntimeUnavailable, match="kindling run"):
        CgroupTree.load(tmp_path, "node")
