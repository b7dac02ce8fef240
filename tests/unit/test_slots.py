"""The slot allocator: every slot released exactly once, nothing lost, nothing doubled."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent.core.slots import STEPS, Slots, SlotState
from agent.errors import Bug

_STEPS_BY_NUMBER = ("made", "adopt", "release", "clean", "discard")
_NUMBERS = range(1, 7)


class SlotMachine(RuleBasedStateMachine):
    """Any steps in any order, legal or not, against a plain model of the table."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = Slots(_NUMBERS)
        self.model = dict.fromkeys(_NUMBERS, SlotState.FREE)
        self.since: dict[int, int] = {n: i for i, n in enumerate(_NUMBERS)}
        self.clock = len(self.since)
        self.owners: dict[int, int] = {}

    def _move(self, number: int, state: SlotState) -> None:
        self.clock += 1
        self.since[number] = self.clock
        self.model[number] = state

    def _expected(self, state: SlotState) -> int | None:
        candidates = [n for n, s in self.model.items() if s is state]
        return min(candidates, key=lambda n: self.since[n], default=None)

    @rule()
    def make(self) -> None:
        expected = self._expected(SlotState.FREE)
        assert self.slots.make() == expected
        if expected is not None:
            self._move(expected, SlotState.MAKING)

    @rule()
    def lease(self) -> None:
        expected = self._expected(SlotState.READY)
        number = self.slots.lease()
        assert number == expected
        if number is not None:
            assert number not in self.owners
            self.owners[number] = self.clock
            self._move(number, SlotState.LEASED)

    @rule(step=st.sampled_from(_STEPS_BY_NUMBER), number=st.sampled_from(list(_NUMBERS)))
    def any_step(self, step: str, number: int) -> None:
        allowed, after = STEPS[step]
        before = repr(self.slots)
        if self.model[number] in allowed:
            getattr(self.slots, step)(number)
            self._move(number, after)
            if step == "release":
                del self.owners[number]
            if step == "adopt":
                self.owners[number] = self.clock
            return
        with pytest.raises(Bug, match=f"slot {number} is"):
            getattr(self.slots, step)(number)
        assert repr(self.slots) == before

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def release_twice(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.owners)))
        self.slots.release(number)
        del self.owners[number]
        self._move(number, SlotState.DIRTY)
        with pytest.raises(Bug):
            self.slots.release(number)

    @invariant()
    def states_and_counts_agree(self) -> None:
        assert {n: self.slots.state(n) for n in _NUMBERS} == self.model
        counts = self.slots.counts()
        for state in SlotState:
            inside = {n for n, s in self.model.items() if s is state}
            assert set(self.slots.numbers(state)) == inside
            assert getattr(counts, state.value) == len(inside)

    @invariant()
    def leased_slots_have_exactly_one_owner(self) -> None:
        assert set(self.owners) == set(self.slots.numbers(SlotState.LEASED))


TestSlotMachine = SlotMachine.TestCase


def test_an_illegal_release_raises_and_changes_nothing() -> None:
    slots = Slots([1, 2])
    slots.make()
    slots.made(1)
    before = repr(slots)
    for number in (1, 2, 3):
        with pytest.raises(Bug):
            slots.release(number)
    assert repr(slots) == before


def test_found_slots_start_dirty_and_can_be_adopted_or_cleaned() -> None:
    slots = Slots([3, 4], first=SlotState.DIRTY)
    slots.adopt(4)
    slots.clean(3)
    assert slots.lease() == 3
    assert slots.lease() is None


def test_the_slot_that_rested_longest_is_leased_first() -> None:
    slots = Slots([1, 2, 3], first=SlotState.DIRTY)
    for number in (3, 1, 2):
        slots.clean(number)
    assert [slots.lease(), slots.lease(), slots.lease()] == [3, 1, 2]


def test_a_number_given_twice_is_refused() -> None:
    with pytest.raises(Bug, match="slot 5 is listed twice"):
        Slots([5, 5])
