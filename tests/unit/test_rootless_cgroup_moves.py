"""`kindling check` tells whether starts wait for cgroup moves."""

from __future__ import annotations

from agent.rootless.preflight import cgroup_moves

SLOW = "33 25 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
QUICK = f"{SLOW},favordynmods"


def test_slow_moves_name_the_command():
    check = cgroup_moves(SLOW, "6.18.1")
    assert not check.ok
    assert not check.required
    assert check.mend == "mount -o remount,favordynmods /sys/fs/cgroup"


def test_favoured_moves_are_fine():
    assert cgroup_moves(QUICK, "6.18.1").ok


def test_nothing_to_do_without_the_option_or_the_mount():
    assert cgroup_moves(SLOW, "5.19.0").ok
    assert cgroup_moves("22 1 0:20 / /proc rw - proc proc rw", "6.18.1").ok
