"""Judging a host that is only described."""

from __future__ import annotations

import pytest

from agent.rootless import preflight
from agent.rootless.preflight import Check


def test_a_line_is_ok_or_the_command_that_mends_it():
    assert Check("nft", True, "/usr/sbin/nft").line() == "nft: ok, /usr/sbin/nft"
    broken = Check("nft", False, "not installed", "apt-get install nftables")
    assert broken.line() == "nft: not installed: run 'apt-get install nftables'"


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("2.1.9+ds1-5", (2, 1, 9)), ("6.18.44-fc", (6, 18, 44)), ("unknown", ()), ("5", (5,))],
)
def test_versions_are_compared_by_their_numbers(text, numbers):
    assert preflight.version_of(text) == numbers


@pytest.mark.parametrize(("release", "ok"), [("5.10.0-9", False), ("5.11.0", True), ("6.1", True)])
def test_the_kernel_must_know_overlays_in_user_namespaces(release, ok):
    kernel, overlay = preflight.kernel(release, "nodev\ttmpfs\nnodev\toverlay\n")
    assert kernel.ok == ok
    assert overlay.ok


def test_a_kernel_without_overlay_names_the_module():
    overlay = preflight.kernel("6.1.0", "nodev\ttmpfs\n")[1]
    assert (overlay.ok, overlay.mend) == (False, "modprobe overlay")


@pytest.mark.parametrize(
    ("text", "ok"),
    [
        ("kindling:100000:65536\n", True),
        ("999:100000:65536\n", True),
        ("kindling:100000:1000\nkindling:200000:65536\n", True),
        ("kindling:100000:65535\n", False),
        ("other:100000:65536\n", False),
        ("kindling:broken\n", False),
        ("", False),
    ],
)
def test_a_whole_range_of_subordinate_ids_is_wanted(text, ok):
    assert preflight.subordinate_ids("subuid", text, "kindling", 999).ok == ok


def test_a_missing_init_blocks_a_start_and_is_made_by_setup():
    check = preflight.init("/usr/lib/kindling/venv/bin/kindling-init", False)
    assert (check.mark, check.mend) == (preflight.Mark.MISSING, "setup/host.sh")
    assert "/usr/lib/kindling/venv/bin/kindling-init is missing" in check.detail
    assert preflight.init("/x/kindling-init", True).ok


def test_the_range_that_is_offered_is_free():
    text = "a:100000:65536\nb:165536:65536\n"
    check = preflight.subordinate_ids("subgid", text, "kindling", 999)
    assert check.mend == "usermod --add-subgids 231072-296607 kindling"


@pytest.mark.parametrize(
    ("limits", "mend"),
    [
        ({"kernel.unprivileged_userns_clone": "0"}, "sysctl -w kernel.unprivileged_userns_clone=1"),
        (
            {"kernel.apparmor_restrict_unprivileged_userns": "1"},
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        ({"user.max_user_namespaces": "0"}, "sysctl -w user.max_user_namespaces=16384"),
    ],
)
def test_forbidden_user_namespaces_name_the_key(limits, mend):
    check = preflight.user_namespaces(limits, "")
    assert (check.ok, check.mend) == (False, mend)


def test_a_user_namespace_that_could_not_be_made_is_not_ok():
    assert not preflight.user_namespaces({"user.max_user_namespaces": "5"}, "unshare: EPERM").ok
    assert preflight.user_namespaces({"user.max_user_namespaces": "5"}, "").ok


def test_newuidmap_must_be_there_and_privileged():
    assert preflight.mapping_tool("newuidmap", None, False).mend == "apt-get install uidmap"
    path = "/usr/bin/newuidmap"
    assert preflight.mapping_tool("newuidmap", path, False).mend == f"chmod u+s {path}"
    assert preflight.mapping_tool("newuidmap", path, True).ok


@pytest.mark.parametrize(
    ("wanted", "found", "ok"),
    [
        ("auto", {"crun": None, "runc": "/usr/sbin/runc"}, True),
        ("crun", {"crun": None, "runc": "/usr/sbin/runc"}, False),
        ("auto", {"crun": None, "runc": None}, False),
    ],
)
def test_one_runtime_is_enough_unless_one_is_named(wanted, found, ok):
    assert preflight.runtime(wanted, found).ok == ok


def test_an_old_containerd_is_said_but_blocks_only_when_it_cannot_work():
    def containerd(version):
        versions = {"containerd": (version, "host"), "rootlesskit": ("2.0.2", "host")}
        return preflight.private_binaries("/lib", [], versions)[1]

    assert containerd("2.1.9").ok
    assert (containerd("1.7.24").ok, containerd("1.7.24").required) == (False, False)
    assert (containerd("1.6.20").ok, containerd("1.6.20").required) == (False, True)
    assert "(host), wanted 2.1" in containerd("1.7.24").detail


def test_missing_private_binaries_are_named():
    check = preflight.private_binaries("/lib", ["ctr"], {})[0]
    assert "ctr" in check.detail
    assert check.required


def test_low_limits_are_one_command():
    wanted = {"kernel.keys.maxkeys": 20000, "fs.file-max": 10, "absent.key": 5}
    check = preflight.sysctls(wanted, {"kernel.keys.maxkeys": 200, "fs.file-max": 10})
    assert check.mend == "sysctl -w kernel.keys.maxkeys=20000"
    assert not check.required


@pytest.mark.parametrize(
    ("writable", "ready", "free", "ok", "required"),
    [
        ("slots", {512: 16}, {512: 512}, True, True),
        ("slots", {}, {}, False, True),
        ("slots", {512: 16}, {512: 300}, False, False),
        ("tmpfs", {}, {}, True, True),
    ],
)
def test_slots_must_be_ready_and_as_free_as_their_class(writable, ready, free, ok, required):
    check = preflight.slots(writable, "/slots", "loop", ready, free)
    assert (check.ok, check.required) == (ok, required)


@pytest.mark.parametrize(
    ("hard", "granted", "running", "ok", "says"),
    [
        (1024, 0, None, False, "1024, some functions may have 100000"),
        (100_000, 0, None, True, "100000"),
        (1024, 1_048_576, None, True, "1048576 from the unit or runuser, 1024 in this shell"),
        (1024, 0, 1_048_576, True, "1048576 of the running agent"),
        (1_048_576, 1_048_576, 1024, False, "1024 of the running agent, some functions"),
    ],
)
def test_few_open_files_are_said_but_do_not_block(hard, granted, running, ok, says):
    check = preflight.open_files(hard, granted, running)
    assert (check.ok, check.required) == (ok, False)
    assert check.detail.startswith(says)


def test_limits_of_a_process_and_of_a_login_are_read():
    limits = "Limit  Soft  Hard  Units\nMax open files            1024    524288   files\n"
    assert preflight.hard_open_files(limits) == 524288
    assert preflight.hard_open_files(limits.replace("524288", "unlimited")) == 0
    assert preflight.hard_open_files("") == 0
    login = "# kindling - nofile 9\nkindling - nofile 1048576\nother hard nofile 5\nkindling x\n"
    assert preflight.granted_open_files(login, "kindling") == 1048576
    assert preflight.granted_open_files("kindling soft nofile 7\n", "kindling") == 0


SWAPS = "Filename\tType\tSize\tUsed\tPriority\n"


@pytest.mark.parametrize(
    ("counted", "swaps", "ok"),
    [(True, SWAPS, True), (False, SWAPS, False), (False, "", True)],
)
def test_swap_without_a_limit_is_said_but_does_not_block(counted, swaps, ok):
    check = preflight.swap_limit(counted, swaps)
    assert (check.ok, check.required) == (ok, False)


def test_swap_without_a_limit_names_what_it_means_and_the_boot_parameter():
    line = preflight.swap_limit(False, SWAPS).line()
    assert line.startswith(
        "swap limit: advice, none: functions may swap beyond their memory: run '"
    )
    assert "swapaccount=1" in line


def test_taken_ports_are_named_unless_the_agent_itself_has_them():
    taken = {"127.0.0.1:8080": "Address already in use"}
    check = preflight.ports(taken, None)
    assert (check.ok, check.mend) == (False, "ss -ltnp sport = :8080")
    assert preflight.ports({}, 4711).ok


def test_directories_and_cgroups_carry_their_problem():
    check = preflight.directory("run", "/run/kindling", "/run/kindling does not exist", "kindling")
    assert check.mend == "install -d -o kindling -g kindling -m 0750 /run/kindling"
    assert not preflight.cgroups("v1", ["/sys/fs/cgroup/pids/kindling"], "mend").ok
    assert preflight.tmpfs("/run/kindling", "tmpfs").ok
    assert not preflight.tmpfs("/run/kindling", "ext4").required
