"""What one build is asked for, and what it took: plain values between instance and builder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.model.records import FunctionVersion
from agent.sandbox.output import Sink

if TYPE_CHECKING:
    from agent.sandbox.container import Container


class Laps:
    """A stopwatch whose laps follow each other without a gap, so that they add up to the whole."""

    def __init__(self, began: float | None = None) -> None:
        """Start now, or at an earlier reading of time.monotonic()."""
        self._mark = time.monotonic() if began is None else began

    def ms(self) -> float:
        """End a lap and return its milliseconds."""
        before, self._mark = self._mark, time.monotonic()
        return (self._mark - before) * 1000


@dataclass(frozen=True, slots=True)
class Order:
    """One instance to build.

    `environment` is the contract's, `sink` gets the lines of output, `leased` is told once the
    slots are held and before the container exists.
    """

    id: str
    version: FunctionVersion
    environment: Mapping[str, str]
    sink: Sink
    leased: Callable[[Container], None]
    laps: Laps


@dataclass(slots=True)
class Timings:
    """Milliseconds of the builder's phases, and what was found ready."""

    image_ms: float = 0.0
    slots_ms: float = 0.0
    create_ms: float = 0.0
    cached: list[str] = field(default_factory=list)
