"""The init in a pid namespace of its own: who is told what, who is waited for, how it ends."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import pytest

from tests.component.init_house import SOURCE, apart, build, town

PARENT_THAT_LEAVES = (
    "import signal, subprocess, sys\n"
    "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
    "subprocess.Popen(['sh', '-c', 'APP SIGTERM'])\n"
    "signal.pause()"
)
# Each as the program, and what the init ends with: the program's own status.
CHAINS = {
    "the program itself": (["sh", "-c", "exec APP SIGTERM"], 7),
    "behind a shell": (["sh", "-c", "APP SIGTERM; true"], 143),
    "behind two shells": (["sh", "-c", "sh -c 'APP SIGTERM; true'; true"], 143),
    "in the background": (["sh", "-c", "APP SIGTERM & wait"], 143),
    "a shell with a trap": (
        ["bash", "-c", "trap 'echo trapped; exit 5' TERM; APP SIGTERM & wait"],
        5,
    ),
    "a shell that passes it on": (
        ["bash", "-c", "trap 'kill $!; wait $!; exit $?' TERM; APP SIGTERM & wait"],
        7,
    ),
    "a parent that leaves at once": ([sys.executable, "-c", PARENT_THAT_LEAVES], 0),
    "a session of its own": (["sh", "-c", "setsid APP SIGTERM & wait"], 143),
    "a group of its own": (["bash", "-c", "set -m; APP SIGTERM & wait"], 143),
    "a daemon": (["sh", "-c", "(setsid sh -c 'APP SIGTERM &') & exec tail -f /dev/null"], 143),
}
# Once it says "ready" the job has signal handlers of its own and no longer the shell's.
IDLE = "sh -c 'echo ready; exec sleep 1000' & wait"
only_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can give another user's program a capability"
)


@pytest.fixture(scope="module")
def init(tmp_path_factory):
    return build(tmp_path_factory.mktemp("init"))


@pytest.fixture
def run(init, tmp_path):
    return partial(town, init, tmp_path)


@pytest.mark.parametrize("chain", CHAINS)
def test_after_term_nobody_is_killed_before_it_has_said_bye(run, chain):
    argv, status = CHAINS[chain]
    with run(argv) as place:
        place.hear("up")
        place.send(signal.SIGTERM)
        place.hear("told SIGTERM")
        place.let_go()
        place.hear("bye")
        assert place.ended() == status
        assert place.said.count("told SIGTERM") == 1


def test_several_are_waited_for_to_the_last(run):
    with run(["sh", "-c", "APP SIGTERM & APP SIGTERM & APP SIGTERM; true"]) as place:
        place.hear("up", 3)
        place.send(signal.SIGTERM)
        place.hear("told SIGTERM", 3)
        place.let_go(3)
        assert place.ended() == 143
        assert place.said.count("bye") == 3


def test_who_ends_at_term_is_not_waited_for(run):
    with run(["sh", "-c", "sleep 1000 & sleep 1000 & echo up; wait"]) as place:
        place.hear("up")
        place.send(signal.SIGTERM)
        assert place.ended() == 143


@pytest.mark.parametrize(
    ("stop", "handled", "heard"),
    [
        (signal.SIGQUIT, "SIGQUIT SIGTERM", "SIGQUIT"),
        (signal.SIGWINCH, "SIGTERM", "SIGTERM"),
        (signal.SIGUSR1, "SIGUSR1 SIGTERM", "SIGUSR1"),
        (signal.SIGRTMIN + 3, "SIGTERM", "SIGTERM"),
    ],
)
def test_the_images_stop_signal_reaches_who_handles_it_and_term_the_others(
    run, stop, handled, heard
):
    # The shell in between ends at anything that ends it, so the program is another one.
    leaves = f"trap 'exit 3' {int(stop)} TERM; APP {handled} & wait"
    with run(["bash", "-c", leaves], stop=stop) as place:
        place.hear("up")
        place.send(stop)
        place.hear(f"told {heard}")
        place.let_go()
        assert place.ended() == 3
        assert place.said.count("bye") == 1


# What the kernel does with them ends no process that has no handler.
HARMLESS = ("SIGCHLD", "SIGCONT", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGURG", "SIGWINCH")


@pytest.mark.parametrize("name", HARMLESS)
@pytest.mark.parametrize("handled", [True, False])
def test_a_stop_signal_that_ends_nobody_is_term_for_a_program_without_a_handler(run, name, handled):
    stop = signal.Signals[name]
    names = f"{name} SIGTERM" if handled else "SIGTERM"
    with run(["sh", "-c", f"exec APP {names}"], stop=stop) as place:
        place.hear("up")
        place.send(stop)
        place.hear(f"told {name if handled else 'SIGTERM'}")
        place.let_go()
        assert place.ended() == 7


def test_a_harmless_signal_that_stops_nothing_is_passed_on_as_it_is(run):
    with run(["sh", "-c", "exec APP SIGTERM"]) as place:
        place.hear("up")
        place.send(signal.SIGWINCH)
        place.send(signal.SIGUSR2)
        assert place.ended() == 128 + signal.SIGUSR2
        assert "told SIGTERM" not in place.said


def test_a_child_that_ends_by_itself_is_no_stop(run):
    with run(["sh", "-c", "(sleep 0; exit 1) & exec APP SIGTERM"], stop=signal.SIGCHLD) as place:
        place.hear("up")
        place.send(signal.SIGTERM)
        place.hear("told SIGTERM")
        place.let_go()
        assert place.ended() == 7
        assert place.said.count("told SIGTERM") == 1


def test_background_jobs_that_a_shell_lets_ignore_the_stop_signal_get_term(run):
    with run(["sh", "-c", "trap 'exit 4' INT; APP SIGTERM & wait"], stop=signal.SIGINT) as place:
        place.hear("up")
        place.send(signal.SIGINT)
        place.hear("told SIGTERM")
        place.let_go()
        assert place.ended() == 4


def test_who_is_born_after_the_stop_is_told_once_its_parent_has_ended(run):
    born = "APP SIGTERM & head -c1 FIFO >/dev/null; exit"
    leaving = f"trap {quoted(born)} TERM; {IDLE}"
    with run(["sh", "-c", f"bash -c {quoted(leaving)}; true"]) as place:
        place.hear("ready")
        place.send(signal.SIGTERM)
        place.hear("up")
        assert "told SIGTERM" not in place.said
        place.let_go()
        place.hear("told SIGTERM")
        place.let_go()
        place.hear("bye")
        assert place.ended() == 143


def test_what_a_program_runs_to_end_well_is_left_alone(run):
    """Others end meanwhile, at which the init looks for who was born."""
    cleaning = "trap 'echo cleaning; sh -c \"head -c1 FIFO >/dev/null; echo cleaned\"; exit' TERM"
    program = f"{cleaning}; {IDLE}"
    with run(["bash", "-c", f"sh -c {quoted(program)}; true"]) as place:
        place.hear("ready")
        place.send(signal.SIGTERM)
        place.hear("cleaning")
        place.send(signal.SIGCHLD)
        place.let_go()
        place.hear("cleaned")
        assert place.ended() == 143


def quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 0", 0), ("exit 3", 3), ("exit 255", 255), ("kill -9 $$", 137), ("kill -15 $$", 143)],
)
def test_a_program_that_ends_by_itself_ends_all_at_once(run, script, status):
    with run(["sh", "-c", f"APP SIGTERM & {script}"]) as place:
        assert place.ended() == status
        assert "bye" not in place.said


def test_a_program_that_is_asked_to_stop_from_inside_ends_as_it_would_alone(run):
    with run(["sh", "-c", "APP SIGTERM & kill -TERM 1; wait"]) as place:
        assert place.ended() == 143
        assert "bye" not in place.said


PASSED_ON = sorted(set(range(1, 65)) - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD} - {32, 33})


def test_every_signal_is_passed_on_to_the_program_and_to_nobody_else(run):
    """32 and 33 are the C library's own, which Python gives no handler."""
    program = (
        "import os, signal\n"
        "def got(number, frame): os.write(1, b'got %d\\n' % number)\n"
        f"for number in {PASSED_ON}: signal.signal(number, got)\n"
        "os.write(1, b'up\\n')\n"
        "while True: signal.pause()"
    )
    others = "APP SIGHUP SIGINT SIGUSR1 SIGTERM SIGRTMIN & "
    with run(["sh", "-c", f"{others} exec {sys.executable} -c {quoted(program)}"]) as place:
        place.hear("up", 2)
        for number in PASSED_ON:
            place.send(number)
            place.hear(f"got {int(number)}")
        assert not [line for line in place.said if line.startswith("told")]


def test_the_program_begins_with_no_signal_blocked_or_ignored_and_leads_its_group(init):
    shown = "grep -E 'Sig(Blk|Ign)' /proc/self/status; cut -d' ' -f1,5 /proc/self/stat"
    ignoring = (
        "import os, signal, sys; signal.signal(1, signal.SIG_IGN); "
        "signal.pthread_sigmask(0, {2, 3}); os.execvp(sys.argv[1], sys.argv[1:])"
    )
    program = [str(init), "15", "sh", "-c", f"exec sh -c {quoted(shown)}"]
    done = subprocess.run(
        [sys.executable, "-c", ignoring, *apart(), *program],
        capture_output=True,
        text=True,
        check=True,
    )
    blocked, ignored, stat = done.stdout.splitlines()
    assert (int(blocked.split()[1], 16), int(ignored.split()[1], 16)) == (0, 0)
    assert stat.split()[1] == "2"


@only_root
def test_the_program_of_a_user_gets_no_capability_of_the_init(init):
    given = ["setpriv", "--reuid=1000", "--inh-caps=+kill", "--ambient-caps=+kill"]
    shown = ["grep", "-E", "Cap(Inh|Prm|Eff|Amb)", "/proc/self/status"]
    for before, held in ([], True), ([str(init), "15"], False):
        done = subprocess.run([*given, *before, *shown], capture_output=True, text=True, check=True)
        sets = [int(line.split()[1], 16) for line in done.stdout.splitlines()]
        assert sets == [(1 << 5 if held else 0)] * 4


@only_root
def test_the_program_of_a_user_may_look_into_the_first_process(init):
    """Scripts write to /proc/1/fd/1; the kernel hides who holds more capabilities than they do."""
    given = ["setpriv", "--reuid=1000", "--inh-caps=+kill", "--ambient-caps=+kill"]
    looks = "readlink /proc/1/fd/1 && cat /proc/1/environ >/dev/null && echo seen"
    done = subprocess.run(
        [*apart(), *given, str(init), "15", "sh", "-c", looks],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.split()[1:]) == (0, ["seen"]), done.stderr


@only_root
def test_a_program_that_has_become_root_is_reached(init, tmp_path):
    """As sudo does; a user's init holds CAP_KILL for it, in all that it tells."""
    given = ["setpriv", "--reuid=1000", "--inh-caps=+kill", "--ambient-caps=+kill"]
    become = "import os, sys; os.setuid(0); os.execvp(sys.argv[1], sys.argv[1:])"
    python = Path(tempfile.mkdtemp(prefix="kd-")) / "python"
    try:
        python.parent.chmod(0o755)
        shutil.copy(os.path.realpath(sys.executable), python)
        python.chmod(0o4755)
        root = [str(python), "-S", "-c", become, "sh", "-c", "APP SIGTERM & APP SIGTERM & wait"]
        with town(init, tmp_path, root, before=given) as place:
            place.hear("up", 2)
            place.send(signal.SIGTERM)
            place.hear("told SIGTERM", 2)
            place.let_go(2)
            assert place.ended() == 143
            assert place.said.count("bye") == 2
    finally:
        shutil.rmtree(python.parent)


def test_orphans_are_collected(run):
    script = "for n in 1 2 3; do (sh -c : &); done; echo up; exec tail -f /dev/null"
    with run(["sh", "-c", script]) as place:
        place.hear("up")
        children = Path(f"/proc/{place.init}/task/{place.init}/children")
        deadline = time.monotonic() + 20
        while len(children.read_text().split()) > 1:
            assert time.monotonic() < deadline, children.read_text()
        place.send(signal.SIGTERM)
        assert place.ended() == 143


def _file(folder: Path, name: str, text: str, mode: int = 0o755) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


REFUSED = {
    "missing": ("/no/such", "", 127, "does not exist"),
    "missing in PATH": ("no-such-program", "", 127, "does not exist"),
    "no interpreter": ("run", "#!/no/such\n", 127, "does not exist"),
    "no directory": ("/etc/passwd/x", "", 127, "is no directory"),
    "no program": ("run", "echo hello\n", 126, "exec format error"),
    "empty": ("run", "", 126, "exec format error"),
    "a directory": ("/etc", "", 126, "permission denied"),
    "empty name": ("", "", 127, "does not exist"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_executed_is_told(run, tmp_path, case):
    name, text, status, words = REFUSED[case]
    if name == "run":
        name = str(_file(tmp_path, "run", text))
    with run([name]) as place:
        assert place.ended() == status
        assert place.said == [
            f"kindling-init: cannot execute {name}: {place.said[0].split(': ')[-1]}"
        ]
        assert words in place.said[0]


def test_a_program_is_found_along_path(init, tmp_path):
    """What may not be executed is passed over, and told when nothing else is found."""
    _file(tmp_path, "a/tool", "#!/bin/sh\necho a\n", 0o644)
    _file(tmp_path, "b/tool", "#!/bin/sh\necho b $#\n")
    _file(tmp_path, "c/only", "", 0o644)
    search = f"{tmp_path}/none:{tmp_path}/a:{tmp_path}/b/:{tmp_path}/c"

    def start(*argv):
        done = subprocess.run(
            [str(init), "15", *argv],
            env={"PATH": search},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    assert start("tool", "x", "y") == (0, "b 2\n", "")
    status, _, said = start("only")
    assert (status, "permission denied" in said) == (126, True)


@pytest.mark.parametrize("words", [(), ("15",), ("TERM", "sh"), ("0", "sh"), ("65", "sh")])
def test_wrong_use_is_told(init, words):
    done = subprocess.run([str(init), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 125
    assert done.stderr.startswith("usage: ")


def test_a_second_compiler_has_nothing_to_say(tmp_path):
    """tcc, which setup brings, warns of little."""
    flags = "-std=c99 -O2 -Wall -Wextra -Wpedantic -Wconversion -Werror -nostdlib -static"
    more = "-ffreestanding -fno-stack-protector -fno-pie -no-pie"
    out = tmp_path / "init"
    subprocess.run(["gcc", *flags.split(), *more.split(), "-o", out, SOURCE], check=True)
    done = subprocess.run([out, "15", "sh", "-c", "exit 9"], check=False)
    assert done.returncode == 9


def test_numbers_in_the_source_are_the_kernels():
    """From the headers that gcc brings (linux-libc-dev)."""
    text = SOURCE.read_text()
    pairs = re.findall(r"\b(SYS_\w+|E[A-Z]+|SIG[A-Z_]+|WNOHANG) = (\d+)", text)
    program = "#include <errno.h>\n#include <signal.h>\n#include <sys/syscall.h>\n"
    program += "#include <sys/wait.h>\n#include <unistd.h>\n"
    for name, value in pairs:
        real = f"SYS_{name[4:].lower()}" if name.startswith("SYS_") else name
        if name not in ("SIGNAL_SET_BYTES", "SIGNALLED"):
            program += f'_Static_assert({real} == {value}, "{name}");\n'
    assert len(pairs) > 20
    done = subprocess.run(
        ["gcc", "-fsyntax-only", "-x", "c", "-D_GNU_SOURCE", "-"],
        input=program,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
