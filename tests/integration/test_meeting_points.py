"""Nothing that the user kindling can write steers root: one test per row of THREAT_MODEL's table.

Each puts what a hostile agent could put where root's programs meet it, and looks at what root did.
All of it happens in mount namespaces over scratch places, or below a directory of the test's own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from agent.rootless import lock
from tests.integration.running import as_kindling, own
from tests.integration.test_setup import REPO, in_namespace, run, with_parts

pytestmark = pytest.mark.integration

AS_KINDLING = " ".join(as_kindling())
# Setup's parts on a disk of the test's own, beside a file of root's that nobody may touch.
VICTIM = f"""
    as_kindling() {{ {AS_KINDLING} "$@"; }}
    mkdir -m 0700 "$TMP/disk/victim"; echo precious >"$TMP/disk/victim/file"
    mkdir -m 1770 "$TMP/disk/state"; chgrp kindling "$TMP/disk/state"
    state=$TMP/disk/state
    untouched() {{
      [ "$(stat -c '%U %G %a' "$TMP/disk/victim")" = 'root root 700' ]
      [ "$(cat "$TMP/disk/victim/file")" = precious ] && [ "$(ls "$TMP/disk/victim")" = file ]
    }}
"""


def hostile(script: str) -> subprocess.CompletedProcess[str]:
    return in_namespace(with_parts(VICTIM + script))


def test_a_slot_is_the_users_only_once_root_has_done_with_it():
    # Wrappers that look at the moments between the steps: what the user owns then, it can replace
    # by a link, which the next step of root's would follow.
    done = hostile(
        """
        users() { find "$@" -user kindling; }
        mkfs.ext4() { users "$TMP" >&2; command mkfs.ext4 "$@"; }
        chown() { echo "chown $*"; users "${@: -1}" -maxdepth 0 >&2; command chown "$@"; }
        slot_room "$state/slots" 1 0
        take_back "$state/slots"
        """
    )
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "warning" not in line] == []
    slot = [line for line in done.stdout.splitlines() if line.startswith("chown -h")]
    assert len(slot) == 1
    assert slot[0].split()[-1].endswith("/slots/512/0"), "the top is given away last"


@pytest.mark.parametrize(
    "planted",
    [
        'ln -s "$TMP/disk/victim" "$state/slots"',
        'mkdir "$state/slots"',
        'mkdir "$state/kept"; as_kindling ln -s "$TMP/disk/victim" "$state/slots"',
    ],
)
def test_a_slots_directory_that_the_user_put_there_is_refused(planted):
    done = hostile(f'as_kindling {planted}; (slot_room "$state/slots" 1 0) || true; untouched')
    assert done.returncode == 0, done.stderr
    assert "state/slots belongs to kindling" in done.stderr
    assert "--slots-dir" in done.stderr


def test_a_slots_directory_below_one_of_the_users_is_refused():
    done = hostile(
        """
        as_kindling mkdir "$state/images"
        (slot_room "$state/images/deep/slots" 1 0) || true
        [ ! -e "$state/images/deep" ]; untouched
        """
    )
    assert done.returncode == 0, done.stderr
    assert "state/images belongs to kindling" in done.stderr


@pytest.mark.parametrize(
    "root_does", ['slot_room "$state/slots" 0 0', 'take_back "$state/way/slots"']
)
def test_nothing_is_removed_by_way_of_a_link_of_the_users(root_does):
    done = hostile(
        f"""
        mkdir -p "$TMP/disk/other/512/0" "$TMP/disk/other/slots"
        touch "$TMP/disk/other/512/0.img" "$TMP/disk/other/slots/file"
        as_kindling ln -s "$TMP/disk/other" "$state/slots"
        as_kindling ln -s "$TMP/disk/other" "$state/way"
        ({root_does}) || true
        [ -e "$TMP/disk/other/512/0.img" ] && [ -d "$TMP/disk/other/512/0" ]
        [ -e "$TMP/disk/other/slots/file" ]
        """
    )
    assert done.returncode == 0, done.stderr
    assert "belongs to kindling" in done.stderr


def test_taking_back_follows_no_link_of_the_users():
    done = hostile(
        """
        as_kindling mkdir -p "$state/containerd/a"
        as_kindling ln -s "$TMP/disk/victim" "$state/containerd/a/link"
        as_kindling ln -s "$TMP/disk/victim" "$state/link"
        take_back "$state"; [ ! -e "$state" ]; untouched
        """
    )
    assert done.returncode == 0, done.stderr


# What the file that should hold the agent's pid may hold instead; $1 is root's shell, $2 its file.
LOCKS = {
    "a pid of root's": 'echo "$1" >lock',
    "a group": "echo -1 >lock",
    "several": 'echo "$1 $1" >lock',
    "words": "echo '$(touch /tmp/kindling-steered)' >lock",
    "a link to root's file": 'ln -s "$2" lock',
    "a pipe": "mkfifo lock",
    "nothing": "true",
}


@pytest.mark.parametrize("planted", LOCKS.values(), ids=LOCKS)
def test_a_lock_file_of_the_users_chooses_nobody_that_root_signals(planted):
    done = hostile(
        f"""
        RUNDIR=$state/run; install -d -o kindling -g kindling -m 0750 "$RUNDIR"
        trap 'echo signalled; exit 1' TERM
        (cd "$RUNDIR"; as_kindling bash -s "$$" "$TMP/disk/victim/file") <<'PLANTED'
        {planted}
PLANTED
        agent_pid || echo 'no pid'
        if signal_agent TERM; then echo sent; fi
        [ ! -e /tmp/kindling-steered ]; untouched
        """
    )
    assert done.returncode == 0, done.stdout + done.stderr
    words = done.stdout.split()
    assert "sent" not in words
    assert "signalled" not in words
    assert "precious" not in done.stdout + done.stderr


def test_the_scripts_that_stop_and_reload_the_agent_signal_it_as_its_user():
    for name in ("demo", "test", "slots", "host", "undo"):
        text = (REPO / f"setup/{name}.sh").read_text()
        assert "kindling/lock" not in text, name
        assert "RUN/lock" not in text, name


def test_a_signal_reaches_the_agent_itself():
    done = hostile(
        f"""
        RUNDIR=$state/run; install -d -o kindling -g kindling -m 0750 "$RUNDIR"
        {AS_KINDLING} bash -c 'exec 8>"$1"; flock 8; echo $$ >&8; exec sleep 600' hold \
          "$RUNDIR/lock" & agent=$!
        until [ "$(agent_pid)" = "$agent" ]; do sleep 0.05; done
        agent_alive
        signal_agent KILL; wait "$agent" || echo "ended with $?"
        if agent_alive; then echo alive; fi
        """
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "ended with 137\n"


def test_what_runs_as_the_user_has_neither_roots_terminal_nor_setups_lock(tmp_path):
    # script(1) gives it a terminal, as root's shell has one; descriptor 9 is setup's lock.
    asks = tmp_path / "asks"
    asks.write_text(
        f"""
        . {REPO}/setup/lib.sh; . {REPO}/setup/agent.sh
        exec 9>/dev/full
        : </dev/tty && echo terminal >{tmp_path}/roots
        as_agent sh -c 'for n in 0 1 2 9; do readlink /proc/self/fd/$n; done
          if : </dev/tty; then echo terminal; fi' | cat >{tmp_path}/users
        """
    )
    done = run("script", "-qec", f"bash -eu {asks}", "/dev/null")
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "roots").read_text() == "terminal\n"
    first, *others = (tmp_path / "users").read_text().splitlines()
    assert first == "/dev/null"
    assert [name for name in others if not name.startswith("pipe:")] == ["/dev/null"]


def test_setups_lock_is_not_where_the_user_can_put_a_link():
    done = hostile(
        """
        mount -t tmpfs -o mode=755 tmpfs /run; mkdir -m 1777 /run/lock
        as_kindling ln -s "$TMP/disk/victim/file" /run/lock/kindling-setup.lock
        alone; untouched
        [ "$(as_kindling test -w "${LOCK%/*}" || echo safe)" = safe ]
        """
    )
    assert done.returncode == 0, done.stderr


def test_what_the_agent_says_cannot_speak_to_roots_terminal():
    done = hostile(
        r"""
        printf 'a\033[2Jb\tc\n\007d ü\r\n' | plain
        """
    )
    assert done.stdout == "a[2Jb\tc\nd ü\n"


@pytest.fixture
def place():
    """A directory that the user can reach, as it cannot reach pytest's."""
    with tempfile.TemporaryDirectory(prefix="kd-", dir="/tmp") as made:
        path = Path(made)
        path.chmod(0o755)
        own(path)
        yield path


def test_the_leak_check_runs_no_program_that_the_user_names(place):
    home = place / "run"
    home.mkdir()
    (place / "bin").mkdir()
    planted = place / "bin" / "ctr"
    planted.write_text(f"#!/bin/sh\nid -u >>{place}/ran\n")
    planted.chmod(0o755)
    own(home)
    config = {
        "node": {"name": "steered"},
        "paths": {"lib": str(place), "slots": str(place)},
        "network": {"warm_slots": 1},
    }
    (home / "config.json").write_text(json.dumps(config))
    holder = subprocess.Popen(
        [
            *(*as_kindling(), "sh", "-c", 'exec 8>"$1"; flock 8; echo 1 >&8; exec sleep 600'),
            *("hold", home / "lock"),
        ]
    )
    try:
        while lock.holder(home) != 1:
            assert holder.poll() is None
        done = run("env", "-C", REPO, sys.executable, "-m", "tests.leak", "--run", home)
        assert "ctr" in done.stderr, "there is no containerd to ask"
        assert not (place / "ran").exists()
    finally:
        holder.kill()
        holder.wait()
