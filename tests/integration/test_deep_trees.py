"""An instance that has nested directories deeper than a stack or a path can be: the agent stops."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.functions import Functions
from tests.integration.running import TEST_SLOTS, RunningAgent, own

# Beside the slots of the tests' shared agent, which goes on meanwhile.
SLOTS = TEST_SLOTS.parent / "deep"
PARTS = ("upper", "work")
DEPTH = 1500
NESTS = f"""
import os
os.chdir("/tmp")
for number in range({DEPTH}):
    os.mkdir("d" * 9)
    os.chdir("d" * 9)
    open("file", "w").close()
    os.chmod(".", 0o700 if number % 2 else 0o500)
os.chdir("/app")
os.execv("/usr/bin/python3", ["/usr/bin/python3", "-S", "-u", "/app/main.py"])
"""


@pytest.fixture
def slots() -> Iterator[Path]:
    """Two writable-layer slots without a limit, as the user kindling has them."""
    for number in range(2):
        for part in ("upper", "work"):
            (SLOTS / "512" / str(number) / part).mkdir(parents=True)
    for path in (SLOTS, *SLOTS.rglob("*")):
        own(path)
    yield SLOTS
    subprocess.run(["rm", "-rf", SLOTS], check=True)


def uppermost(slots: Path) -> list[str]:
    """Return what instances have left at the top of their layers."""
    return [path.name for path in slots.glob("*/*/upper/*")]


def test_a_function_that_nests_directories_does_not_make_the_stop_fail(
    make_agent: Callable[..., RunningAgent], slots: Path
) -> None:
    paths = {"slots": str(slots)}
    agent = make_agent(node="deep", sections={"paths": paths, "limits": {"stop_timeout_s": 2}})
    agent.start()
    with Functions(agent, same_worker=False) as functions:
        functions.deploy("deep", command=["/usr/bin/python3", "-c", NESTS], scaling={"min": 1})
        assert uppermost(slots)
        # A worker that does nothing any more leaves all of it to the supervisor.
        os.kill(agent.pids["worker"], signal.SIGSTOP)
        assert agent.stop() == 0
        assert uppermost(slots) == []
        assert "could not clear" not in agent.log()
        agent.start()
        functions.reconnect()
        agent.wait_until(lambda: len(functions.ready("deep")) == 1, 20, "the instance")
    agent.wait_until(lambda: not uppermost(slots), 20, "emptied layers")
    agent.close()
