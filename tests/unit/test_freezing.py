"""Which idle instances are due to be frozen: after their rest, in order, never within a call."""

from __future__ import annotations

from math import inf

import pytest

from agent.core.freezing import AT_ONCE, LEAST_REST_S, Resting, at_rest
from agent.core.pool import Policy, Pool


class Town:
    """A pool whose idle members rest; time is the test's."""

    def __init__(self, after_s=1.0, concurrency=2):
        self.pool: Pool[object, object] = Pool(Policy(concurrency=concurrency))
        self.resting: Resting[object] = Resting()
        self.after_s = after_s

    def ready(self, name, now=0.0, taken=0):
        member, _ = self.pool.adopted(name, now, taken)
        if at_rest(member):
            self.resting.began(member, self.after_s)
        return member

    def release(self, member, now):
        self.pool.release(member, now)
        if at_rest(member):
            self.resting.began(member, self.after_s)

    def due(self, now):
        return [member.instance for member in self.resting.due(now)]


def test_one_is_due_once_when_it_has_rested_for_long_enough():
    town = Town()
    town.ready("a")
    assert town.resting.next_at() == 1.0
    assert town.due(0.99) == []
    assert town.due(1.0) == ["a"]
    assert town.due(9.0) == []
    assert town.resting.next_at() == inf


def test_a_call_begins_its_rest_anew():
    town = Town()
    member = town.ready("a")
    town.pool.take(0.5)
    assert town.due(5.0) == []
    town.release(member, 6.0)
    assert town.due(6.9) == []
    assert town.due(7.0) == ["a"]


def test_who_is_called_and_rests_again_does_not_hold_up_who_rests_longer():
    town = Town()
    first, _ = town.ready("a"), town.ready("b", 0.5)
    first.inflight += 1
    town.release(first, 1.2)
    assert town.due(1.5) == ["b"]
    assert town.due(2.2) == ["a"]


@pytest.mark.parametrize("places", [1, 2])
def test_none_is_due_while_a_place_on_it_is_taken(places):
    town = Town()
    member = town.ready("a", taken=places)
    for left in range(places, 0, -1):
        assert town.due(10.0 * left) == []
        town.release(member, 100.0)
    assert town.due(101.0) == ["a"]


@pytest.mark.parametrize("end", ["drain", "gone"])
def test_who_drains_or_is_gone_is_not_due(end):
    town = Town()
    member = town.ready("a")
    getattr(town.pool, end)(member)
    assert not at_rest(member)
    assert town.due(5.0) == []
    assert town.resting.next_at() == inf


def test_one_that_starts_is_not_at_rest():
    town = Town()
    assert not at_rest(town.pool.added("a", 0.0))


def test_after_each_call_means_not_between_two_that_follow_each_other():
    town = Town(after_s=0.0)
    member = town.ready("a")
    at = 0.0
    for _ in range(20):
        at += LEAST_REST_S * 0.9
        assert town.due(at) == []
        member.inflight += 1
        town.release(member, at)
    assert town.due(at + LEAST_REST_S) == ["a"]


def test_lines_of_different_rests_do_not_wait_for_each_other():
    town = Town(after_s=60.0)
    town.ready("slow")
    town.after_s = 0.0
    town.ready("quick", 1.0)
    assert town.resting.next_at() == 1.0 + LEAST_REST_S
    assert town.due(2.0) == ["quick"]
    assert town.resting.next_at() == 60.0
    assert town.due(60.0) == ["slow"]


def test_a_crowd_is_frozen_in_portions():
    town = Town()
    for number in range(AT_ONCE + 3):
        town.ready(number)
    assert len(town.due(1.0)) == AT_ONCE
    assert town.resting.next_at() == 1.0
    assert len(town.due(1.0)) == 3
