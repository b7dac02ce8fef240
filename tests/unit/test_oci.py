"""The runtime spec: what it must contain, and that the template says exactly the same."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.oci import (
    CAPABILITIES,
    Bind,
    InstancePlan,
    ShownCgroups,
    SpecTemplate,
    VersionPlan,
    argv_of,
    merged_env,
    oci_spec,
)
from agent.core.rlimits import UNLIMITED, Rlimit
from agent.core.seccomp import ALLOWED, CLONE_NEW_ANY, profile
from agent.errors import Bug, InvalidSpec

VERSION = VersionPlan(
    argv=("/bin/server", "--port", "9000"),
    cwd="/app",
    memory_bytes=128 << 20,
    cpu_millis=1500,
    pids=64,
    gid=7,
    groups=(8, 7, 9),
    rlimits=(Rlimit("NOFILE", 1024, 4096), Rlimit("CORE", 0, UNLIMITED)),
    init_path="/opt/kindling-init",
    stop_signal=3,
    binds=(Bind("/srv/data", "/data", read_only=True), Bind("/srv/rw", "/rw")),
)
INSTANCE = InstancePlan(
    hostname="hello-0a1b2c3d",
    rootfs="/run/kindling/rootfs/hello-0a1b2c3d",
    netns="/proc/12/fd/7",
    cgroups_path="/kindling/node/hello-0a1b2c3d",
    env={"PATH": "/bin", "A": 'quote" back\\ newline\n é'},
)
SPEC = oci_spec(VERSION, INSTANCE)


def mount(target: str) -> dict[str, Any]:
    found: dict[str, Any]
    (found,) = [m for m in SPEC["mounts"] if m["destination"] == target]
    return found


def test_without_an_init_the_program_is_the_first_process_and_nothing_is_bound_for_it():
    alone = oci_spec(replace(VERSION, init_path=""), INSTANCE)
    assert alone["process"]["args"] == list(VERSION.argv)
    assert [m for m in SPEC["mounts"] if m not in alone["mounts"]] == [mount("/dev/init")]


def test_the_program_runs_below_the_init_with_nothing_it_does_not_need():
    process = SPEC["process"]
    assert process["args"] == ["/dev/init", "3", "/bin/server", "--port", "9000"]
    assert process["noNewPrivileges"] is False  # sudo and ping work as elsewhere
    assert process["terminal"] is False
    assert process["oomScoreAdj"] > 0
    assert process["user"] == {"uid": 0, "gid": 7, "additionalGids": [7, 8, 9]}
    assert {"type": "RLIMIT_CORE", "soft": 0, "hard": (1 << 64) - 1} in process["rlimits"]
    assert {"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096} in process["rlimits"]
    assert process["capabilities"]["bounding"] == list(CAPABILITIES)
    assert "ambient" not in process["capabilities"]
    assert "inheritable" not in process["capabilities"]


def test_capabilities_are_those_that_files_of_images_carry_and_no_more():
    """As Docker has them: one outside of the set makes the file that carries it unexecutable."""
    assert {name.removeprefix("CAP_") for name in CAPABILITIES} == {
        *("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD"),
        *("NET_BIND_SERVICE", "NET_RAW", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
    }


def test_of_another_user_than_root_the_init_alone_holds_a_capability():
    """It gives none to the program (tests/component/test_init.py)."""
    held = oci_spec(replace(VERSION, uid=1000), INSTANCE)["process"]["capabilities"]
    assert held["effective"] == held["permitted"] == held["ambient"] == ["CAP_KILL"]
    alone = oci_spec(replace(VERSION, uid=1000, init_path=""), INSTANCE)["process"]["capabilities"]
    assert alone["effective"] == alone["permitted"] == []
    assert "ambient" not in alone
    assert held["bounding"] == alone["bounding"] == list(CAPABILITIES)


def test_every_namespace_is_its_own_and_the_network_is_the_slots():
    spaces = {ns["type"]: ns.get("path") for ns in SPEC["linux"]["namespaces"]}
    assert spaces == {
        "pid": None,
        "ipc": None,
        "uts": None,
        "mount": None,
        "cgroup": None,
        "user": None,
        "network": "/proc/12/fd/7",
    }
    lines = [
        {"containerID": 0, "hostID": 0, "size": 1},
        {"containerID": 1, "hostID": 1, "size": 65535},
    ]
    assert SPEC["linux"]["uidMappings"] == SPEC["linux"]["gidMappings"] == lines


def test_limits():
    assert SPEC["linux"]["resources"] == {
        "memory": {"limit": 128 << 20, "swap": 128 << 20},
        "cpu": {"quota": 150_000, "period": 100_000},
        "pids": {"limit": 64},
    }
    unlimited = oci_spec(replace(VERSION, limit_swap=False), INSTANCE)
    assert "swap" not in unlimited["linux"]["resources"]["memory"]


def test_sys_is_read_only_with_an_empty_place_over_cgroup_after_it():
    targets = [m["destination"] for m in SPEC["mounts"]]
    assert targets.index("/sys") < targets.index("/sys/fs/cgroup")
    assert mount("/sys")["options"][:2] == ["rbind", "rro"]
    assert mount("/sys/fs/cgroup")["type"] == "tmpfs"
    assert "ro" in mount("/sys/fs/cgroup")["options"]


@pytest.mark.parametrize(
    ("shown", "sources"),
    [
        (
            ShownCgroups(("/sys/fs/cgroup",)),
            {"/sys/fs/cgroup": "/sys/fs/cgroup/kindling/node/hello-0a1b2c3d"},
        ),
        (
            ShownCgroups(("/sys/fs/cgroup/memory", "/sys/fs/cgroup/cpu,cpuacct"), "/run/names"),
            {
                "/sys/fs/cgroup": "/run/names",
                "/sys/fs/cgroup/memory": "/sys/fs/cgroup/memory/kindling/node/hello-0a1b2c3d",
                "/sys/fs/cgroup/cpu,cpuacct": (
                    "/sys/fs/cgroup/cpu,cpuacct/kindling/node/hello-0a1b2c3d"
                ),
            },
        ),
    ],
    ids=["v2", "v1"],
)
def test_an_instance_sees_its_own_group_read_only(shown, sources):
    mounts = oci_spec(replace(VERSION, cgroups=shown), INSTANCE)["mounts"]
    found = {m["destination"]: m for m in mounts if m["destination"].startswith("/sys/fs/cgroup")}
    assert {target: m["source"] for target, m in found.items()} == sources
    assert all({"bind", "ro"} <= set(m["options"]) for m in found.values())
    targets = [m["destination"] for m in mounts]
    assert targets.index("/sys") < min(targets.index(target) for target in sources)


def test_files_of_the_host_are_read_only_and_carry_no_devices():
    assert {"bind", "ro", "nosuid", "nodev"} == set(mount("/dev/init")["options"])
    assert {"rro", "nosuid", "nodev"} <= set(mount("/data")["options"])
    assert not {"ro", "rro"} & set(mount("/rw")["options"])


def test_shm_has_its_size():
    assert f"size={VERSION.shm_bytes}" in mount("/dev/shm")["options"]


def test_seccomp_refuses_by_default_and_allows_what_programs_need():
    seccomp = SPEC["linux"]["seccomp"]
    assert seccomp["defaultAction"] == "SCMP_ACT_ERRNO"
    assert len(ALLOWED) == len(set(ALLOWED))
    assert {"read", "write", "execve", "futex", "epoll_wait", "clone", "socket"} - set(ALLOWED) == {
        "clone",
        "socket",
    }
    for name in (
        "mount",
        "umount2",
        "unshare",
        "setns",
        "bpf",
        "keyctl",
        "add_key",
        "init_module",
        "kexec_load",
        "io_uring_setup",
        "userfaultfd",
        "open_by_handle_at",
        "perf_event_open",
        "reboot",
        "pivot_root",
        "clock_settime",
        "syslog",
        "swapon",
        "quotactl",
    ):
        assert not any(name in rule["names"] for rule in seccomp["syscalls"]), name


def test_clone_may_not_make_namespaces_and_clone3_says_it_is_not_there():
    rules = {tuple(rule["names"]): rule for rule in profile()["syscalls"]}
    (condition,) = rules["clone",]["args"]
    assert condition["op"] == "SCMP_CMP_MASKED_EQ"
    assert condition["value"] == CLONE_NEW_ANY == 0x7E020000
    assert condition["valueTwo"] == 0
    assert rules["clone3",] == {
        "names": ["clone3"],
        "action": "SCMP_ACT_ERRNO",
        "errnoRet": 38,
    }


def test_a_capability_adds_its_calls():
    assert any("chroot" in r["names"] for r in profile(["CAP_SYS_CHROOT"])["syscalls"])


words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
paths = words.map(lambda word: f"/p/{word}")


@given(
    st.builds(
        VersionPlan,
        argv=st.lists(words | st.just("\\u0000env\\u0000"), min_size=1, max_size=4).map(tuple),
        memory_bytes=st.integers(1, 1 << 40),
        cpu_millis=st.integers(50, 64000),
        pids=st.integers(1, 1000),
        rlimits=st.tuples(st.builds(Rlimit, words, st.integers(0, 9), st.integers(0, UNLIMITED))),
        cwd=paths,
        uid=st.integers(0, 65535),
        annotations=st.dictionaries(words, words, max_size=2),
    ),
    st.builds(
        InstancePlan,
        hostname=paths,
        rootfs=paths,
        netns=paths,
        cgroups_path=paths,
        env=st.dictionaries(words, words | st.just("\\u0000rootfs\\u0000"), max_size=4),
    ),
)
def test_the_template_says_the_same_as_the_whole_spec(version, instance):
    assert json.loads(SpecTemplate(version).encode(instance)) == oci_spec(version, instance)


@pytest.mark.parametrize("field", ["hostname", "rootfs", "netns", "cgroups_path"])
def test_a_missing_path_is_a_bug_and_no_spec(field):
    without: dict[str, Any] = {field: ""}
    with pytest.raises(Bug, match=field):
        SpecTemplate(VERSION).encode(replace(INSTANCE, **without))


@pytest.mark.parametrize(
    ("entrypoint", "cmd", "command", "args", "argv"),
    [
        (["/e"], ["c"], None, None, ("/e", "c")),
        ([], ["/c", "d"], None, None, ("/c", "d")),
        (["/e"], ["c"], None, ["a"], ("/e", "a")),
        (["/e"], ["c"], None, [], ("/e",)),
        (["/e"], ["c"], ["/x"], None, ("/x",)),
        (["/e"], ["c"], ["/x"], ["a"], ("/x", "a")),
    ],
)
def test_command_and_args_override_the_image(entrypoint, cmd, command, args, argv):
    assert argv_of(entrypoint, cmd, command, args) == argv


def test_nothing_to_run_is_an_invalid_spec():
    with pytest.raises(InvalidSpec, match="ENTRYPOINT"):
        argv_of([], [], None, None)


def test_the_functions_own_variables_win_and_a_path_is_always_there():
    env = merged_env(["A=img", "B=img", "junk", "=x", "E="], {"B": "con", "C": "con"}, {"C": "own"})
    assert env["PATH"].endswith("/bin")
    assert {k: env[k] for k in "ABCE"} == {"A": "img", "B": "con", "C": "own", "E": ""}
    assert set(env) == {"PATH", "A", "B", "C", "E"}
    assert merged_env(["PATH=/x"], {}, {})["PATH"] == "/x"
