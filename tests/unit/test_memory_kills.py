"""Out of memory or not: a row for each way in which an instance with killed processes may end."""

from __future__ import annotations

import pytest

from agent.core.memory_kills import KILLED, RECENT_S, UNKNOWN, MemoryKills, line


@pytest.mark.parametrize(
    ("code", "risen_s_ago", "by_us", "out_of_memory"),
    [
        (KILLED, 0.0, False, True),
        (KILLED, RECENT_S, False, True),  # a look came between the kill and the exit
        (KILLED, RECENT_S + 0.1, False, False),  # a child, once
        (KILLED, None, False, False),
        (KILLED, 0.0, True, False),
        (UNKNOWN, 0.0, False, True),
        (UNKNOWN, None, False, False),
        (UNKNOWN, 0.0, True, False),
        (0, 0.0, False, False),
        (1, 0.0, False, False),
        (3, 0.0, False, False),
        (3, 60.0, False, False),
        (143, 0.0, False, False),
        (134, 0.0, False, False),
        (255, 0.0, False, False),
    ],
)
def test_an_exit_was_one_for_memory(code, risen_s_ago, by_us, out_of_memory):
    kills = MemoryKills()
    now = 1000.0
    if risen_s_ago is not None:
        kills.look(1, now - risen_s_ago)
    assert kills.look(kills.count, now) == 0
    assert kills.explain(code, now, by_us=by_us) is out_of_memory


def test_a_second_kill_counts_anew_and_a_group_that_is_gone_does_not():
    kills = MemoryKills()
    assert kills.look(2, 10.0) == 2
    assert kills.look(2, 20.0) == 0
    assert not kills.explain(KILLED, 20.0, by_us=False)
    assert kills.look(3, 30.0) == 1
    assert kills.explain(KILLED, 30.0, by_us=False)
    assert kills.look(0, 31.0) == 0
    assert kills.count == 3


def test_what_was_killed_before_the_first_look_explains_no_exit():
    kills = MemoryKills()
    kills.know(2)
    assert not kills.explain(KILLED, 0.1, by_us=False)
    assert kills.look(2, 0.2) == 0
    assert not kills.explain(KILLED, 0.2, by_us=False)
    assert kills.look(3, 0.3) == 1
    assert kills.explain(KILLED, 0.4, by_us=False)


@pytest.mark.parametrize(
    ("new", "count", "words"), [(1, 1, "1 process was"), (2, 3, "2 processes were")]
)
def test_kills_are_told(new, count, words):
    assert line(new, count).startswith(f"{words} killed for memory ({count} since the start)")
