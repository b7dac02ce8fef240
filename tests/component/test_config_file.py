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
