"""What a bench is told: how long it may take, what to do without, whether it is to end.

A lever can be switched off, which shows what it is worth on the same machine and in the same way:
those of a cold start by the node's configuration (`--without fifo`), the compiled form when the
working tree is installed (`--without compiled`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Event
from typing import Any

LEVERS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "anchors": {"runtime": {"anchored": False}},
    "compiled": {},
    "fifo": {"runtime": {"fifo": False}},
    "slots": {"network": {"warm_slots": 0}},
}
"""What switches a lever off, by its name: sections of the configuration."""
AT_INSTALL: Mapping[str, Mapping[str, str]] = {"compiled": {"KINDLING_COMPILED": "0"}}
"""Levers that are left out when the tree is installed: what setup is told in its environment."""


@dataclass(frozen=True, slots=True)
class Options:
    """`rounds` 0 leaves the number to the bench; `quick` asks for the smallest useful run.

    `whole` says that all benches run, in a quarter of an hour together. `without` names levers.
    `stopped` is set by Ctrl-C.
    """

    quick: bool = False
    rounds: int = 0
    whole: bool = False
    without: tuple[str, ...] = ()
    stopped: Event = field(default_factory=Event)

    def count(self, quick: int, whole: int, alone: int = 0) -> int:
        """Return how many rounds to take, of what a bench takes at each length of run."""
        if self.rounds:
            return self.rounds
        if self.quick:
            return quick
        return whole if self.whole or not alone else alone

    def sections(self, **given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Return a node's configuration: what is given, without the levers named."""
        found: dict[str, dict[str, Any]] = {name: dict(values) for name, values in given.items()}
        for lever in self.without:
            for section, values in LEVERS[lever].items():
                found.setdefault(section, {}).update(values)
        return found

    def environment(self) -> dict[str, str]:
        """Return what setup is told when it installs without the levers named."""
        return {k: v for lever in self.without for k, v in AT_INSTALL.get(lever, {}).items()}
