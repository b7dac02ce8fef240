"""Cancellation: never swallowed, and background tasks have one maker, so that it reaches them all.

`agent/aio/tasks.py` is the exception: it is where cleanups are kept from being cut short.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXCEPTION = ROOT / "agent" / "aio" / "tasks.py"
FILES = sorted(
    path
    for path in (ROOT / "agent").rglob("*.py")
    if "_pb" not in path.parts and path != EXCEPTION and "asyncio" in path.read_text()
)
WIDE = {"BaseException", "CancelledError"}
MAKERS = {"create_task", "ensure_future", "run_coroutine_threadsafe"}


def named(node: ast.expr | None) -> set[str]:
    """The names a handler catches, without their modules."""
    if node is None:
        return {"BaseException"}
    parts = node.elts if isinstance(node, ast.Tuple) else [node]
    return {p.attr if isinstance(p, ast.Attribute) else getattr(p, "id", "") for p in parts}


def id_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=id_of)
def test_a_handler_that_catches_cancellation_raises_again(path):
    swallowed = [
        f"line {node.lineno}"
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.AsyncFunctionDef)  # nobody cancels a plain one
        for node in ast.walk(function)
        if isinstance(node, ast.ExceptHandler)
        and named(node.type) & WIDE
        and not isinstance(node.body[-1], ast.Raise)
    ]
    assert not swallowed


@pytest.mark.parametrize("path", FILES, ids=id_of)
def test_background_tasks_are_made_by_spawn(path):
    made = [
        f"line {node.lineno}: {node.func.attr}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in MAKERS
    ]
    assert not made
