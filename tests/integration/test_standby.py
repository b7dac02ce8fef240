"""Standbys for real: started by a call, replaced when they die, cleared after a killed worker.

And what containerd believes about containers that were started by the runtime's FIFO: it takes them
for created, and they are killed, told apart by memory, adopted and removed all the same.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from agent._pb.worker.v1 import worker_pb2 as pb
from agent.rootless import cgroup
from tests.integration.functions import Functions
from tests.integration.running import RunningAgent

pytestmark = pytest.mark.integration


@pytest.fixture
def agent(make_agent: Callable[..., RunningAgent]) -> Iterator[RunningAgent]:
    """An agent of its own, whose busy functions have a standby; its layers are in memory."""
    agent = make_agent(
        node="standby", sections={"storage": {"writable": "tmpfs"}, "standby": {"auto": True}}
    )
    yield agent.start()
    agent.close()


def standbys(functions: Functions, name: str) -> list[str]:
    waiting = pb.INSTANCE_STATE_STANDBY
    return [one.id for one in functions.instances(name) if one.state == waiting]


def waiting(functions: Functions, name: str, *, other_than: str = "") -> str:
    """Wait for a standby and return its id."""
    functions.agent.wait_until(
        lambda: standbys(functions, name) not in ([], [other_than]), 60, f"a standby of {name}"
    )
    return standbys(functions, name)[0]


def processes(agent: RunningAgent, id: str) -> list[int]:
    layout = cgroup.detect()
    assert layout is not None
    controller = "" if layout.version == 2 else "memory"
    return cgroup.processes(layout.directory(controller, "standby") / id)


def test_a_call_starts_the_standby_and_says_so(agent):
    with Functions(agent) as functions:
        assert "fifo_start" in functions.node().features
        functions.deploy("web", scaling={"standby": 1})
        kept = waiting(functions, "web")
        assert len(processes(agent, kept)) == 1, "only the runtime's init waits in there"
        reply = agent.http("GET", "/http/web/echo")
        assert reply.status == 200
        (served,) = functions.ready("web")
        assert served.id == kept
        assert list(served.cold_start.cached) == ["standby"]
        waiting(functions, "web")
        assert "(1 standby)" in agent.cli("status").out
        # What containerd takes for created is killed for its memory, and told as that.
        functions.deploy("eater", memory_mb=128, concurrency=1)
        broken = agent.http("GET", "/http/eater/memory?mb=400")
        assert (broken.status, broken.json()["Code"]) == (502, "FunctionOOMError")


def test_a_busy_function_gets_one_and_a_removed_one_leaves_none(agent):
    with Functions(agent) as functions:
        functions.deploy("web")
        assert standbys(functions, "web") == []
        assert agent.http("GET", "/http/web/echo").status == 200
        waiting(functions, "web")
        functions.remove("web")


def test_one_whose_init_dies_is_never_started(agent):
    with Functions(agent) as functions:
        functions.deploy("web", scaling={"standby": 1})
        kept = waiting(functions, "web")
        for pid in processes(agent, kept):
            os.kill(pid, signal.SIGKILL)
        assert agent.http("GET", "/http/web/echo").status == 200
        (served,) = functions.ready("web")
        assert "standby" not in served.cold_start.cached


def test_a_killed_workers_standbys_are_cleared_and_made_anew(agent):
    with Functions(agent, same_worker=False) as functions:
        functions.deploy("web", scaling={"standby": 1})
        kept = waiting(functions, "web")
        after = len(agent.log())
        os.kill(agent.pids["worker"], signal.SIGKILL)
        agent.wait_for("worker is ready", 30, after=after)
        functions.reconnect()
        waiting(functions, "web", other_than=kept)
        assert processes(agent, kept) == []
        assert agent.http("GET", "/http/web/echo").status == 200


def test_a_reload_leaves_none_of_the_worker_before(agent):
    with Functions(agent, same_worker=False) as functions:
        functions.deploy("web", scaling={"standby": 1})
        kept = waiting(functions, "web")
        agent.cli("reload")
        functions.reconnect()
        waiting(functions, "web", other_than=kept)
        agent.wait_until(lambda: kept not in standbys(functions, "web"), 20, "the old one's end")
        assert agent.http("GET", "/http/web/echo").status == 200
