"""The parts of the house on real files, sockets and processes, without namespaces."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time

import pytest

from agent.errors import AlreadyExists, FailedPrecondition, RuntimeUnavailable
from agent.linux import process
from agent.rootless import (
    cgroup,
    child,
    grpc_probe,
    installed,
    leftovers,
    lock,
    mounts,
    notify,
    probe,
    sockets,
)
from agent.rootless.cgroup import CgroupLayout
from agent.rootless.settings import Listener
from agent.rootless.sweep import sweep


@pytest.fixture
def group(tmp_path):
    """A directory that looks like a v1 cgroup tree with one frozen instance."""
    root = tmp_path / "node"
    inner = root / "hello-1"
    inner.mkdir(parents=True)
    (root / "cgroup.procs").write_text("")
    (inner / "cgroup.procs").write_text("")
    (inner / "freezer.state").write_text("FROZEN")
    return root


@pytest.fixture
def sleeper():
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    process.kill()
    process.wait()


# Sweeping


def test_a_sweep_thaws_and_kills_what_is_in_the_tree_and_nothing_else(group, sleeper):
    (group / "hello-1" / "cgroup.procs").write_text(f"{sleeper.pid}\n")
    with subprocess.Popen(["sleep", "1000"]) as other:
        swept = sweep([group], within_s=5)
        assert other.poll() is None
        other.kill()
    assert swept.ended == (sleeper.pid,)
    assert sleeper.wait() == -signal.SIGKILL
    assert (group / "hello-1" / "freezer.state").read_text() == "THAWED"
    assert "ended 1 processes" in swept.sentence()


def test_a_sweep_spares_itself_its_ancestors_and_whom_it_is_told(group, sleeper):
    pids = [os.getpid(), os.getppid(), sleeper.pid]
    (group / "cgroup.procs").write_text("\n".join(map(str, pids)))
    swept = sweep([group], within_s=1, spare=[sleeper.pid])
    assert swept.ended == swept.alive == ()
    assert sleeper.poll() is None


def test_a_pid_that_is_given_to_another_before_its_kill_is_spared(group, sleeper, monkeypatch):
    listed = group / "hello-1" / "cgroup.procs"
    listed.write_text(f"{sleeper.pid}\n")
    real = process.open_pid

    def opened(pid):
        # What had the number has ended by now: the group lists it no more.
        listed.write_text("")
        return real(pid)

    monkeypatch.setattr(process, "open_pid", opened)
    sweep([group], within_s=0)
    assert listed.read_text() == ""
    assert sleeper.poll() is None


def test_a_sweep_removes_empty_groups_and_may_keep_the_roots(tmp_path):
    root = tmp_path / "node"
    (root / "a" / "b").mkdir(parents=True)
    assert sweep([root], within_s=1, keep_roots=True).stayed == ()
    assert list(tmp_path.rglob("*")) == [root]
    assert sweep([root], within_s=1).stayed == ()
    assert not root.exists()


def test_a_group_that_does_not_go_is_in_the_result_in_bounded_time(group):
    swept = sweep([group], within_s=0.05)
    assert group in swept.stayed
    assert "stayed" in swept.sentence()


def test_a_tree_that_does_not_exist_is_clean(tmp_path):
    swept = sweep([tmp_path / "none"], within_s=1)
    assert swept.sentence() == "nothing was left of an earlier run"


# Locks


def test_a_second_agent_is_told_who_has_the_run_directory(tmp_path):
    held = lock.acquire(tmp_path)
    assert lock.holder(tmp_path) == os.getpid()
    with pytest.raises(AlreadyExists, match=f"pid {os.getpid()}"):
        lock.acquire(tmp_path)
    lock.release(tmp_path, held)
    assert lock.holder(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_of_a_dead_agent_blocks_nobody(tmp_path):
    (tmp_path / lock.NAME).write_text("4711\n")
    assert lock.holder(tmp_path) is None
    held = lock.acquire(tmp_path)
    assert (tmp_path / lock.NAME).read_text() == f"{os.getpid()}\n"
    lock.release(tmp_path, held)


def test_a_directory_is_locked_once_and_made_if_missing(tmp_path):
    path = tmp_path / "node"
    assert not lock.is_held(path)
    held = lock.acquire_shared(path, "choose another")
    assert lock.is_held(path)
    with pytest.raises(AlreadyExists, match="choose another"):
        lock.acquire_shared(path, "choose another")
    os.close(held)
    assert not lock.is_held(path)


# Sockets


def door(tmp_path, name="admin", file="a.sock", mode=0o660):
    return Listener(name, str(tmp_path / file), mode)


def test_a_unix_door_listens_with_its_mode_and_replaces_a_stale_socket(tmp_path):
    wanted = door(tmp_path)
    sockets.open_door(wanted).close()
    with sockets.open_door(wanted) as listener:
        assert stat.S_IMODE(os.stat(wanted.address).st_mode) == 0o660
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(wanted.address)
        assert not listener.getblocking()
        assert not listener.get_inheritable()


def test_a_file_that_is_no_socket_is_not_removed(tmp_path):
    wanted = door(tmp_path)
    (tmp_path / "a.sock").write_text("mine")
    with pytest.raises(FailedPrecondition, match=r"a\.sock"):
        sockets.open_door(wanted)
    assert (tmp_path / "a.sock").read_text() == "mine"


def test_a_path_too_long_for_a_socket_is_said(tmp_path):
    with pytest.raises(FailedPrecondition, match="longer than 107 bytes"):
        sockets.open_door(door(tmp_path, file="x" * 120))


def test_a_taken_port_is_named():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(FailedPrecondition, match=address):
            sockets.open_door(Listener("invoke_tcp", address))


def test_a_reload_keeps_what_stays_opens_what_is_new_and_closes_what_goes(tmp_path):
    first = sockets.open_all([door(tmp_path, "a", "a.sock"), door(tmp_path, "b", "b.sock")], {})
    wanted = [door(tmp_path, "a", "a.sock"), door(tmp_path, "b", "c.sock")]
    second = sockets.open_all(wanted, first)
    sockets.close_others(first, second)
    assert second["a"] == first["a"]
    assert second["b"] != first["b"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.sock", "c.sock"]
    for _, descriptor in second.values():
        os.close(descriptor)


def test_when_one_door_cannot_open_those_held_stay_open(tmp_path):
    first = sockets.open_all([door(tmp_path, "a", "a.sock")], {})
    with pytest.raises(FailedPrecondition):
        sockets.open_all([door(tmp_path, "a", "a.sock"), Listener("b", "nonsense")], first)
    os.fstat(first["a"][1])
    os.close(first["a"][1])


# Children


def run_child(argv, **options) -> tuple[int, str]:
    reader, writer = os.pipe()
    environment = {"PATH": os.environ["PATH"], "OUT": str(writer)}
    pid = child.start(argv, environment, keep=[writer], **options)
    os.close(writer)
    with os.fdopen(reader) as output:
        text = output.read()
    return os.waitpid(pid, 0)[1], text


def test_a_child_gets_the_named_descriptors_and_no_others(tmp_path):
    code = (
        "import os\n"
        "names = os.listdir('/proc/self/fd')\n"
        "os.write(int(os.environ['OUT']), ' '.join(names).encode())"
    )
    with (tmp_path / "secret").open("w") as other:
        status, text = run_child([sys.executable, "-c", code])
        assert status == 0
        assert {"0", "1", "2"} < set(text.split())
        assert str(other.fileno()) not in text.split()


def test_a_child_dies_with_its_parent():
    code = (
        "import os, signal, sys\n"
        "from agent.rootless import child\n"
        "print(child.start(['sleep', '1000'], dict(os.environ)), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False
    )
    pid = int(done.stdout)
    deadline = time.monotonic() + 10
    while pid in all_pids() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert pid not in all_pids()


def test_a_program_that_does_not_exist_ends_with_127(capfd):
    status, _ = run_child(["/no/such/program"])
    assert os.waitstatus_to_exitcode(status) == 127
    assert "/no/such/program" in capfd.readouterr().err


def test_a_child_in_its_own_session_is_out_of_reach_of_ctrl_c():
    code = "import os; os.write(int(os.environ['OUT']), str(os.getsid(0) == os.getpid()).encode())"
    assert run_child([sys.executable, "-c", code], new_session=True) == (0, "True")


def all_pids() -> set[int]:
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    text = file.read()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if text.rpartition(")")[2].split()[0] != "Z":
                found.add(int(name))
    return found


# Messages


def test_lines_arrive_and_a_missing_receiver_is_no_failure(tmp_path):
    path = tmp_path / "notify.sock"
    notify.send(str(path), "READY=1")
    with notify.listen(path) as receiver:
        notify.send(str(path), "READY=1", "STATUS=well")
        notify.send(str(path), "STOPPING=1")
        assert notify.receive(receiver) == ["READY=1", "STATUS=well", "STOPPING=1"]
        assert notify.receive(receiver) == []
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_hello_wants_an_answer_in_http2(tmp_path):
    path = tmp_path / "s.sock"
    assert not grpc_probe.serves(path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        assert not grpc_probe.serves(path)


# Clearing up


def test_clearing_keeps_what_is_named_and_removes_links_not_their_targets(tmp_path):
    target = tmp_path / "elsewhere"
    target.mkdir()
    (target / "file").write_text("kept")
    run = tmp_path / "run"
    (run / "deep" / "er").mkdir(parents=True)
    (run / "lock").write_text("")
    (run / "link").symlink_to(target)
    assert leftovers.clear_directory(run, keep=("lock",)) == []
    assert [path.name for path in run.iterdir()] == ["lock"]
    assert (target / "file").read_text() == "kept"
    assert leftovers.clear_directory(tmp_path / "none") == []


def test_slots_are_emptied_but_stay(tmp_path):
    slot = tmp_path / "512" / "0"
    for part in ("upper", "work"):
        (slot / part / "data").mkdir(parents=True)
        (slot / part / "data" / "file").write_text("x")
    (tmp_path / "slots.json").write_text("{}")
    assert leftovers.clear_slots(tmp_path, within_s=5) == 0
    assert list((slot / "upper").iterdir()) == list((slot / "work").iterdir()) == []
    assert (tmp_path / "slots.json").exists()


def test_slots_that_do_not_fit_into_the_time_are_counted(tmp_path):
    (tmp_path / "512" / "0" / "upper" / "data").mkdir(parents=True)
    (tmp_path / "512" / "0" / "work").mkdir()
    assert leftovers.clear_slots(tmp_path, within_s=0) == 1


def test_a_directory_that_is_not_the_hosts_is_refused(tmp_path):
    status = tmp_path.stat()
    mounts.compare({str(tmp_path): [status.st_dev, status.st_ino]})
    with pytest.raises(RuntimeUnavailable, match=str(tmp_path)):
        mounts.compare({str(tmp_path): [status.st_dev, status.st_ino + 1]})


# -- looking at the host


@pytest.mark.parametrize("files", [(), ("memory.memsw.limit_in_bytes",)])
def test_on_v1_swap_is_counted_where_its_file_is(tmp_path, monkeypatch, files):
    for name in files:
        (tmp_path / name).touch()
    monkeypatch.setattr(
        cgroup, "detect", lambda: CgroupLayout(1, False, "/k", {"memory": str(tmp_path)})
    )
    monkeypatch.setattr(probe, "_read", lambda _: "Filename\n")
    assert probe._swap_limit().ok == bool(files)


@pytest.mark.parametrize("layout", [CgroupLayout(2, False, "/k", {"": "/sys/fs/cgroup"}), None])
def test_on_v2_swap_is_always_counted(monkeypatch, layout):
    monkeypatch.setattr(cgroup, "detect", lambda: layout)
    monkeypatch.setattr(probe, "_read", lambda _: "Filename\n")
    assert probe._swap_limit().ok


# Which code goes on


def test_a_reload_goes_on_with_the_environment_that_setup_installed_last(tmp_path, monkeypatch):
    for version in ("old", "new"):
        (tmp_path / "agents" / version / "bin").mkdir(parents=True)
        (tmp_path / "agents" / version / "bin/python").symlink_to(sys.executable)
    link = tmp_path / "venv"
    link.symlink_to("agents/new")
    new = str(tmp_path / "agents/new/bin/python")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "agents/old"))
    assert installed.python() == new
    # Started through the link, from now on it keeps to what that stands for.
    monkeypatch.setattr(sys, "prefix", str(link))
    assert installed.python() == new
    (tmp_path / "agents/new/bin/python").unlink()
    assert installed.python() == sys.executable


def test_where_setup_installed_nothing_a_reload_goes_on_with_the_same_interpreter(monkeypatch):
    monkeypatch.setattr(sys, "prefix", "/home/somebody/checkout/.venv")
    assert installed.python() == sys.executable


def test_a_stop_that_came_before_an_exec_is_obeyed_and_a_later_one_waits_for_it():
    code = """
import os, signal
from agent.rootless.signals import Inbox
inbox = Inbox()
os.kill(os.getpid(), signal.SIGTERM)
assert not inbox.blocked() and inbox.asked.pop() == signal.SIGTERM
assert inbox.blocked()
os.kill(os.getpid(), signal.SIGTERM)
assert not inbox.asked and signal.sigpending() == {signal.SIGTERM}
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=20, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
