"""What benches do with samples: percentiles, ratios, goals, tables; phases out of a reply."""

from __future__ import annotations

import json

import pytest

from bench.density import kind_of
from bench.figures import Goal, bar_length, number, percentile, plain, ratio, summary, table
from bench.probe import phases
from bench.report import Report


def test_percentiles_lie_between_the_closest_ranks() -> None:
    assert percentile([4, 1, 3, 2], 50) == 2.5
    assert percentile([10, 20, 30, 40, 50], 90) == pytest.approx(46)
    assert percentile([7], 90) == 7
    assert (percentile([3, 1, 2], 0), percentile([3, 1, 2], 100)) == (1, 3)


@pytest.mark.parametrize(("samples", "percent"), [([], 50), ([1.0], -1), ([1.0], 101)])
def test_a_percentile_of_nothing_or_beyond_is_an_error(
    samples: list[float], percent: float
) -> None:
    with pytest.raises(ValueError, match=r"no samples|percentage"):
        percentile(samples, percent)


def test_a_summary_has_the_whole_range() -> None:
    found = summary([5.0, 1.0, 9.0])
    assert (found.n, found.low, found.median, found.high) == (3, 1.0, 5.0, 9.0)


def test_one_slow_round_of_both_does_not_move_the_pairs() -> None:
    found = ratio([10, 10, 100], [20, 20, 200])
    assert (found.of_medians, found.low, found.high) == (0.5, 0.5, 0.5)


def test_a_ratio_needs_both_sides_of_every_round() -> None:
    with pytest.raises(ValueError, match="zip"):
        ratio([1, 2], [1])


@pytest.mark.parametrize(
    ("value", "at_most", "held"),
    [(0.5, True, True), (0.51, True, False), (0.5, False, True), (0.49, False, False)],
)
def test_a_goal_is_held_on_its_side_of_the_limit(value: float, at_most: bool, held: bool) -> None:
    goal = Goal("x", value, 0.5, at_most=at_most)
    assert goal.held is held
    assert ("MISSED" in goal.sentence()) is not held


def test_numbers_have_three_digits() -> None:
    assert [number(v) for v in (1234.5, 99.94, 9.994, 0.5)] == ["1234", "99.9", "9.99", "0.50"]


def test_bars_are_in_proportion_and_never_vanish() -> None:
    assert (bar_length(10, 10), bar_length(5, 10)) == (44, 22)
    assert (bar_length(0.001, 10), bar_length(0, 10), bar_length(1, 0)) == (1, 0, 0)


def test_a_table_has_a_line_per_row_and_its_unit() -> None:
    lines = table({"ours": [1.0, 2.0, 3.0], "a peer": [4.0]}, "ms")
    assert len(lines) == 3
    assert lines[0].endswith("ms")
    assert lines[1].split()[:3] == ["ours", "2.00", "2.80"]
    assert lines[2].count("#") == 2 * lines[1].count("#")


def test_json_carries_verdicts_and_all_samples() -> None:
    data = plain({"goals": [Goal("x", 1, 2)], "s": summary([1.0]), "samples": {"a": (1, 2)}})
    assert json.loads(json.dumps(data)) == {
        "goals": [{"text": "x", "value": 1, "limit": 2, "at_most": True, "held": True}],
        "s": {"n": 1, "median": 1.0, "p90": 1.0, "low": 1.0, "high": 1.0},
        "samples": {"a": [1, 2]},
    }


def test_a_report_shows_ratios_and_goals() -> None:
    report = Report("cold", ["line"], {}, {"a / b": ratio([1], [4])}, [Goal("g", 0.25, 0.3)])
    text = report.text()
    assert "a / b" in text
    assert "0.25" in text
    assert "reached g <= 0.30: 0.25" in text


def test_phases_come_out_of_server_timing_only() -> None:
    reply = (
        b"HTTP/1.1 200 OK\r\nserver-timing: wait;dur=9.1, start-create;dur=7.5, "
        b"start-init;dur=0\r\nX: start-fake;dur=1\r\n\r\nServer-Timing: start-body;dur=2"
    )
    assert phases(reply) == {"create": 7.5, "init": 0.0}
    assert phases(b"HTTP/1.1 200 OK\r\n\r\n") == {}


@pytest.mark.parametrize(
    ("group", "command", "kind"),
    [
        ("agent", "/usr/lib/x/containerd-shim-runc-v2 -namespace kindling -id a", "shims"),
        ("agent", "/usr/lib/x/bin/containerd --config /run/x/config.toml", "containerd"),
        ("agent", "/x/python -P -m agent.cli.main worker", "worker"),
        ("agent", "/x/python -P -m agent.cli.main supervise /run/c.json", "house"),
        ("agent", "slirp4netns --mtu 65520", "house"),
        ("kindling-anchor-1", "crun create", "anchors"),
        ("many-0011aabb", "/dev/init -- /server", "init"),
        ("many-0011aabb", "/server", "function"),
    ],
)
def test_every_process_is_weighed_as_what_it_is(group: str, command: str, kind: str) -> None:
    assert kind_of(group, command) == kind
