"""Which idle instances give way when one of another function finds no room on the node.

As few as are enough and nobody in vain: standbys first, which never ran (`since` is minus
infinity), then frozen ones, then the longest idle. Who is idle
beyond its function's minimum is `agent/core/pool.py`'s to say; ending them is
`agent/instances/eviction.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Idle(Generic[T]):
    """An instance without calls, and what its end would give back; `since` is when it got idle."""

    who: T
    since: float
    memory_bytes: int
    disk_mb: int
    frozen: bool = False


@dataclass(frozen=True, slots=True)
class Need:
    """What a start lacks: `reason` as in Overloaded, `short_bytes` the memory that is missing."""

    reason: str
    short_bytes: int
    disk_mb: int


def choose_victims(need: Need, idle: Iterable[Idle[T]]) -> list[T]:
    """Return who must end for the start to find room; nobody when even all would not be enough.

    For a slot it is one with a writable layer of the same size, for memory as many as make up what
    is missing, for a place on the node anyone.
    """
    if need.reason == "slots":
        fitting = [one for one in idle if one.disk_mb == need.disk_mb]
    elif need.reason in ("memory", "instances"):
        fitting = list(idle)
    else:
        return []
    fitting.sort(key=lambda one: (one.since != -inf, not one.frozen, one.since))
    short_bytes = need.short_bytes if need.reason == "memory" else 0
    chosen: list[T] = []
    for one in fitting:
        chosen.append(one.who)
        short_bytes -= one.memory_bytes
        if short_bytes <= 0:
            return chosen
    return []
