"""One word, one meaning: a class name stands in one room of agent/ only."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

AGENT = Path(__file__).parents[2] / "agent"


def rooms_by_class() -> dict[str, set[str]]:
    """Return where each class name stands; a room is a folder of agent/ or a module."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in sorted(AGENT.rglob("*.py")):
        room = path.relative_to(AGENT).parts[0].removesuffix(".py")
        if room == "_pb":  # generated from proto/, where the outside gives the names
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                found[node.name].add(room)
    return found


def test_no_class_name_stands_in_two_rooms():
    found = rooms_by_class()
    assert {name: sorted(rooms) for name, rooms in found.items() if len(rooms) > 1} == {}
