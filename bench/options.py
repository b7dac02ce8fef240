"""What a bench is told: how long it may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Options:
    """`rounds` 0 leaves the number to the bench; `quick` asks for the smallest useful run."""

    quick: bool = False
    rounds: int = 0
