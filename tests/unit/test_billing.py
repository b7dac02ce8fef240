"""Meters: rounding and GB-seconds."""

from __future__ import annotations

import pytest

from agent.core.billing import billed_ms, gb_s


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
