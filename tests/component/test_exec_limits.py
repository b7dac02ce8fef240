"""The limits of execve that we check beforehand, held against the kernel that runs here."""

from __future__ import annotations

import subprocess

from agent.core.job import check_exec_sizes, exec_bytes
from agent.model.limits import MAX_EXEC_BYTES, MAX_STRING_BYTES


def test_linux_agrees_about_one_string():
    def starts(value: str) -> bool:
        try:
            return subprocess.run(["/bin/true"], env={"A": value}, check=False).returncode == 0
        except OSError:
            return False

    room = MAX_STRING_BYTES - len("A=") - 1
    assert starts("x" * room)
    assert not starts("x" * (room + 1))


def test_linux_takes_what_is_just_within_the_sum():
    env = {f"V{n:02}": "x" * 100_000 for n in range(20)}
    left = MAX_EXEC_BYTES - exec_bytes(["/bin/true"], env) - len("LAST=") - 1 - 8
    env["LAST"] = "x" * left
    assert exec_bytes(["/bin/true"], env) == MAX_EXEC_BYTES
    check_exec_sizes(["/bin/true"], env)
    assert subprocess.run(["/bin/true"], env=env, check=False).returncode == 0
