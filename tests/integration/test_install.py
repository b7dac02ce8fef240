"""setup/install.sh: the agent is replaced by one rename, never taken apart where somebody runs it.

What is installed over and over is in a mount namespace of its own, over a copy of the host's
/usr/lib/kindling, and in a pid namespace, so that agents of other tests do not keep their version
there; one test replaces the host's own, and puts this working tree's back.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.integration.running import install
from tests.integration.test_setup import LIB, REPO, in_namespace

pytestmark = pytest.mark.integration

PARTS = ("agent", "init", "setup", "pyproject.toml", "requirements.lock", "requirements-dev.lock")
# A copy that may be changed, and /usr/lib/kindling as it is, with changes that nobody else sees.
SCRATCH = f"""
    top=$(mktemp -d); mount -t tmpfs tmpfs "$top"; mkdir "$top/upper" "$top/work" "$top/repo"
    mount -t overlay -o "lowerdir={LIB},upperdir=$top/upper,workdir=$top/work" overlay {LIB}
    cp -r {" ".join(str(REPO / part) for part in PARTS)} "$top/repo"
    trap 'umount {LIB}; umount "$top"; rmdir "$top"' EXIT
    change() {{ echo "# $1" >>"$top/repo/agent/cli/__init__.py"; }}
    install() {{ "$top/repo/setup/install.sh"; }}
    agents() {{ ls {LIB}/agents; }}
    current() {{ basename "$(readlink -f {LIB}/venv)"; }}
"""


def scratch(script: str) -> subprocess.CompletedProcess[str]:
    done = in_namespace(SCRATCH + script, "--pid", "--fork", "--mount-proc")
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(autouse=True)
def _alone(installed: None) -> None:
    """The package is this tree's, and no other session replaces it meanwhile."""


def copy_of_the_tree(place: Path, line: str) -> Path:
    """Return a working tree that differs from this one by a line."""
    for part in PARTS:
        source, target = REPO / part, place / part
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    with (place / "agent/cli/__init__.py").open("a") as file:
        file.write(f"# {line}\n")
    return place


def arguments(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def test_a_command_that_starts_meanwhile_finds_a_whole_agent():
    done = scratch(
        f"""
        (set +e; until [ -e "$top/enough" ]; do
           {LIB}/venv/bin/kindling undrain --help >/dev/null 2>>"$top/errors" || echo failed
         done >"$top/failures") &
        change one; install >/dev/null; change two; install >/dev/null
        touch "$top/enough"; wait
        cat "$top/failures" "$top/errors"
        """
    )
    assert done.stdout == ""


def test_the_last_agent_and_one_that_still_runs_stay_and_older_ones_go():
    # What sleeps only has to be there until it is killed, and `wait` tells that it was.
    done = scratch(
        f"""
        first=$(current)
        {LIB}/venv/bin/python -c 'import time; time.sleep(600)' >/dev/null & unnamed=$!
        {LIB}/agents/$first/bin/python -c 'import time; time.sleep(600)' >/dev/null & running=$!
        for n in one two three; do change $n; before=$(current); install >/dev/null; done
        [ "$(agents | sort)" = "$(printf '%s\\n' "$first" "$before" "$(current)" | sort)" ]
        kill $running $unnamed; wait $running $unnamed || true
        install >/dev/null
        [ "$(agents | sort)" = "$(printf '%s\\n' "$before" "$(current)" | sort)" ]
        [ "$(ls {LIB}/deps | wc -l)" = 1 ]
        """
    )
    assert done.stderr == ""


def test_an_installation_that_was_cut_short_is_made_again_and_was_never_seen():
    scratch(
        f"""
        before=$(current)
        change one; install >"$top/log" 2>&1 & installing=$!
        until [ "$(agents | wc -l)" = 2 ]; do sleep 0.01; done
        # It may have just ended, or be between two children: either is fine here.
        pkill -9 -P $installing || true; kill -9 $installing || true; wait $installing || true
        [ "$(current)" = "$before" ]
        {LIB}/venv/bin/kindling --version
        install
        [ "$(current)" != "$before" ]
        {LIB}/venv/bin/kindling --version
        """
    )


def test_the_directory_that_earlier_versions_made_gives_way_to_the_link():
    done = scratch(
        f"""
        real=$(readlink -f {LIB}/venv); rm {LIB}/venv; cp -a "$real" {LIB}/venv
        touch {LIB}/venv/of-an-earlier-version
        install >/dev/null
        [ -L {LIB}/venv ]; [ ! -e {LIB}/venv/of-an-earlier-version ]; [ ! -e {LIB}/venv.new ]
        {LIB}/venv/bin/kindling --version
        """
    )
    assert done.stdout.startswith("kindling ")


def test_going_back_to_the_last_version_builds_nothing():
    done = scratch(
        """
        before=$(current)
        cp "$top/repo/agent/cli/__init__.py" "$top/kept"; change one; install >/dev/null
        cp "$top/kept" "$top/repo/agent/cli/__init__.py"; install
        [ "$(current)" = "$before" ]
        """
    )
    assert "install the agent" not in done.stdout
    assert "turn /usr/lib/kindling/venv over" in done.stdout


def test_any_umask_gives_an_agent_that_its_user_can_run():
    for mask in ("000", "077"):
        done = scratch(
            f"""
            umask {mask}; change one; install >/dev/null
            as_kindling() {{ setpriv --reuid=kindling --regid=kindling --init-groups "$@"; }}
            as_kindling {LIB}/venv/bin/kindling --version
            find {LIB}/agents/$(current) ! -type l -perm /022
            """
        )
        assert done.stdout.startswith("kindling ")
        assert len(done.stdout.splitlines()) == 1, done.stdout


SHOWN = f"""
    shown() {{ {LIB}/venv/bin/python -I -c '
import agent.gateway.wire.head as head
from agent.rootless.installed import form
print(head.__file__.rpartition(".")[2], form().name, form().wanted, form().why)'; }}
"""


def test_what_a_warm_call_touches_is_compiled_once_for_the_same_sources():
    done = scratch(
        SHOWN
        + f"""
        change one; install >/dev/null; shown
        kept=$(ls -i {LIB}/compiled); change two; install >/dev/null; shown
        [ "$(ls -i {LIB}/compiled)" = "$kept" ]
        """
    )
    assert done.stdout.splitlines() == ["so compiled True "] * 2


def test_plain_python_is_installed_when_asked_for_and_nothing_compiled_is_left():
    done = scratch(
        SHOWN
        + f"""
        change one; install >/dev/null
        export KINDLING_COMPILED=0; install >/dev/null; shown
        find {LIB}/agents/$(current)/ -path '*/agent/*.so' -o -name '*__mypyc*.so'
        {LIB}/venv/bin/kindling check | grep '^warm path'
        unset KINDLING_COMPILED; install >/dev/null; shown
        """
    )
    why = "as KINDLING_COMPILED=0 asked for"
    expected = [f"py pure False {why}", f"warm path: ok, pure: {why}", "so compiled True "]
    assert done.stdout.splitlines() == expected


def test_what_cannot_be_compiled_is_installed_as_plain_python_with_the_way_out():
    done = scratch(
        SHOWN
        + f"""
        change one; gcc=$(readlink -f "$(command -v gcc)"); mount --bind /dev/null "$gcc"
        install >/dev/null; shown; {LIB}/venv/bin/kindling check | grep '^warm path'
        umount "$gcc"; install >/dev/null; shown
        """
    )
    why = (
        "there is no C compiler with Python's headers: "
        "run 'apt-get install gcc libc6-dev python3-dev'"
    )
    pure, check, compiled = done.stdout.splitlines()
    assert pure == f"py pure True {why}"
    assert check == f"warm path: advice, pure: {why}: run 'setup/host.sh'"
    assert compiled == "so compiled True "
    assert f"plain Python is installed: {why}" in done.stderr


def test_a_killed_worker_keeps_to_its_version_and_a_reload_takes_the_installed_one(
    make_agent, tmp_path
):
    agent = make_agent(node="renewed", sections={"storage": {"writable": "tmpfs"}})
    before = str((LIB / "venv").resolve())
    try:
        agent.start()
        for name in ("run", "supervise", "worker"):
            assert arguments(agent.pids[name]).startswith(f"{before}/bin/python ")
        install(copy_of_the_tree(tmp_path / "tree", "another version"))
        after = str((LIB / "venv").resolve())
        assert after != before
        mark = len(agent.log())
        os.kill(agent.pids["worker"], signal.SIGKILL)
        agent.wait_for("worker is ready", 30, after=mark)
        assert arguments(agent.pids["worker"]).startswith(f"{before}/bin/python ")
        mark = len(agent.log())
        agent.process.send_signal(signal.SIGHUP)
        agent.wait_for("worker is ready", 30, after=mark)
        for name in ("run", "supervise", "worker"):
            assert arguments(agent.pids[name]).startswith(f"{after}/bin/python ")
        agent.close()
    finally:
        install(REPO)
