"""Agents for integration tests: `make_agent` builds one of its own, `agent` is a shared one.

Both run the installed package as the user kindling, with directories, ports and a node of their own
beside whatever the host already runs, and both end with a leak check. One test session at a time
uses the test slots; another one waits.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.functions import Functions
from tests.integration.running import RunningAgent, install, open_lock

REPOSITORY = Path(__file__).parents[2]
ALONE = Path("/run/lock/kindling-tests.lock")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this directory needs the host that setup/host.sh --dev makes."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.integration)


@pytest.fixture(scope="session")
def installed() -> Iterator[None]:
    """The package of this working tree, installed; no other test session beside this one."""
    assert os.geteuid() == 0, "integration tests need root to become the user kindling"
    with open_lock(ALONE) as alone:
        fcntl.flock(alone, fcntl.LOCK_EX)
        install(REPOSITORY)
        yield


@pytest.fixture(scope="session")
def make_agent(installed: None) -> Iterator[Callable[..., RunningAgent]]:
    """Make agents that are not started yet; each is stopped and leak-checked at the session's end.

    Takes the arguments of RunningAgent. A test that is done with one earlier calls `close()`.
    """
    made: list[RunningAgent] = []

    def make(**arguments: object) -> RunningAgent:
        made.append(RunningAgent(**arguments))  # type: ignore[arg-type]
        return made[-1]

    yield make
    problems: list[AssertionError] = []
    for agent in reversed(made):
        if agent.home.exists():
            try:
                agent.close()
            except AssertionError as problem:
                problems.append(problem)
    if problems:
        raise AssertionError("\n".join(map(str, problems)))


@pytest.fixture(scope="session")
def agent(make_agent: Callable[..., RunningAgent]) -> RunningAgent:
    """One running agent with the real worker, shared by the session; node `test`, test slots.

    A test leaves it as it found it: `assert agent.leaks() == {}` after removing its functions.
    """
    return make_agent().start()


@pytest.fixture
def functions(agent: RunningAgent) -> Iterator[Functions]:
    """Functions on the shared agent: removed at the test's end, and nothing of them left."""
    with Functions(agent) as found:
        yield found
