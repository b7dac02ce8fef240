"""What a host has mounted in /sys is hidden from functions."""

from __future__ import annotations

from agent.sandbox.blueprint import mounted_in_sys

# As systemd 257 leaves it on a host with cgroup v2 alone.
SYSTEMD = """\
24 31 0:22 / /sys rw,nosuid,nodev,noexec,relatime shared:6 - sysfs sysfs rw
32 24 0:7 / /sys/kernel/security rw,nosuid,nodev,noexec,relatime shared:7 - securityfs securityfs rw
33 24 0:27 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:8 - cgroup2 cgroup2 rw
35 24 0:29 / /sys/fs/bpf rw,nosuid,nodev,noexec,relatime shared:10 - bpf bpf rw,mode=700
38 24 0:8 / /sys/kernel/debug rw,nosuid,nodev,noexec,relatime shared:13 - debugfs debugfs rw
31 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
"""
HYBRID = """\
40 24 0:30 / /sys/fs/cgroup rw,relatime - tmpfs cgroup rw
41 40 0:31 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
"""


def test_all_but_cgroups_which_are_covered_anyway():
    assert mounted_in_sys(SYSTEMD) == ("/sys/fs/bpf", "/sys/kernel/debug", "/sys/kernel/security")


def test_a_host_that_mounts_nothing_there():
    assert mounted_in_sys(HYBRID) == ()
