"""ARCHITECTURE.md shows the instance states as the table has them.

To mend it: python -m agent.core.instance, between the two markers.
"""

from __future__ import annotations

from pathlib import Path

from agent.core.instance import diagram

PAPER = Path(__file__).parents[2] / "ARCHITECTURE.md"
BEGIN, END = "<!-- states -->", "<!-- /states -->"


def test_diagram_in_architecture_is_fresh():
    text = PAPER.read_text("utf-8")
    assert text.count(BEGIN) == 1
    assert text.count(END) == 1
    shown = text.split(BEGIN)[1].split(END)[0].strip()
    assert shown.removeprefix("```mermaid").removesuffix("```").strip() == diagram()
