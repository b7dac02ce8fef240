"""What a function sees and reaches from inside, told by the probe image on the real agent.

The cage itself (capabilities, seccomp, namespaces, maps, mounts, masks) is compared with
expected/probe.json. When it is changed on purpose, write the file anew:

    python -m tests.integration.test_isolation   (as root; prints nothing, changes the file)
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.functions import Functions
from tests.integration.running import RunningAgent

Json = dict[str, Any]

EXPECTED = Path(__file__).with_name("expected") / "probe.json"
BRIDGE = "172.30.0.1"
METADATA = "169.254.169.254"
# Of what the probe tells, that which is the same on every host of ours and at every start.
SAME = {
    *("uid", "gid", "groups", "init", "cwd", "status", "uid_map", "gid_map", "setgroups"),
    *("devices", "shm", "oom_score_adj", "sysctls", "sysctl_writable", "may_mount"),
    *("may_unshare_user", "cgroup_writable", "sys_writable"),
}
# Not compared: what the kernel has below /sys and which files of /proc it offers to be masked.
MOUNTS = re.compile(r"/|/dev(/.*)?|/etc/.*|/proc|/proc/(sys|bus|fs|irq)|/sys|/sys/fs/cgroup")
OPTIONS = {"ro", "rw", "nosuid", "nodev", "noexec"}
NOT_REACHED_S = 1.0


def test_the_cage_is_as_written_down(functions):
    functions.deploy("cage")
    assert cage(functions.facts("cage")) == json.loads(EXPECTED.read_text())


def cage(facts: Json) -> Json:
    """Return what must be the same on every host of ours and at every start."""
    kept = {name: facts[name] for name in SAME}
    kept["core_limit"] = facts["limits"]["CORE"]
    kept["secret_files"] = {
        path: "hidden" if how in ("empty", "ENOENT", "EACCES", "EPERM") else how
        for path, how in facts["secret_files"].items()
    }
    # The last mount on a place is the one that is seen. Those on parts of /proc keep the other
    # options of /proc with crun 1.21, and not with 1.8.
    kept["mounts"] = {
        mount["target"]: sorted(set(mount["options"].split(",")) & options_of(mount["target"]))
        for mount in facts["mounts"]
        if MOUNTS.fullmatch(mount["target"])
    }
    return kept


def options_of(target: str) -> set[str]:
    """Return the options that are the same with every runtime."""
    return {"ro", "rw"} if target.startswith("/proc/") else OPTIONS


def test_its_namespaces_are_neither_the_hosts_nor_the_agents(functions, agent):
    functions.deploy("cage")
    facts = functions.facts("cage")
    assert facts["namespaces"] == facts["init_namespaces"]
    for pid in (os.getpid(), agent.pids["worker"], agent.pids["supervise"]):
        outside = {name: os.readlink(f"/proc/{pid}/ns/{name}") for name in facts["namespaces"]}
        shared = [name for name in outside if outside[name] == facts["namespaces"][name]]
        assert shared == []


def test_two_instances_share_no_namespace(functions):
    functions.deploy("one")
    functions.deploy("two")
    one, two = functions.facts("one")["namespaces"], functions.facts("two")["namespaces"]
    assert [name for name in one if one[name] == two[name]] == []


def test_nothing_of_cgroups_can_be_seen_or_written(functions):
    functions.deploy("cage")
    facts = functions.facts("cage")
    assert facts["cgroup_writable"] == []
    assert facts["sys_writable"] == []
    assert {line.rpartition(":")[2] for line in facts["cgroups"]} <= {"/"}
    for path in ("/sys/fs/cgroup/x", "/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern"):
        assert functions.probe("cage", f"write?path={path}")["written"] is False


def test_only_its_own_processes_and_interfaces_are_there(functions):
    functions.deploy("cage")
    facts = functions.facts("cage")
    # The init, the function, and the child that tried to mount has ended.
    assert facts["processes"] == [1, facts["pid"]]
    assert len([name for name in facts["interfaces"] if name != "lo"]) == 1


def test_it_runs_as_the_user_that_was_asked_for_without_capabilities(functions):
    functions.deploy("user", user="1000:1001")
    facts = functions.facts("user")
    assert (facts["uid"], facts["gid"]) == (1000, 1001)
    assert int(facts["status"]["CapEff"], 16) == 0
    assert int(facts["status"]["CapPrm"], 16) == 0


# The network


@pytest.fixture
def caged(functions: Functions) -> Functions:
    functions.deploy("cage")
    functions.deploy("neighbour")
    functions.facts("neighbour")
    return functions


def answers(functions: Functions, host: str, port: int) -> Json:
    """Return what came of a TCP connect from inside."""
    return functions.probe("cage", f"connect?host={host}&port={port}&timeout_s={NOT_REACHED_S}")


def test_the_agent_reaches_the_neighbour_that_the_function_does_not(caged, agent):
    address = caged.probe("neighbour", "connect?host=127.0.0.1&port=9000")
    assert address["connected"] is True
    there = own_address(caged, "neighbour")
    assert answers(caged, there, 9000)["connected"] is False
    assert caged.facts("neighbour")["uid"] == 0


def own_address(functions: Functions, name: str) -> str:
    """Return an instance's own address, which stands in its /etc/hosts under its name."""
    said = functions.probe(name, f"resolve?name={functions.facts(name)['hostname']}")
    (address,) = said["addresses"]
    return str(address)


@pytest.mark.parametrize("port", [53, 80, 8080, 8081, 9000])
def test_the_bridge_does_not_answer(caged, port):
    assert answers(caged, BRIDGE, port)["connected"] is False


@pytest.mark.parametrize("port", [80, 8080])
def test_the_metadata_address_does_not_answer(caged, port):
    assert answers(caged, METADATA, port)["connected"] is False


def test_no_address_of_the_host_answers_on_any_port_of_the_agent(caged, agent):
    with listener("0.0.0.0") as everywhere, listener("127.0.0.1") as loopback:
        ports = {everywhere, loopback, agent.invoke_port, agent.admin_port, 8080, 8081}
        hosts = {"10.0.2.2", "10.0.2.15", *host_addresses()}
        assert reaches("127.0.0.1", everywhere), "the listener works"
        reached = [
            (host, port)
            for host in sorted(hosts)
            for port in sorted(ports)
            if answers(caged, host, port)["connected"]
        ]
        assert reached == []


def test_its_own_loopback_is_its_own(caged, agent):
    # 127.0.0.1 answers where the function itself listens, and nowhere else.
    assert answers(caged, "127.0.0.1", 9000)["connected"] is True
    for port in (agent.invoke_port, agent.admin_port, 8080, 8081):
        assert answers(caged, "127.0.0.1", port)["connected"] is False


def host_addresses() -> list[str]:
    """Return the host's own IPv4 addresses, loopback included."""
    done = subprocess.run(
        ["ip", "-j", "-4", "address"], capture_output=True, text=True, timeout=10, check=True
    )
    links = json.loads(done.stdout)
    return [entry["local"] for link in links for entry in link["addr_info"]]


@contextmanager
def listener(host: str) -> Iterator[int]:
    """Listen on a free port of the host and answer whoever comes; yields the port."""
    with closing(socket.create_server((host, 0))) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def reaches(host: str, port: int) -> bool:
    with closing(socket.create_connection((host, port), 5)):
        return True


# Headers


def test_no_caller_can_forge_what_the_platform_says(functions, agent):
    functions.deploy("echo", image="hello-http")
    forged = {
        "X-Fc-Request-Id": "forged",
        "x-fc-control-path": "/initialize",
        "X-FC-Access-Key-Secret": "forged",
        "X-Fc-Anything": "forged",
    }
    seen = agent.http("GET", "/http/echo/headers", headers=forged).json()["headers"]
    ours = {name.lower(): value for name, value in seen if re.match("x-fc-", name, re.I)}
    assert "forged" not in ours.values()
    assert ours["x-fc-control-path"] == "/http-invoke"
    assert "x-fc-anything" not in ours


def write_expected() -> None:
    """Write expected/probe.json as this host's probe has it."""
    agent = RunningAgent(node="expected", sections={"storage": {"writable": "tmpfs"}})
    try:
        with Functions(agent.start()) as functions:
            functions.deploy("cage")
            facts = functions.facts("cage")
            EXPECTED.write_text(json.dumps(cage(facts), indent=1, sort_keys=True) + "\n")
    finally:
        agent.close()


if __name__ == "__main__":
    write_expected()
