"""The rooms' import rules (.importlinter), and what these cannot see: calls and kernel sockets."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PURE = ("core", "contracts", "model")
PURE_FILES = sorted(path for room in PURE for path in (ROOT / "agent" / room).glob("*.py"))
TOUCHES_THE_WORLD = {"open", "print", "input", "exec", "eval", "breakpoint"}


def test_rooms_import_only_what_they_may():
    linter = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run(
        [linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", PURE_FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_rules_await_nothing_and_touch_nothing(path):
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Await | ast.AsyncFunctionDef | ast.AsyncFor | ast.AsyncWith):
            found.append(f"line {node.lineno}: async")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            in_main = path.name == "instance.py" and node.func.id == "print"
            if node.func.id in TOUCHES_THE_WORLD and not in_main:
                found.append(f"line {node.lineno}: {node.func.id}()")
        if isinstance(node, ast.Attribute) and node.attr in ("now", "today", "utcnow"):
            owner = node.value
            if isinstance(owner, ast.Name) and owner.id in ("datetime", "date"):
                found.append(f"line {node.lineno}: {owner.id}.{node.attr}")
    assert not found


@pytest.mark.parametrize("word", ["AF_NETLINK", "libnftables"])
def test_the_kernels_network_is_spoken_to_in_one_room_only(word):
    agent = ROOT / "agent"
    spoken = [path for path in agent.rglob("*.py") if word in path.read_text("utf-8")]
    assert {path.relative_to(agent).parts[0] for path in spoken} == {"network"}


def test_the_kernel_is_called_by_number_in_one_room_only():
    agent = ROOT / "agent"
    called = [path for path in agent.rglob("*.py") if "CDLL(" in path.read_text("utf-8")]
    # The network has libnftables to itself.
    assert {path.relative_to(agent).parts[0] for path in called} <= {"linux", "network"}
