"""Who has which numbered slot: an allocator that releases each slot exactly once.

Used for network slots and for writable-layer slots. The table below is everything a slot may do; a
step that is not in it raises Bug and changes nothing. Slots are picked oldest first, so that a
number rests as long as possible before its next use. Pure: makes and cleans nothing itself; the
rooms `network` and `storage` do the work and report it here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from agent.errors import Bug


class SlotState(Enum):
    """Where a slot stands."""

    FREE = "free"
    """Only a number; nothing exists behind it."""
    MAKING = "making"
    """Being made; belongs to the maker."""
    READY = "ready"
    """Clean and waiting."""
    LEASED = "leased"
    """Belongs to one instance."""
    DIRTY = "dirty"
    """Given back; to be cleaned or destroyed."""


# step -> (states it may start from, state it leads to)
STEPS: dict[str, tuple[frozenset[SlotState], SlotState]] = {
    "make": (frozenset({SlotState.FREE}), SlotState.MAKING),
    "made": (frozenset({SlotState.MAKING}), SlotState.READY),
    "lease": (frozenset({SlotState.READY}), SlotState.LEASED),
    "adopt": (frozenset({SlotState.FREE, SlotState.READY, SlotState.DIRTY}), SlotState.LEASED),
    "release": (frozenset({SlotState.LEASED}), SlotState.DIRTY),
    "clean": (frozenset({SlotState.DIRTY}), SlotState.READY),
    "discard": (frozenset({SlotState.MAKING, SlotState.READY, SlotState.DIRTY}), SlotState.FREE),
}


@dataclass(frozen=True, slots=True)
class SlotCounts:
    """How many slots stand where; `making` is the rest up to the total."""

    free: int
    making: int
    ready: int
    leased: int
    dirty: int


class Slots:
    """The slots of one kind on one node. Plain and synchronous; one owner, one thread."""

    def __init__(self, numbers: Iterable[int], *, first: SlotState = SlotState.FREE) -> None:
        """Take charge of `numbers`, all standing in state `first` (FREE, or DIRTY when found)."""
        self._state: dict[int, SlotState] = {}
        self._in: dict[SlotState, OrderedDict[int, None]] = {s: OrderedDict() for s in SlotState}
        for number in numbers:
            if number in self._state:
                raise Bug(f"slot {number} is listed twice")
            self._state[number] = first
            self._in[first][number] = None

    def __repr__(self) -> str:
        counts = self.counts()
        return (
            f"<Slots free={counts.free} making={counts.making} ready={counts.ready} "
            f"leased={counts.leased} dirty={counts.dirty}>"
        )

    def __len__(self) -> int:
        return len(self._state)

    def __contains__(self, number: int) -> bool:
        return number in self._state

    def state(self, number: int) -> SlotState:
        """Return where a slot stands; raises Bug for a number that is not ours."""
        state = self._state.get(number)
        if state is None:
            raise Bug(f"slot {number} does not exist")
        return state

    def numbers(self, state: SlotState) -> tuple[int, ...]:
        """Return the slots in a state, longest there first."""
        return tuple(self._in[state])

    def counts(self) -> SlotCounts:
        """Return how many slots stand where."""
        return SlotCounts(**{state.value: len(self._in[state]) for state in SlotState})

    def make(self) -> int | None:
        """Take the free number that has rested longest in order to make its slot; None: no more."""
        return self._oldest("make", SlotState.FREE)

    def made(self, number: int) -> None:
        """Record that the slot exists and is clean."""
        self._step("made", number)

    def lease(self) -> int | None:
        """Take the ready slot that has rested longest; None if none is ready."""
        return self._oldest("lease", SlotState.READY)

    def adopt(self, number: int) -> None:
        """Record that a slot already belongs to an instance (a new worker finds it running)."""
        self._step("adopt", number)

    def adoptable(self, number: int) -> bool:
        """Say whether a slot is ours and belongs to no instance and no maker."""
        return number in self._state and self._state[number] in STEPS["adopt"][0]

    def release(self, number: int) -> None:
        """Take a slot back from its instance; it is dirty now."""
        self._step("release", number)

    def clean(self, number: int) -> None:
        """Record that a dirty slot is as new."""
        self._step("clean", number)

    def discard(self, number: int) -> None:
        """Record that nothing exists behind the number any more."""
        self._step("discard", number)

    def _oldest(self, step: str, state: SlotState) -> int | None:
        number = next(iter(self._in[state]), None)
        if number is not None:
            self._step(step, number)
        return number

    def _step(self, step: str, number: int) -> None:
        before = self.state(number)
        allowed, after = STEPS[step]
        if before not in allowed:
            raise Bug(f"slot {number} is {before.value}: cannot {step}")
        del self._in[before][number]
        self._state[number] = after
        self._in[after][number] = None
