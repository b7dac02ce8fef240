"""Tests wait for what they assert. A sleep instead is too short on one machine and too long on all.

Free are `sleep(0)`, a turn of the loop, and the pause inside a `while` that asks for a condition.
Any other sleep says on its line what it stands for: `# sleeps: a function that takes its time`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "tests").rglob("*.py"))
MARK = "# sleeps: "


def sleeps(tree: ast.AST, waits: bool = False) -> Iterator[ast.Call]:
    """Yield the calls of sleep that wait for no condition."""
    for node in ast.iter_child_nodes(tree):
        inside = waits
        if isinstance(node, ast.While):
            inside = not isinstance(node.test, ast.Constant)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            inside = False
        if isinstance(node, ast.Call) and is_sleep(node) and not waits:
            yield node
        yield from sleeps(node, inside)


def is_sleep(call: ast.Call) -> bool:
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name != "sleep":
        return False
    (length,) = call.args
    return not (isinstance(length, ast.Constant) and length.value == 0)


def unexplained(text: str) -> list[int]:
    """Return the lines with a sleep that says no reason."""
    lines = text.splitlines()
    numbers = [call.end_lineno or call.lineno for call in sleeps(ast.parse(text))]
    return [number for number in numbers if not lines[number - 1].partition(MARK)[2].strip()]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_sleep_stands_for_a_condition(path):
    assert unexplained(path.read_text()) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("time.sleep(1)", [1]),
        ("sleep(1)", [1]),
        ("await asyncio.sleep(0)", []),
        ("await asyncio.sleep(0.0)", []),
        ("await asyncio.sleep(0.01)", [1]),
        ("time.sleep(1)  # sleeps:", [1]),
        ("time.sleep(1)  # a while", [1]),
        ("time.sleep(1)  # sleeps: what a slow function does", []),
        ("while not done():\n    time.sleep(1)", []),
        ("while not done() and now() < end:\n    if x:\n        await asyncio.sleep(1)", []),
        ("while True:\n    time.sleep(1)", [2]),
        ("for _ in range(9):\n    time.sleep(1)", [2]),
        ("while more():\n    def serve():\n        time.sleep(1)", [3]),
    ],
)
def test_the_rule_itself(text, found):
    assert unexplained(text) == found
