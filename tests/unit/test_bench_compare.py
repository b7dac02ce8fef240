"""What is said of two revisions: ranks, chances, intervals, and when a difference is called one."""

from __future__ import annotations

import random

import pytest

from bench.paired import compared, holm, interval, pairs_needed, ranks, signed_rank


def around(middle: float, spread: float, seed: int, count: int = 12) -> list[float]:
    source = random.Random(seed)
    return [middle * (1 + source.uniform(-spread, spread)) for _ in range(count)]


def test_equal_values_share_the_middle_of_their_ranks() -> None:
    assert ranks([0.3, 0.1, 0.2]) == [6, 2, 4]
    assert ranks([5, 5, 1, 9]) == [5, 5, 2, 8]


@pytest.mark.parametrize(
    ("differences", "chance"),
    [
        # Tables of the signed-rank test, two-sided: T = 0 for n = 5 and 6, T = 2 for n = 6.
        ([1, 2, 3, 4, 5], 2 / 2**5),
        ([1, 2, 3, 4, 5, 6], 2 / 2**6),
        ([1, -2, 3, 4, 5, 6], 6 / 2**6),
        ([1, -1], 1.0),
        ([], 1.0),
        ([0, 0], 1.0),
    ],
)
def test_the_chance_of_a_rank_sum_is_counted_out(differences: list[float], chance: float) -> None:
    assert signed_rank(differences) == pytest.approx(chance)


def test_an_interval_of_the_median_holds_it_and_is_the_same_each_time() -> None:
    values = around(1.0, 0.2, seed=3)
    low, high = interval(values)
    assert low <= sorted(values)[6] <= high
    assert interval(values) == (low, high)
    assert interval([2.0, 2.0, 2.0]) == (2.0, 2.0)


def test_chances_are_corrected_for_how_many_there_are() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx(
        {"a": 0.03, "c": 0.06, "b": 0.06}
    )
    assert holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0}


def test_a_tenth_more_in_every_pair_is_a_difference() -> None:
    a = around(20, 0.3, seed=1)
    found = compared({"ms": a}, {"ms": [value * 1.1 for value in a]})["ms"]
    assert found.differs
    assert found.ratio == pytest.approx(1.1)
    assert "B has 10.0 % more" in found.sentence()


def test_noise_is_called_noise() -> None:
    found = compared({"ms": around(20, 0.2, seed=1)}, {"ms": around(20, 0.2, seed=2)})["ms"]
    assert not found.differs
    assert "no difference beyond noise" in found.sentence()


def test_what_would_differ_alone_may_be_chance_among_twenty() -> None:
    a = [1.0] * 8
    slower = {"one": [1.2, 1.1, 1.3, 1.2, 1.1, 1.2, 0.99, 1.1]}
    assert compared({"one": a}, slower)["one"].differs
    source = random.Random(5)
    noise = {f"noise {n}": [source.uniform(0.9, 1.1) for _ in a] for n in range(19)}
    among = compared(dict.fromkeys([*slower, *noise], a), slower | noise)
    assert not any(one.differs for one in among.values())


def test_few_pairs_say_that_they_tell_nothing() -> None:
    found = compared({"ms": [1.0] * 5}, {"ms": [2.0] * 5})["ms"]
    assert not found.differs
    assert found.sentence() == "5 pairs tell nothing of so many figures: 6 are needed"


@pytest.mark.parametrize("figures", [1, 3, 20])
def test_as_many_pairs_as_are_said_to_be_needed_can_tell(figures: int) -> None:
    for pairs, told in ((pairs_needed(figures), True), (pairs_needed(figures) - 1, False)):
        a = {str(name): [1.0] * pairs for name in range(figures)}
        b = {name: [2.0 + n / 100 for n in range(pairs)] for name in a}
        found = compared(a, b)
        assert all(one.differs is told for one in found.values()), pairs
        assert all(("tell nothing" in one.sentence()) is not told for one in found.values())


def test_only_figures_of_both_and_above_zero_are_compared() -> None:
    found = compared({"a": [1.0], "b": [0.0], "c": [1.0]}, {"b": [1.0], "c": [1.0], "d": [1.0]})
    assert list(found) == ["c"]
    with pytest.raises(ValueError, match="zip"):
        compared({"a": [1.0, 2.0]}, {"a": [1.0]})
