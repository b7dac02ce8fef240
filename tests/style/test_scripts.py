"""Shell scripts: shellcheck has nothing to say about any, and all are indented alike."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Below these nothing is ours.
ELSEWHERE = {".git", ".venv", ".cache", "build", "dist", "out", "node_modules"}
SHELL = re.compile(rb"#!.*\b(ba|da)?sh\b|# shellcheck shell=")


def is_script(path: Path) -> bool:
    if not path.is_file() or path.suffix not in ("", ".sh"):
        return False
    with path.open("rb") as file:
        return path.suffix == ".sh" or SHELL.match(file.readline(200)) is not None


FOUND = sorted(
    path
    for path in ROOT.rglob("*")
    if not ELSEWHERE & set(path.relative_to(ROOT).parts) and is_script(path)
)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_script_is_found():
    names = {name_of(path) for path in FOUND}
    assert {".ci/run", "setup/host.sh", "setup/slots.sh", "tests/inside/containerd_up.sh"} <= names


def test_shellcheck_has_nothing_to_say():
    program = shutil.which("shellcheck")
    assert program, (
        "no shellcheck: run 'apt-get install shellcheck', or setup/host.sh --dev, which does it"
    )
    done = subprocess.run(
        [program, "--external-sources", "--severity=style", "--format=gcc", *map(name_of, FOUND)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("path", FOUND, ids=name_of)
def test_two_spaces_a_level_and_no_tab(path):
    odd = [
        f"line {number}"
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if re.match(r" *\t|( {2})* \S", line)
    ]
    assert not odd


@pytest.mark.parametrize("path", FOUND, ids=name_of)
def test_what_shellcheck_is_kept_from_saying_has_its_reason(path):
    """On the same line, or in a comment on the line above."""
    lines = path.read_text("utf-8").splitlines()
    silent = []
    for number, line in enumerate(lines):
        if "shellcheck disable=" not in line:
            continue
        told = lines[number - 1].strip().startswith("#") and number > 0
        if not re.search(r"disable=[\w,]+\s+#", line) and not told:
            silent.append(f"line {number + 1}: {line.strip()}")
    assert not silent
