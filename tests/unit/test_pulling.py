"""How long who waited for a pull, and what of it they tell."""

from __future__ import annotations

import pytest

from agent.core.billing import add_pull
from agent.core.pulling import ImagePull, PullsUnderWay, pull_of
from agent.model.records import ColdStart, Meters


@pytest.mark.parametrize(
    ("asked_at", "waited_s"),
    [
        (0.0, 10.0),  # before the pull began: from its begin
        (100.0, 10.0),
        (104.0, 6.0),  # while it ran: from then
        (110.0, 0.0),  # when it was over
        (200.0, 0.0),
    ],
)
def test_a_start_waits_from_its_asking_to_the_pulls_end(asked_at: float, waited_s: float) -> None:
    pull = ImagePull(100.0, 110.0, 5, 7)
    assert pull.waited_s(asked_at) == waited_s


def test_the_first_who_waited_tells_what_was_fetched() -> None:
    pull = ImagePull(0.0, 10.0, 5, 7)
    assert [pull.fetched_for(waited_s) for waited_s in (0.0, 3.0, 10.0)] == [0, 5, 0]


def test_one_gigabyte_for_ten_seconds_of_pulling_is_ten_gb_s() -> None:
    meters = Meters()
    add_pull(meters, ColdStart(1.0, pull_ms=10_000), 1024)
    assert (meters.pull_s, meters.pull_gb_s) == (10.0, 10.0)


def test_what_was_here_is_told_from_what_came_and_from_what_did_not() -> None:
    before, after = {"a": 1, "x": 100}, {"a": 1, "b": 20, "x": 100, "y": 1000}
    pull = pull_of(["a", "b", "b", "lazy"], before, after, 3.0, 5.0)
    assert (pull.cached_bytes, pull.fetched_bytes, pull.seconds) == (1, 20, 2.0)


def test_a_blob_that_several_pulls_waited_for_is_fetched_by_the_first_of_them() -> None:
    pulls = PullsUnderWay()
    one, other, idle = (pulls.begin({"a": 1}, began) for began in (1.0, 2.0, 3.0))
    first = pulls.end(one, ["a", "b"], {"a": 1, "b": 20}, 5.0)
    assert first == ImagePull(1.0, 5.0, fetched_bytes=20, cached_bytes=1)
    after = {"a": 1, "b": 20, "c": 300}
    second = pulls.end(other, ["a", "b", "c"], after, 6.0)
    assert second == ImagePull(2.0, 6.0, fetched_bytes=300, cached_bytes=21)
    # It waited for what others fetched; nothing of the last one's had to come.
    assert pulls.end(idle, ["b"], after, 7.0) == ImagePull(3.0, 7.0, 0, 20)
    assert pulls.end(pulls.begin(after, 8.0), ["a", "b"], after, 9.0) is None


def test_a_pull_that_failed_is_not_under_way_any_more() -> None:
    pulls = PullsUnderWay()
    began = pulls.begin({}, 1.0)
    assert len(pulls) == 1
    del began
    assert len(pulls) == 0
