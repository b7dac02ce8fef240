"""Which idle instances are frozen, and when: after so long at rest, and never within a call.

A member that rests is put at the end of a line of those that may rest equally long, so that only
the heads of lines are looked at. One that was called meanwhile stays where it is until its turn
comes, and is then passed over: it comes again when that call has ended. Pure; times are those of
the pool. `agent/instances/freezing.py` does it.
"""

from __future__ import annotations

from math import inf
from typing import Final, Generic, TypeVar

from agent.core.pool import Member, Stage

T = TypeVar("T")

LEAST_REST_S: Final = 0.01
"""A caller that sends one call after the other leaves less than this between two: frozen in there,
each call would pay for a thaw, and the node for both."""
AT_ONCE: Final = 32
"""A write of the freezer file takes up to 50 us with many threads: so many hold up nobody."""


class Resting(Generic[T]):
    """The members that rest, in lines by how long each may."""

    def __init__(self) -> None:
        self._lines: dict[float, dict[Member[T], None]] = {}

    def __repr__(self) -> str:
        return f"<Resting {sum(map(len, self._lines.values()))}>"

    def began(self, member: Member[T], after_s: float) -> float:
        """Note that a member rests since `idle_since`; return when it is due.

        On the way of every call whose version freezes: two steps in a dict.
        """
        least_s = max(after_s, LEAST_REST_S)
        line = self._lines.get(least_s)
        if line is None:
            line = self._lines[least_s] = {}
        line.pop(member, None)
        line[member] = None
        return member.idle_since + least_s

    def due(self, now: float) -> list[Member[T]]:
        """Take out and return those that rested for long enough, AT_ONCE at most."""
        found: list[Member[T]] = []
        for least_s, line in list(self._lines.items()):
            while line and len(found) < AT_ONCE:
                member = next(iter(line))
                if at_rest(member):
                    if now < member.idle_since + least_s:
                        break
                    found.append(member)
                del line[member]
            if not line:
                del self._lines[least_s]
        return found

    def next_at(self) -> float:
        """Return when somebody may be due, `inf` when nobody rests."""
        heads = ((next(iter(line)), least_s) for least_s, line in self._lines.items())
        return min((member.idle_since + least_s for member, least_s in heads), default=inf)


def at_rest(member: Member[T]) -> bool:
    """Say whether a member serves and no call is on it, of whichever worker."""
    return member.stage is Stage.READY and not member.inflight
