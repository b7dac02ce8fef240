"""Meters: rounding, GB-seconds, unions, shares of CPU."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.billing import BusyTime, billed_ms, gb_s, pull_gb_s, union_s


@pytest.mark.parametrize(
    ("wall", "step", "billed"),
    [
        (16.81, 1, 17),
        (17.0, 1, 17),
        (17.0000000001, 1, 17),
        (17.01, 1, 18),
        (0, 1, 1),
        (0.2, 1, 1),
        (101, 100, 200),
    ],
)
def test_durations_round_up_to_whole_steps(wall, step, billed):
    assert billed_ms(wall, step) == billed


def test_memory_times_time():
    assert gb_s(1024, 10) == 10
    assert gb_s(128, 1) == 0.125
    assert gb_s(1024, -1) == 0
    assert pull_gb_s(1024, 10) == 10


@pytest.mark.parametrize(
    ("intervals", "whole"),
    [
        ([], 0),
        ([(0, 1)], 1),
        ([(0, 1), (2, 3)], 2),
        ([(0, 2), (1, 3)], 3),
        ([(0, 10), (1, 2), (3, 4)], 10),
        ([(5, 6), (0, 1)], 2),
        ([(0, 1), (1, 2)], 2),
    ],
)
def test_overlap_counts_once(intervals, whole):
    assert union_s(intervals) == whole


spans = st.lists(
    st.tuples(st.integers(0, 50), st.integers(0, 50)).map(lambda t: (min(t), max(t))), max_size=8
)


@given(spans)
def test_the_union_is_what_counting_seconds_gives(intervals):
    covered = {n for begin, end in intervals for n in range(begin, end)}
    assert union_s(intervals) == len(covered)


@given(spans)
def test_busy_time_is_the_union_without_keeping_the_calls(intervals):
    busy = BusyTime()
    # at the same instant begins come first, so that a call that takes no time is begun and ended
    steps = sorted([(b, 0) for b, _ in intervals] + [(e, 1) for _, e in intervals])
    for now, is_end in steps:
        busy.end(now) if is_end else busy.begin(now)
    assert busy.seconds(100) == union_s(intervals)


def test_busy_time_runs_while_a_call_does():
    busy = BusyTime()
    busy.begin(1)
    assert busy.seconds(4) == 3
