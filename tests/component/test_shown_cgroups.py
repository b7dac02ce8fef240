"""Which of its own control groups an instance is shown, by how the host has them mounted."""

from __future__ import annotations

import pytest

from agent.cgroups.shown import show
from agent.rootless.cgroup import CgroupLayout

ROOT = "/sys/fs/cgroup"
APART = {name: f"{ROOT}/{name}" for name in ("memory", "cpu", "cpuacct", "cpuset", "pids")}
TOGETHER = {
    **{name: f"{ROOT}/{name}" for name in ("memory", "cpuset", "pids", "freezer")},
    **dict.fromkeys(("cpu", "cpuacct"), f"{ROOT}/cpu,cpuacct"),
}
HOSTS = {
    "v1, a hierarchy each": (APART, {"memory", "cpu", "cpuacct", "cpuset", "pids"}, set()),
    "v1, as systemd mounts them": (
        TOGETHER,
        {"memory", "cpu,cpuacct", "cpuset", "pids"},
        {"cpu", "cpuacct"},
    ),
    "v1, elsewhere": ({"memory": "/cgroup/memory"}, set(), set()),
    "v1, without pids": ({"memory": f"{ROOT}/memory"}, {"memory"}, set()),
}


@pytest.mark.parametrize(("mounts", "shown", "links"), HOSTS.values(), ids=HOSTS)
@pytest.mark.parametrize("again", [False, True], ids=["first worker", "next worker"])
def test_v1(tmp_path, mounts, shown, links, again):
    layout, names = CgroupLayout(1, False, "/kindling", mounts), tmp_path / "names"
    found = show(layout, names)
    if again:
        found = show(layout, names)
    assert set(found.hierarchies) == {f"{ROOT}/{name}" for name in shown}
    if shown:
        assert found.names == str(names)
        assert {p.name for p in names.iterdir() if p.is_symlink()} == links
        assert {p.name for p in names.iterdir()} == shown | links


@pytest.mark.parametrize(("mount", "shown"), [(ROOT, (ROOT,)), ("/cgroup2", ())])
def test_v2(tmp_path, mount, shown):
    found = show(CgroupLayout(2, False, "/kindling", {"": mount}), tmp_path / "names")
    assert (found.hierarchies, found.names) == (shown, "")
    assert list(tmp_path.iterdir()) == []
