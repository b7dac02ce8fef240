"""More functions than the node has slots: idle instances give way to calls and jobs."""

from __future__ import annotations

import pytest

from tests.integration.functions import Functions
from tests.integration.running import RunningAgent

pytestmark = pytest.mark.integration


@pytest.fixture
def crowded(functions: Functions) -> list[str]:
    """Functions that have been called, one more than there are slots."""
    (slots,) = functions.node().capacity.free_layers.values()
    names = [f"idle{n}" for n in range(slots + 1)]
    for name in names:
        functions.deploy(name, "static")
    return names


def test_every_function_is_served_and_the_longest_idle_ends(
    agent: RunningAgent, functions: Functions, crowded: list[str]
):
    for name in crowded:
        assert agent.http("GET", f"/http/{name}/").status == 200
    first, *others = crowded
    assert functions.ready(first) == []
    assert all(len(functions.ready(name)) == 1 for name in others)
    assert agent.http("GET", f"/http/{first}/").status == 200


def test_a_job_gets_a_slot_as_well(agent: RunningAgent, functions: Functions, crowded: list[str]):
    for name in crowded:
        assert agent.http("GET", f"/http/{name}/").status == 200
    functions.deploy("job", "hello-job", "scf-job", "job")
    done = agent.cli("invoke", "job", "--data", '{"lines": 1}', "--wait", "--json").json()
    assert done["call"]["exit_code"] == 0, done
