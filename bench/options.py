"""What a bench is told: how long it may take, and what the agent is to do without.

Each lever of a cold start can be switched off by the node's configuration: `--without=fifo` shows
what it is worth, on the same machine and in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LEVERS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "anchors": {"runtime": {"anchored": False}},
    "fifo": {"runtime": {"fifo": False}},
    "slots": {"network": {"warm_slots": 0}},
}
"""What switches a lever off, by its name: sections of the configuration."""


@dataclass(frozen=True, slots=True)
class Options:
    """`rounds` 0 leaves the number to the bench; `quick` asks for the smallest useful run."""

    quick: bool = False
    rounds: int = 0
    without: tuple[str, ...] = ()

    def sections(self, **given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Return a node's configuration: what is given, without the levers named."""
        found: dict[str, dict[str, Any]] = {name: dict(values) for name, values in given.items()}
        for lever in self.without:
            for section, values in LEVERS[lever].items():
                found.setdefault(section, {}).update(values)
        return found
