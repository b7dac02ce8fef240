"""The configuration file: what is wrong in it is named as its reader would write it."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent import config
from agent.errors import InvalidSpec


def load(tmp_path: Path, text: str) -> config.NodeConfig:
    file = tmp_path / "kindling.toml"
    file.write_text(text)
    return config.load(file)


@pytest.mark.parametrize(
    "entry", ["10.0.0.1/8", "fd00::/8", "metadata.example", "10.0.0.0/33", "", "{x}"]
)
def test_a_denied_network_that_is_none_is_named_with_the_way_out(
    tmp_path: Path, entry: str
) -> None:
    with pytest.raises(InvalidSpec) as caught:
        load(tmp_path, f'[network]\ndeny = ["192.0.2.0/24", "{entry}"]\n')
    (problem,) = caught.value.problems
    assert problem.field == "network.deny[1]"
    assert problem.message.endswith("write it like 10.0.0.0/8")


def test_denied_networks_reach_the_worker_as_they_were_checked(tmp_path: Path) -> None:
    read = load(tmp_path, '[network]\ndeny = ["10.0.0.0/8", "192.0.2.7"]\n')
    assert read.network.deny == ("10.0.0.0/8", "192.0.2.7/32")
    again = config.NodeConfig.model_validate_json(read.model_dump_json())
    assert again.network.deny == read.network.deny


def test_more_denied_networks_than_the_filter_takes_are_refused(tmp_path: Path) -> None:
    entries = ", ".join(f'"10.{n // 256}.{n % 256}.0/24"' for n in range(1025))
    with pytest.raises(InvalidSpec) as caught:
        load(tmp_path, f"[network]\ndeny = [{entries}]\n")
    assert [problem.field for problem in caught.value.problems] == ["network.deny"]


@pytest.mark.parametrize(
    ("line", "field", "words"),
    [
        ("max_bytes = -1", "max_bytes", "greater than or equal to 0"),
        ('max_bytes = "10 GB"', "max_bytes", "valid integer"),
        ("max_files = -1", "max_files", "greater than or equal to 0"),
        ("gc_high_percent = 0", "gc_high_percent", "greater than 0"),
        ("gc_high_percent = 101", "gc_high_percent", "less than or equal to 100"),
        ("gc_low_percent = 85", "gc_low_percent", "must be below gc_high_percent, 85"),
        (
            "gc_high_percent = 50\ngc_low_percent = 60",
            "gc_low_percent",
            "must be below gc_high_percent, 50",
        ),
        ("gc_high_percent = 60", "gc_low_percent", "must be below gc_high_percent, 60"),
        ("gc_interval_s = 0", "gc_interval_s", "greater than 0"),
        ("min_age_s = -1", "min_age_s", "greater than or equal to 0"),
        ('keep = ["Python"]', "keep[0]", "'Python' is not an image reference"),
        ('keep = ["a", "b:{x}"]', "keep[1]", "'b:{x}' is not an image reference"),
        ("low = 1", "low", "Extra inputs"),
    ],
)
def test_a_wrong_line_about_images_is_named(
    tmp_path: Path, line: str, field: str, words: str
) -> None:
    with pytest.raises(InvalidSpec) as caught:
        load(tmp_path, f"[images]\n{line}\n")
    (problem,) = caught.value.problems
    assert problem.field == f"images.{field}"
    assert words in problem.message


def test_kept_images_are_known_by_their_full_names(tmp_path: Path) -> None:
    read = load(tmp_path, '[images]\nkeep = ["python", "kindling.local/x:1"]\n')
    assert read.images.keep == ("docker.io/library/python:latest", "kindling.local/x:1")
