"""What a bench is told: how long it may take, and whether somebody wants it to end."""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Event


@dataclass(frozen=True, slots=True)
class Options:
    """`rounds` 0 leaves the number to the bench; `quick` asks for the smallest useful run.

    `whole` says that all benches run, in a quarter of an hour together. `stopped` is set by Ctrl-C.
    """

    quick: bool = False
    rounds: int = 0
    whole: bool = False
    stopped: Event = field(default_factory=Event)

    def count(self, quick: int, whole: int, alone: int = 0) -> int:
        """Return how many rounds to take, of what a bench takes at each length of run."""
        if self.rounds:
            return self.rounds
        if self.quick:
            return quick
        return whole if self.whole or not alone else alone
