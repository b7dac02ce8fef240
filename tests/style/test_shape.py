"""Sizes past which a file or function hides a second idea; blank and comment lines count."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 70
FILES = sorted(p for p in (ROOT / "agent").rglob("*.py") if "_pb" not in p.parts)


def test_files_are_of_one_idea():
    long = {
        str(path.relative_to(ROOT)): lines
        for path in FILES
        if (lines := len(path.read_text().splitlines())) > MAX_FILE_LINES
    }
    assert not long


def test_functions_are_of_one_idea():
    long = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    long[f"{path.relative_to(ROOT)}:{node.name}"] = lines
    assert not long


def test_every_module_says_what_it_does():
    silent = []
    for path in FILES:
        words = ast.get_docstring(ast.parse(path.read_text())) or ""
        if len(words) < 30:
            silent.append(str(path.relative_to(ROOT)))
    assert not silent
