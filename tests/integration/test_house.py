"""The house on the real host: rootlesskit, containerd, a worker; how it restarts, stops and sweeps.

The worker is a tiny program of the tests, so that nothing but the house is looked at; its agents
use tmpfs layers and a node of their own, beside the shared agent of other tests.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import threading
import time
from pathlib import Path

import pytest

from agent.rootless import cgroup
from tests.integration.running import KINDLING, READY_LINE, as_kindling, is_alive, own

TINY = Path(__file__).with_name("tiny_worker.py")


@pytest.fixture
def house(make_agent):
    agent = make_agent(
        node="house",
        sections={"storage": {"writable": "tmpfs"}, "limits": {"stop_timeout_s": 5}},
        worker=["/usr/bin/python3", "-c", TINY.read_text()],
    )
    yield agent
    agent.close()


def worker_pid(house) -> int:
    pid: int = house.http("GET", "/").json()["pid"]
    return pid


def test_everything_runs_as_kindling_and_answers(house):
    house.start()
    assert worker_pid(house) == house.pids["worker"]
    uids = {Path(f"/proc/{pid}").stat().st_uid for pid in house.tree()}
    assert uids == {Path(house.home).stat().st_uid}
    assert {house.pids["supervise"], house.pids["containerd"]} <= set(house.tree())


def test_containerd_unpacks_by_igzip_and_by_nothing_else_the_host_has(house):
    house.start()
    lines = Path(f"/proc/{house.pids['containerd']}/environ").read_bytes().split(b"\0")
    environment = dict(line.split(b"=", 1) for line in lines if line)
    assert shutil.which("igzip", path=environment[b"PATH"].decode())
    assert environment[b"CONTAINERD_DISABLE_PIGZ"] == b"1"
    assert b"CONTAINERD_DISABLE_IGZIP" not in environment


def test_sockets_have_the_modes_that_give_authority(house):
    house.start()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in house.run.glob("*.sock")}
    assert modes == {
        "kindling.sock": 0o660,
        "kindling-ro.sock": 0o666,
        "admin.sock": 0o660,
        "invoke.sock": 0o660,
        "notify.sock": 0o600,
    }


@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_the_umask_it_is_started_with_gives_and_takes_no_right(house, mask):
    before = os.umask(mask)
    try:
        house.start()
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.lstat().st_mode) for path in (house.run, house.data)}
    assert set(modes.values()) == {0o750}
    assert stat.S_IMODE((house.run / "config.json").stat().st_mode) == 0o644
    open_to_all = [
        path
        for path in house.run.rglob("*")
        if path.lstat().st_mode & 0o022 and not path.is_symlink()
    ]
    assert {path for path in open_to_all if not path.is_socket()} == set()
    assert house.run / "rootlesskit/api.sock" not in open_to_all


def test_a_killed_worker_is_back_on_the_same_sockets_and_no_connection_is_refused(house):
    house.start()
    first = worker_pid(house)
    stop, seen = threading.Event(), set()
    errors: list[Exception] = []

    def call() -> None:
        while not stop.is_set():
            try:
                seen.add(worker_pid(house))
            except ConnectionRefusedError as error:
                errors.append(error)
            except (OSError, ValueError):
                continue  # a call that the dying worker had already accepted
            except Exception as error:
                errors.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    os.kill(first, signal.SIGKILL)
    try:
        house.wait_until(lambda: seen - {first}, what="a reply of the next worker")
    finally:
        stop.set()
        caller.join()
    refused = [error for error in errors if isinstance(error, ConnectionRefusedError)]
    assert refused == []
    assert worker_pid(house) == house.pids["worker"] != first


def test_a_worker_that_keeps_dying_is_started_later_each_time(house):
    house.start()
    for expected in ("at once", "in 0.25 s", "in 0.5 s"):
        before = house.pids["worker"]
        after = len(house.log())
        os.kill(before, signal.SIGKILL)
        house.wait_for(f"starting it again {expected}", after=after)
        house.wait_for("worker is ready", after=after)


def test_a_killed_containerd_is_back_and_the_worker_stays(house):
    house.start()
    worker, containerd = worker_pid(house), house.pids["containerd"]
    after = len(house.log())
    os.kill(containerd, signal.SIGKILL)
    house.wait_for("containerd serves", after=after)
    assert house.pids["containerd"] != containerd
    assert worker_pid(house) == worker


def test_a_function_process_outlives_the_worker_and_is_gone_after_the_stop(house):
    house.start()
    house.http("GET", "/orphan")
    orphan = child_named(house, "sleep")
    os.kill(house.pids["worker"], signal.SIGKILL)
    house.wait_until(lambda: house.pids["worker"] != 0 and worker_pid(house), what="a new worker")
    assert is_alive(orphan)
    assert house.stop() == 0
    assert not is_alive(orphan)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_is_in_order_and_leaves_nothing(house, number):
    house.start()
    assert house.stop(number) == 0
    assert house.leaks() == {}
    assert list(house.run.iterdir()) == []
    log = house.log()
    assert log.index("stopping: worker first") < log.index("supervise: stopped in")


@pytest.mark.parametrize("numbers", [(signal.SIGTERM,), (signal.SIGHUP, signal.SIGTERM)])
@pytest.mark.parametrize("later_s", [0, 0.05, 0.1, 0.2])
def test_a_signal_in_the_middle_of_the_start_is_neither_lost_nor_fatal(house, later_s, numbers):
    house.start(wait=False)
    house.wait_until(house.tree, 20, "rootlesskit")
    time.sleep(later_s)  # sleeps: how far the start has come by then: no step of it tells anybody
    for number in numbers:
        house.process.send_signal(number)
    assert house.wait() == 0
    assert "did not stop in its time" not in house.log()
    assert house.leaks() == {}


def test_ctrl_c_on_the_whole_group_stops_once(house):
    house.start()
    os.killpg(house.process.pid, signal.SIGINT)
    assert house.wait() == 0
    assert "did not end in its time" not in house.log()
    assert house.leaks() == {}


def test_kill_9_of_everything_then_the_next_start_sweeps_and_serves(house):
    house.start()
    house.http("GET", "/orphan")
    orphan = child_named(house, "sleep")
    house.kill_everything(spare=[orphan])
    assert house.tree() == [orphan]
    house.start()
    assert "ended 1 processes of an earlier run" in house.log()
    assert not is_alive(orphan)
    assert worker_pid(house) == house.pids["worker"]


def test_a_frozen_orphan_in_an_instance_group_is_swept(house):
    house.start()
    house.kill_everything()
    layout = house.layout
    groups = [path / "hello-1" for path in layout.node_directories("house")]
    # By the user itself, as a runtime does it: the files inside then are the user's too.
    subprocess.run([*as_kindling(), "mkdir", *map(str, groups)], check=True)
    v2 = layout.version == 2
    freezer = house.group("freezer", "hello-1") / ("cgroup.freeze" if v2 else "freezer.state")
    sleeper = subprocess.Popen([*as_kindling(), "sleep", "1000"])
    try:
        house.wait_until(lambda: uid_of(sleeper.pid) != 0, what="the change of user")
        for group in groups:
            cgroup.join(group, sleeper.pid)
        freezer.write_text("1" if v2 else "FROZEN")
        house.start()
        assert sleeper.wait(5) == -signal.SIGKILL
        assert not any(group.exists() for group in groups)
    finally:
        if freezer.exists():
            freezer.write_text("0" if v2 else "THAWED")
        sleeper.kill()
        sleeper.wait()


def test_the_leak_check_sees_what_is_left_of_a_killed_agent_and_of_an_instance(house):
    house.start()
    assert house.leaks() == {}
    group = house.group("memory", "hello-1")
    record = house.run / "instances" / "hello-1.json"
    subprocess.run([*as_kindling(), "mkdir", str(group), str(record.parent)], check=True)
    subprocess.run([*as_kindling(), "touch", str(record)], check=True)
    left = house.leaks(within_s=0)
    assert left["cgroups"] == [str(group)]
    assert left["files"] == [str(record)]
    house.http("GET", "/orphan")
    orphan = child_named(house, "sleep")
    house.kill_everything(spare=[orphan])
    left = house.leaks(within_s=0)
    assert any(f"{orphan} uid" in line for line in left["processes"])
    assert {"processes", "cgroups", "files"} <= set(left)
    house.start()
    assert house.leaks() == {}


def test_kill_9_of_the_parent_stops_the_house_by_itself(house):
    house.start()
    supervise = house.pids["supervise"]
    house.process.kill()
    house.process.wait()
    deadline = time.monotonic() + 10
    while is_alive(supervise) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(supervise)
    house.start()
    assert worker_pid(house)


def test_kill_9_of_the_supervisor_ends_the_run_and_sweeps(house):
    house.start()
    os.kill(house.pids["supervise"], signal.SIGKILL)
    assert house.wait() == 1
    assert house.leaks() == {}


def test_a_second_run_names_the_first(house):
    house.start()
    again = subprocess.run(
        [*as_kindling(), str(KINDLING), "run", "--config", str(house.config)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd="/",
    )
    assert again.returncode == 1
    assert f"pid {house.process.pid}" in again.stderr
    assert len(again.stderr.strip().splitlines()) == 1
    assert worker_pid(house)


def test_the_same_node_name_in_another_run_directory_is_refused(house, make_agent):
    house.start()
    twin = make_agent(node="house", sections={"storage": {"writable": "tmpfs"}})
    twin.start(wait=False)
    assert twin.wait() == 1
    assert "[node] name" in twin.log()
    assert worker_pid(house)


def test_root_is_refused_with_the_way_out(house):
    done = house.cli("run", "--config", house.config, check=False)
    assert done.status == 1
    assert "runuser -u kindling -- kindling run" in done.err


def test_a_taken_port_is_named_before_anything_starts(house):
    with socket.create_server(("127.0.0.1", house.invoke_port)):
        house.start(wait=False)
        assert house.wait() == 1
    assert f"127.0.0.1:{house.invoke_port}" in house.log()
    assert "containerd started" not in house.log()


def test_a_wrong_configuration_is_one_clear_error(house):
    house.configure({"limits": {"stop_timeout_s": -1}})
    house.start(wait=False)
    assert house.wait() == 1
    assert "limits.stop_timeout_s" in house.log()
    house.configure({"limits": {"stop_timeout_s": 5}})


def test_a_worker_that_never_starts_ends_the_run_with_its_reason(make_agent):
    hopeless = make_agent(
        node="hopeless",
        sections={"storage": {"writable": "tmpfs"}},
        worker=["/usr/bin/python3", "-c", "raise SystemExit(3)"],
    )
    hopeless.start(wait=False)
    assert hopeless.wait() == 1
    assert "ended 5 times (exit status 3): giving up" in hopeless.log()
    hopeless.close()


def test_a_reload_swaps_supervisor_code_and_worker_and_keeps_the_sockets(house):
    house.start()
    before, inode = house.pids, house.socket.stat().st_ino
    worker = worker_pid(house)
    after = len(house.log())
    house.process.send_signal(signal.SIGHUP)
    house.wait_for("worker is ready", 20, after=after)
    assert house.pids["run"] == before["run"]
    assert house.pids["supervise"] == before["supervise"]
    assert house.pids["containerd"] == before["containerd"]
    assert house.socket.stat().st_ino == inode
    house.wait_until(lambda: not is_alive(worker), what="the end of the old worker")
    assert worker_pid(house) == house.pids["worker"] != worker
    assert house.stop() == 0


def test_a_reload_with_a_wrong_configuration_changes_nothing(house):
    house.start()
    worker = worker_pid(house)
    house.configure({"invoke": {"max_connections": 0}})
    house.process.send_signal(signal.SIGHUP)
    house.wait_for("reload refused")
    assert "invoke.max_connections" in house.log()
    assert worker_pid(house) == worker


def test_systemd_hears_that_it_is_ready(house):
    path = Path("/tmp") / f"kd-notify-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(path))
        try:
            own(path)
            receiver.settimeout(60)
            os.environ["NOTIFY_SOCKET"] = str(path)
            house.start()
            assert receiver.recv(100) == b"READY=1"
            house.stop()
            assert receiver.recv(100) == b"STOPPING=1"
        finally:
            os.environ.pop("NOTIFY_SOCKET", None)
            path.unlink()


def test_ready_is_said_once(house):
    house.start()
    os.kill(house.pids["worker"], signal.SIGKILL)
    house.wait_until(lambda: house.log().count("worker is ready") == 2, what="the second worker")
    assert house.log().count(READY_LINE) == 1


def test_check_is_content_with_this_host(house):
    done = house.cli("check", "--json", "--config", house.config)
    checks = {check["name"]: check for check in done.json()["checks"]}
    assert done.json()["ok"]
    assert checks["cgroups"]["ok"]
    assert set(checks["kernel"]) == {"name", "ok", "detail", "mend", "required", "mark"}


def child_named(house, name: str) -> int:
    found: list[int] = []

    def look() -> bool:
        for pid in house.tree():
            if Path(f"/proc/{pid}/comm").read_text().strip() == name:
                found.append(pid)
        return bool(found)

    house.wait_until(look, what=f"a process {name}")
    return found[0]


def uid_of(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid
