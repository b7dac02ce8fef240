"""Where a spec on the wire is shaped otherwise than in TOML, both ways.

Proto has no field that is text or a list, and a number that was released without a sign has none
for good: `scaling.freeze_after_ms = -1` travels as `scaling.never_freeze`.
"""

from __future__ import annotations

from typing import Any

Tree = dict[str, Any]
NEVER_MS = -1


def for_wire(values: Tree) -> Tree:
    """Return a spec as TOML or JSON has it in the wire's shape; wrong values pass through."""
    sent = dict(values)
    if isinstance(sent.get("egress"), str):
        sent["egress"] = [sent["egress"]]
    scaling = sent.get("scaling")
    if isinstance(scaling, dict) and scaling.get("freeze_after_ms") == NEVER_MS:
        rest = {name: value for name, value in scaling.items() if name != "freeze_after_ms"}
        sent["scaling"] = {**rest, "never_freeze": True}
    return sent


def from_wire(values: Tree) -> Tree:
    """Return what came over the wire as TOML has it."""
    found = dict(values)
    if found.get("egress") in (["all"], ["none"]):
        found["egress"] = found["egress"][0]
    scaling = dict(found.get("scaling", {}))
    if scaling.pop("never_freeze", False):
        found["scaling"] = {**scaling, "freeze_after_ms": NEVER_MS}
    return found
