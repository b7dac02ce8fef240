"""The house's pure parts: cgroup layouts, command lines, configuration, back-off."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config import NodeConfig
from agent.model.limits import LIMITS
from agent.rootless import cgroup, containerd_config, settings, sockets
from agent.rootless.child import Backoff, how_ended
from agent.rootless.daemon import Daemon
from agent.rootless.rootlesskit import command, root_is_shared
from agent.rootless.workers import RETIRE_S

HYBRID = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:26 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/pids rw,relatime shared:9 - cgroup cgroup rw,pids
34 30 0:30 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
35 30 0:31 / /sys/fs/cgroup/net_cls rw,relatime - cgroup cgroup rw,net_cls
36 30 0:32 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
V2 = "30 22 0:26 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
UNIT = "/system.slice/kindling.service"


def test_a_hybrid_host_counts_as_v1_and_joined_controllers_share_a_directory():
    layout = cgroup.layout_of(HYBRID, "0::/\n")
    assert layout is not None
    assert (layout.version, layout.hybrid, layout.base) == (1, True, "/kindling")
    assert layout.mounts["cpuacct"] == layout.mounts["cpu"] == "/sys/fs/cgroup/cpu,cpuacct"
    assert "net_cls" not in layout.mounts
    assert len(layout.node_directories("a")) == 4
    assert layout.directory("memory", "a") == Path("/sys/fs/cgroup/memory/kindling/a")
    assert layout.agent_directory("a") == Path("/sys/fs/cgroup/pids/kindling/a/agent")
    assert layout.oci_prefix("a") == "/kindling/a"


@pytest.mark.parametrize("own", [UNIT, f"{UNIT}/_run"])
def test_on_v2_the_group_it_started_in_is_the_delegated_one(own):
    layout = cgroup.layout_of(V2, f"0::{own}\n")
    assert layout is not None
    assert (layout.version, layout.base) == (2, UNIT)
    assert layout.agent_directory("a") == Path(f"/sys/fs/cgroup{UNIT}/a/agent")
    assert layout.oci_prefix("a") == f"{UNIT}/a"
    assert not cgroup.outside(layout, f"0::{own}\n")


def test_on_v2_without_a_unit_setups_own_group_is_used_and_must_be_entered():
    layout = cgroup.layout_of(V2, "0::/\n")
    assert layout is not None
    assert layout.base == "/kindling"
    assert cgroup.outside(layout, "0::/\n")
    assert not cgroup.outside(layout, "0::/kindling\n")


def test_a_host_without_cgroups_has_no_layout():
    assert cgroup.layout_of("22 1 254:0 / / rw - ext4 /dev/vda rw\n", "") is None


def house(**sections):
    return settings.house_of(NodeConfig.model_validate(sections).model_dump(mode="json"))


def test_doors_have_the_names_addresses_and_modes_the_worker_relies_on():
    doors = {door.name: (door.address, door.mode) for door in house().doors}
    assert doors == {
        "invoke_tcp": ("127.0.0.1:8080", 0),
        "invoke_unix": ("/run/kindling/invoke.sock", 0o660),
        "grpc_admin": ("/run/kindling/kindling.sock", 0o660),
        "grpc_readonly": ("/run/kindling/kindling-ro.sock", 0o666),
        "admin_tcp": ("127.0.0.1:8081", 0),
        "admin_unix": ("/run/kindling/admin.sock", 0o660),
    }


def test_an_empty_address_closes_a_door():
    names = {door.name for door in house(invoke={"listen": "", "socket": ""}).doors}
    assert names == {"grpc_admin", "grpc_readonly", "admin_tcp", "admin_unix"}


def test_rootlesskit_keeps_the_network_apart_and_runs_the_inner_command_last():
    argv = command(house(), ["inner", "--flag"], shared_root=True)
    assert argv[-2:] == ["inner", "--flag"]
    assert {"--detach-netns", "--disable-host-loopback", "--propagation=rslave"} <= set(argv)
    assert "--state-dir=/run/kindling/rootlesskit" in argv
    assert "--propagation=rprivate" in command(house(), [], shared_root=False)


@pytest.mark.parametrize(
    ("line", "shared"),
    [
        ("22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw", True),
        ("22 1 254:0 / / rw,relatime - ext4 /dev/vda rw", False),
        ("22 1 254:0 / / rw,relatime master:1 - ext4 /dev/vda rw", False),
    ],
)
def test_a_shared_root_is_seen_in_its_optional_fields(line, shared):
    assert root_is_shared(line) == shared


def test_containerds_configuration_is_toml_with_our_places_and_can_unpack():
    text = containerd_config.text(
        root=Path('/data/a "b"'),
        state=Path("/run/c"),
        socket=Path("/run/c/s.sock"),
        python=Path("/lib/python"),
    )
    data = tomllib.loads(text)
    assert data["version"] == 3
    assert data["root"] == '/data/a "b"'
    assert data["grpc"]["address"] == "/run/c/s.sock"
    assert "io.containerd.grpc.v1.cri" in data["disabled_plugins"]
    unpack = data["plugins"]["io.containerd.transfer.v1.local"]["unpack_config"]
    assert unpack == [{"platform": "linux/amd64", "snapshotter": "overlayfs"}]
    processor = data["stream_processors"][containerd_config.OWNERS_PROCESSOR]
    assert processor["path"] == "/lib/python"
    assert processor["accepts"] == [containerd_config.OWNERS_MEDIA_TYPE]
    assert "proxy_plugins" not in data


def test_every_lazy_engine_is_a_snapshotter_that_pulls_may_name():
    engines = [("soci", Path("/run/soci.sock")), ("stargz", Path("/run/stargz.sock"))]
    place = {"root": Path("/data"), "state": Path("/run/c"), "socket": Path("/run/c/s.sock")}
    data = tomllib.loads(containerd_config.text(**place, python=Path("/p"), engines=engines))
    for name, address in engines:
        plugin = data["proxy_plugins"][name]
        assert (plugin["type"], plugin["address"]) == ("snapshot", str(address))
        assert plugin["exports"] == {"enable_remote_snapshot_annotations": "true"}
    unpack = data["plugins"]["io.containerd.transfer.v1.local"]["unpack_config"]
    assert [one["snapshotter"] for one in unpack] == ["overlayfs", "soci", "stargz"]


@pytest.mark.parametrize(
    ("address", "parsed"),
    [
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        ("[::1]:80", ("::1", 80)),
        (":9000", ("0.0.0.0", 9000)),
    ],
)
def test_addresses_are_host_and_port(address, parsed):
    assert sockets.parse(address) == parsed


@pytest.mark.parametrize("address", ["8080", "localhost", "a:0", "a:65536", "a:x", ""])
def test_other_addresses_are_refused(address):
    with pytest.raises(ValueError, match="host:port"):
        sockets.parse(address)


def test_the_first_restart_is_at_once_then_the_wait_doubles_up_to_its_bound():
    backoff = Backoff()
    delays = [backoff.delay_s(0) for _ in range(9)]
    assert delays == [0, 0.25, 0.5, 1, 2, 4, 8, 10, 10]


def test_a_daemon_that_was_healthy_for_long_starts_the_series_anew():
    backoff = Backoff()
    for _ in range(5):
        backoff.delay_s(0)
    assert backoff.delay_s(60) == 0


@given(st.lists(st.floats(min_value=0, max_value=1e6), min_size=1, max_size=200))
def test_no_wait_is_longer_than_the_bound(lives):
    backoff = Backoff()
    assert all(0 <= backoff.delay_s(lived) <= 10 for lived in lives)


def test_a_daemons_life():
    daemon = Daemon("worker", ready_within_s=5)
    assert daemon.due(0)
    daemon.started(42, now=1)
    assert daemon.waiting
    assert not daemon.due(2)
    assert not daemon.late(5.9)
    assert daemon.late(6)
    assert daemon.timers() == [6]
    daemon.became_ready(3)
    assert daemon.ready
    assert daemon.was_ready
    assert daemon.timers() == []
    assert daemon.ended(4) == 0
    assert daemon.due(4)
    daemon.started(43, now=4)
    assert daemon.ended(4.1) == 0.25
    assert not daemon.due(4.2)
    assert daemon.due(4.35)


def test_a_daemon_that_was_killed_for_being_late_is_waited_for_no_more():
    daemon = Daemon("worker", ready_within_s=5)
    daemon.started(42, now=0)
    daemon.give_up_waiting()
    assert not daemon.waiting
    assert not daemon.ready
    assert not daemon.late(100)


@pytest.mark.parametrize(
    ("status", "words"),
    [(9, "signal 9 (SIGKILL)"), (3 << 8, "exit status 3"), (0, "exit status 0")],
)
def test_how_a_process_ended_in_words(status, words):
    assert how_ended(status) == words


def test_a_replaced_worker_may_finish_the_longest_call_of_any_contract():
    longest_s = max(limits.call_s.most for limits in LIMITS.values())
    assert longest_s < RETIRE_S
