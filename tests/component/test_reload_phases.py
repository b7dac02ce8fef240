"""A reload in the supervisor, with successors that do not get there: nothing of it is left.

The supervisor is the real one and steps through times that it is given; its workers are small
programs. It collects every child of its process, so it runs in one of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent import config
from agent.cli import run as cli_run
from agent.config import NodeConfig
from agent.rootless import outcome, parent, protocol
from agent.rootless.supervise import WORKER_VARIABLE
from agent.rootless.swap import LIMITS_S, Phase

PREPARING_S = LIMITS_S[Phase.PREPARING]
TELLS = f"import os; os.write(int(os.environ['{protocol.TELL_VARIABLE}']), b'%s')"
HOUSE = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
from agent.linux import prctl
from agent.rootless import outcome, settings, sockets, supervise
from agent.rootless.cgroup import CgroupLayout
from agent.rootless.swap import LIMITS_S, Phase

run = Path(sys.argv[1])
house = settings.read(run / settings.CONFIG_NAME)
held = sockets.open_all(house.doors, {})
layout = CgroupLayout(2, False, "/", {"": "/"})
one = supervise.Supervisor(house, layout, held, sockets.passing_pair())
# Stand for containerd and for the worker that serves.
ends_with_us = lambda: prctl.die_with_parent(signal.SIGKILL)
sleepers = [subprocess.Popen(["sleep", "1000"], preexec_fn=ends_with_us) for _ in range(2)]
for daemon, sleeper in zip((one.containerd, one.worker), sleepers):
    daemon.started(sleeper.pid, 100.0)
    daemon.became_ready(100.0)
hear, tell = os.pipe(), os.pipe()
os.set_blocking(hear[0], False)
one.process = one.workers.restored([sleepers[1].pid, hear[0], tell[1]])
outcome.begin(run)
until = time.monotonic() + 20

def end_all():
    for sleeper in sleepers:
        os.kill(sleeper.pid, signal.SIGKILL)
        os.waitpid(sleeper.pid, 0)
"""
STEPS = """
one._begin_reload(100.0)
successor = one.successor.pid
hangs = sys.argv[2] == "hangs"
if hangs:
    one._step(100.0 + LIMITS_S[Phase.PREPARING] - 0.01)
    assert (one.swap.phase, one.successor.pid) == (Phase.PREPARING, successor)
    assert outcome.read(run).state == outcome.RUNNING
    one._step(100.0 + LIMITS_S[Phase.PREPARING])
while one.successor is not None and time.monotonic() < until:
    one._wait(0.1)
    one._step(100.0)
assert one.successor is None and one.swap.phase is Phase.IDLE
assert one.process.pid == one.worker.pid == sleepers[1].pid
assert one.held is one.wanted is held
try:
    os.kill(successor, 0)
    raise SystemExit("the successor lives")
except ProcessLookupError:
    pass
for sleeper in sleepers:
    os.kill(sleeper.pid, 0)
end_all()
"""
LOST_AFTER_EXEC = """
one._begin_reload(100.0)
one.swap.resume(100.0)  # the worker before was told to hand over
os.kill(one.successor.pid, signal.SIGKILL)
while one.successor is not None and time.monotonic() < until:
    one._wait(0.1)
    one._step(100.0)
before = one.process.pid
assert one.swap.phase is Phase.HANDING_OVER and one.worker.pid == before
os.write(hear[1], b"HANDED_OVER\\n")
one._wait(10)
assert one.swap.phase is Phase.IDLE and before in one.workers.retiring
one._step(101.0)
assert one.process.pid == one.worker.pid != before
os.kill(one.worker.pid, signal.SIGKILL)
end_all()
"""
LATE_HANDED_OVER = """
os.write(hear[1], b"HANDED_OVER\\n")
one._wait(10)
assert one.process is None and one.worker.due(100.0)
assert list(one.workers.retiring) == [sleepers[1].pid]
end_all()
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    config = NodeConfig.model_validate(
        {
            "paths": {"run": str(tmp_path), "data": str(tmp_path)},
            "invoke": {"listen": "", "socket": ""},
            "admin": {"listen": "", "socket": ""},
            "grpc": {"socket": "", "readonly_socket": ""},
        }
    )
    (tmp_path / "config.json").write_text(config.model_dump_json())
    return tmp_path


REPLACED = """
one._begin_reload(100.0)
one.swap.advance(100.0)
trial, other = (subprocess.Popen(["true"]) for _ in range(2))
one.trial, one.workers.retiring = trial.pid, {other.pid: 1e9}
for ended in (trial, other):
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
order = supervise.ending.reap
supervise.ending.reap = lambda: sorted(order(), key=lambda one: one[0] != trial.pid)
one.inbox.asked.append(signal.SIGHUP)  # came meanwhile
execs = []
os.execv = lambda *argv: execs.append(json.loads(os.environ[supervise.replacing.STATE_VARIABLE]))
one._step(100.0)
[state] = execs
assert state["again"] is True and state["retiring"] == {}
assert state["successor"][0] == one.successor.pid
# A worker whose pipe is closed already is one all the same.
closed = one.workers.restored([sleepers[1].pid, -1, -1])
one.workers.hear(closed)
one.workers.forget(closed)
os.kill(one.successor.pid, signal.SIGKILL)
end_all()
"""
STOPPED_IN_TRIAL = """
one._begin_reload(100.0)
one.swap.advance(100.0)
trial = subprocess.Popen(["true"])
os.waitid(os.P_PID, trial.pid, os.WEXITED | os.WNOWAIT)
leaver = subprocess.Popen(["sleep", "1000"], preexec_fn=ends_with_us)
one.trial, one.workers.retiring = trial.pid, {leaver.pid: 1e9}
supervise.ending.end_rest = supervise.ending.clear = lambda *_: None
os.execv = lambda *_: os._exit(3)
one._stop()
assert not one.workers.retiring and one.swap.phase is Phase.IDLE
"""

CORRECTED_MEANWHILE = """
force = (run / settings.CONFIG_NAME).read_text()
files = [force + " " * number for number in range(3)]
fresh = run / settings.NEXT_CONFIG_NAME
fresh.write_text(files[1])
one._begin_reload(100.0)
environment = Path(f"/proc/{one.successor.pid}/environ").read_text
while "KINDLING_CONFIG" not in environment() and time.monotonic() < until:
    time.sleep(0.01)
[told] = [v for v in environment().split("\\0") if v.startswith("KINDLING_CONFIG=")]
assert Path(told.split("=")[1]).read_text() == files[1]
fresh.write_text(files[2])
if sys.argv[2] == "fails":
    one._step(100.0 + LIMITS_S[Phase.PREPARING])
    while one.successor is not None and time.monotonic() < until:
        one._wait(0.1)
        one._step(100.0)
    assert (run / settings.CONFIG_NAME).read_text() == force
else:
    one.swap.advance(100.0)
    os.execv = lambda *_: None
    one._tried(0)
    assert (run / settings.CONFIG_NAME).read_text() == files[1]
    os.kill(one.successor.pid, signal.SIGKILL)
assert fresh.read_text() == files[2]
assert not (run / settings.TRYING_CONFIG_NAME).exists()
end_all()
"""

NOTHING_LEFT = """
def nothing(*_):
    raise OSError(12, "Cannot allocate memory")

what, force = sys.argv[2], (run / settings.CONFIG_NAME).read_text()
(run / settings.NEXT_CONFIG_NAME).write_text(force + " ")
descriptors = len(os.listdir("/proc/self/fd"))
real = os.fork
if what == "fork":
    os.fork = nothing
    one._begin_reload(100.0)
    assert len(os.listdir("/proc/self/fd")) == descriptors
else:
    one._begin_reload(100.0)
    if what == "trial":
        os.fork = nothing
    one._try_own_code(100.0)
    if what == "exec":
        os.kill(one.trial, signal.SIGKILL)
        os.waitpid(one.trial, 0)
        os.execv = nothing
        one._tried(0)
os.fork = real
while one.successor is not None and time.monotonic() < until:
    one._wait(0.1)
    one._step(100.0)
assert one.successor is None and one.swap.phase is Phase.IDLE
assert one.process.pid == one.worker.pid == sleepers[1].pid
assert (run / settings.CONFIG_NAME).read_text() == force
assert not any(os.get_inheritable(fd) for fd in (hear[0], tell[1]))
assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])
assert supervise.replacing.STATE_VARIABLE not in os.environ
end_all()
"""
OUTSIDE = """
import json, os, signal, subprocess, sys
from pathlib import Path
from agent.rootless import outcome, parent, settings

run = Path(sys.argv[1])
def nothing(*_, **__):
    raise OSError(12, "Cannot allocate memory")

config = run / settings.CONFIG_NAME
held = parent.Inherited(str(config), "", os.open(config, os.O_RDONLY), [], rootlesskit=1 << 30)
if sys.argv[2] == "become":
    os.execv = nothing
    parent.main = lambda argv: print(argv, parent.take_held().refused)
    parent.become(config, held)
one = parent.Parent(settings.read(config), held)
subprocess.run = nothing
if sys.argv[2] == "exec":
    subprocess.run = lambda argv, **_: subprocess.CompletedProcess(argv, 0)
    os.execv = nothing
one._reload()
print(outcome.read(run).state, outcome.read(run).reason)
assert not os.get_inheritable(held.lock) and parent.HELD_VARIABLE not in os.environ
assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])
"""
SLEEPS = "import time; time.sleep(1000)"


def take(
    steps: str, run: Path, case: str = "", program: str = SLEEPS, house: str = HOUSE
) -> subprocess.CompletedProcess[str]:
    """Take these steps in a house whose new workers are this program."""
    return subprocess.run(
        [sys.executable, "-c", house + steps, str(run), case],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {WORKER_VARIABLE: json.dumps([sys.executable, "-c", program])},
        cwd=Path(__file__).parents[2],
    )


BROKEN = {
    "ends at once": ("import sys; sys.exit(3)", "ended with exit status 3: its last words"),
    "is no program": ("(", "ended with exit status 1"),
    "says why and ends": (TELLS % "FAILED no such module\\n", "the new worker: no such module"),
    "is killed": ("import os; os.kill(os.getpid(), 9)", "ended with signal 9 (SIGKILL)"),
    "hangs": (SLEEPS, f"preparing took longer than {PREPARING_S:g} s"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_successor_that_does_not_get_there_changes_nothing(run: Path, case: str) -> None:
    program, reason = BROKEN[case]
    before = sorted(path.name for path in run.iterdir())
    done = take(STEPS, run, case, program)
    assert done.returncode == 0, done.stderr
    ended = outcome.read(run)
    assert (ended.number, ended.state) == (1, outcome.FAILED)
    assert reason in ended.reason
    assert ended.reason.endswith(f"; {outcome.AS_IT_WAS}")
    assert f"reload failed: {ended.reason}\n" in done.stderr
    assert sorted({path.name for path in run.iterdir()} - {outcome.NAME}) == before


def test_a_successor_lost_during_the_hand_over_is_followed_by_another_worker(run: Path) -> None:
    done = take(LOST_AFTER_EXEC, run)
    assert done.returncode == 0, done.stderr
    ended = outcome.read(run)
    assert ended.state == outcome.FAILED
    assert "ended with signal 9 (SIGKILL)" in ended.reason
    assert ended.reason.endswith("; a worker of the installed code is started again")


def test_a_worker_that_hands_over_when_no_reload_is_under_way_is_followed_by_another(
    run: Path,
) -> None:
    done = take(LATE_HANDED_OVER, run)
    assert done.returncode == 0, done.stderr


def test_the_code_that_replaces_this_one_knows_every_end_and_every_wish(run: Path) -> None:
    done = take(REPLACED, run)
    assert done.returncode == 0, done.stderr


def test_a_stop_during_a_trial_is_not_lost_in_the_code_that_was_tried(run: Path) -> None:
    done = take(STOPPED_IN_TRIAL, run)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("case", ["fails", "succeeds"])
def test_a_file_that_comes_during_a_reload_is_the_next_ones(run: Path, case: str) -> None:
    done = take(CORRECTED_MEANWHILE, run, case)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("what", ["fork", "trial", "exec"])
def test_a_reload_for_which_there_is_no_memory_changes_nothing(run: Path, what: str) -> None:
    done = take(NOTHING_LEFT, run, what)
    assert done.returncode == 0, done.stderr
    ended = outcome.read(run)
    assert ended.state == outcome.FAILED
    assert "Cannot allocate memory" in ended.reason
    assert ended.reason.endswith(f"; {outcome.AS_IT_WAS}")


@pytest.mark.parametrize("what", ["run", "exec", "become"])
def test_a_reload_for_which_there_is_no_memory_outside_is_refused(run: Path, what: str) -> None:
    done = take(OUTSIDE, run, what, house="")
    assert done.returncode == 0, done.stderr
    assert "Cannot allocate memory" in done.stdout


def test_a_reload_that_finds_the_disk_full_is_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    became: list[parent.Inherited] = []

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    held = parent.Inherited(str(run / "config.json"), "", -1, [], rootlesskit=1)
    node = NodeConfig.model_validate_json((run / "config.json").read_bytes())
    monkeypatch.setattr(parent, "take_held", lambda: held)
    monkeypatch.setattr(parent, "become", lambda _, held: became.append(held))
    monkeypatch.setattr(config, "load", lambda _: node)
    monkeypatch.setattr(cli_run, "_refuse_root", lambda: None)
    monkeypatch.setattr(cli_run, "_write", full)
    assert cli_run.command.callback is not None
    cli_run.command.callback(None, False)
    assert [one.refused for one in became] == ["[Errno 28] No space left on device"]


def test_a_release_whose_modules_cannot_be_imported_says_which() -> None:
    """The real worker's entry, with an `agent.app` that breaks."""
    reader, writer = os.pipe()
    code = (
        "import sys\n"
        "class Broken:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'agent.app':\n"
        "            raise ModuleNotFoundError('no module named missing')\n"
        "sys.meta_path.insert(0, Broken())\n"
        "sys.argv = ['kindling', 'worker']\n"
        "from agent.cli.main import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {protocol.TELL_VARIABLE: str(writer)},
        pass_fds=[writer],
        cwd=Path(__file__).parents[2],
    )
    os.close(writer)
    with os.fdopen(reader, "rb") as told:
        assert told.read() == b"FAILED ModuleNotFoundError: no module named missing\n"
    assert done.returncode == 1
    assert "Traceback" in done.stderr
