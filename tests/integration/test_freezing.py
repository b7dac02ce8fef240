"""Idle instances stand still: their timers, connections, output and ends, through new workers too.

The function is tests/inside/resting_server.py, which counts ticks of 5 ms and closes a connection
after 0.2 s of rest. Without `freeze_after_ms` the contract fc freezes after each call.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from agent._pb.worker.v1 import worker_pb2 as pb
from tests.integration.functions import Functions
from tests.integration.running import RunningAgent
from tests.integration.test_recovery import kill_worker
from tests.integration.test_reload import reload

SERVER = (Path(__file__).parents[1] / "inside" / "resting_server.py").read_text()
COMMAND = ["/usr/bin/python3", "-c", SERVER]
AFTER_EACH = {"freeze_after_ms": 0, "max": 1}
STILL_S = 0.3
"""In which a function that runs makes 60 ticks, and closes what rests."""


def deploy(functions: Functions, name: str = "rests", **fields: Any) -> None:
    functions.deploy(name, command=COMMAND, **{"scaling": AFTER_EACH, **fields})


def frozen(functions: Functions, name: str = "rests") -> pb.Instance:
    """Wait until the only instance of a function is frozen, and return it."""

    def one() -> bool:
        found = functions.instances(name)
        return [each.state for each in found] == [pb.INSTANCE_STATE_FROZEN]

    functions.agent.wait_until(one, 10, f"{name} to be frozen")
    return functions.instances(name)[0]


def file_says(agent: RunningAgent, instance: str) -> str:
    """Return what the kernel's own file says of an instance."""
    if agent.layout.version == 2:
        events = (agent.group("", instance) / "cgroup.events").read_text()
        return "FROZEN" if "frozen 1" in events else "THAWED"
    return (agent.group("freezer", instance) / "freezer.state").read_text().strip()


def processes(agent: RunningAgent, instance: str) -> list[int]:
    controller = "" if agent.layout.version == 2 else "freezer"
    text = (agent.group(controller, instance) / "cgroup.procs").read_text()
    return [int(pid) for pid in text.split()]


def stand_still() -> None:
    time.sleep(STILL_S)  # sleeps: time in which the function would go on


@pytest.fixture
def mortal(make_agent: Callable[..., RunningAgent]) -> Iterator[RunningAgent]:
    """An agent of its own whose worker a test may replace."""
    agent = make_agent(node="cold", sections={"storage": {"writable": "tmpfs"}})
    yield agent.start()
    agent.close()


def test_an_idle_instance_stands_still_until_its_next_call(functions, agent):
    with functions.watching() as watched:
        deploy(functions, cpu_millis=500)
        before = functions.probe("rests", "state")
        instance = frozen(functions)
        agent.wait_until(lambda: file_says(agent, instance.id) == "FROZEN", 5, "the kernel")
        assert "FROZEN" in agent.cli("status").out
        capacity = functions.capacity()
        assert capacity["cpu_used_millis"] == 0
        assert capacity["memory_used_bytes"] > 0
        stand_still()
        after = functions.probe("rests", "state")
        # At most what it did within 10 ms of rest, and until it answered.
        assert after["ticks"] - before["ticks"] < 30
        # Its clock went on: a timer that was due in the meantime fires at once.
        frozen(functions)
        assert functions.probe("rests", "state")["longest_gap_s"] > STILL_S
        (event,) = watched.of("rests", "InstanceFrozen")
        assert event.instance == instance.id


def test_a_call_finds_the_same_instance_however_often_it_was_frozen(functions):
    deploy(functions)
    functions.probe("rests", "state")
    first = frozen(functions)
    for _ in range(5):
        assert functions.agent.http("GET", "/http/rests/state").status == 200
        assert frozen(functions).id == first.id


def test_a_post_over_a_connection_that_the_function_meant_to_close_is_made_once(functions, agent):
    deploy(functions)
    posts = 6
    for number in range(posts):
        reply = agent.http("POST", "/http/rests/count", b"x" * 100)
        assert (reply.status, reply.json()["posts"]) == (200, number + 1)
        frozen(functions)
        if number % 2:
            stand_still()  # longer than it keeps a connection


def test_what_rests_in_a_socket_of_another_call_does_no_harm(functions, agent):
    deploy(functions, concurrency=2)
    functions.probe("rests", "state")
    frozen(functions)
    with closing(socket.create_connection(("127.0.0.1", agent.invoke_port))) as caller:
        head = b"POST /http/rests/count HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
        caller.sendall(head + b"x" * 40000)
        agent.wait_until(lambda: functions.capacity()["inflight"] == 1, 10, "half a call")
    frozen(functions)
    assert functions.probe("rests", "state")["posts"] == 0


def test_a_stream_and_a_web_socket_keep_an_instance_awake(functions, agent):
    deploy(functions, concurrency=2)
    reply = agent.http("GET", "/http/rests/stream?s=0.5")
    ticks = [int(line) for line in reply.body.split()]
    assert ticks[-1] - ticks[0] > 20
    frozen(functions)
    with closing(socket.create_connection(("127.0.0.1", agent.invoke_port))) as caller:
        caller.sendall(
            b"GET /http/rests/socket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        head = b""
        while b"\r\n\r\n" not in head:
            head += caller.recv(4096)
        assert head.startswith(b"HTTP/1.1 101 ")
        functions.probe("rests", "state")  # a second call, which ends
        stand_still()
        assert len(functions.ready("rests")) == 1
        caller.sendall(b"still there")
        assert caller.recv(4096) == b"still there"
    frozen(functions)


def test_the_hook_runs_before_the_freeze_and_a_call_beside_it_is_served(functions, agent):
    deploy(functions, contract="fc2", concurrency=2, hooks={"pre_freeze": {"timeout_s": 10}})
    functions.probe("rests", "state")
    frozen(functions)
    assert functions.probe("rests", "slow-hook?s=2")["hooks"] >= 1
    hooks = functions.probe("rests", "state")["hooks"]
    agent.wait_until(
        lambda: functions.probe("rests", "state")["hooks"] > hooks,  # each call begins a new rest
        20,
        "a hook under way",
    )
    assert len(functions.ready("rests")) == 1
    frozen(functions)
    assert "FC PreFreeze Start" in functions.log("rests")


@pytest.mark.parametrize("forced", [False, True])
def test_a_frozen_instance_is_removed_as_any_other(functions, agent, forced):
    deploy(functions)
    functions.probe("rests", "state")
    instance = frozen(functions)
    pids = processes(agent, instance.id)
    assert pids
    with functions.watching() as watched:
        functions.remove("rests", force=forced)
        agent.wait_until(lambda: watched.of("rests", "InstanceStopped"), 20, "its end")
        (ended,) = watched.of("rests", "InstanceStopped")
    # TERM reached the function, which ended in order, or KILL did.
    assert ended.details["exit_code"] == ("137" if forced else "0")


def test_a_frozen_instance_whose_process_is_killed_is_replaced(functions, agent):
    deploy(functions)
    functions.probe("rests", "state")
    first = frozen(functions)
    for pid in processes(agent, first.id):
        os.kill(pid, signal.SIGKILL)
    # v1 lets it die only once it is thawed, by the call that then fails.
    statuses = {agent.http("GET", "/http/rests/state").status for _ in range(2)}
    assert 200 in statuses
    agent.wait_until(lambda: len(functions.instances("rests")) == 1, 20, "the end of the first")
    assert frozen(functions).id != first.id


def test_output_that_is_not_taken_does_not_keep_it_from_freezing_nor_is_any_lost(functions):
    deploy(functions)
    functions.probe("rests", "flood")
    instance = frozen(functions)
    functions.agent.wait_until(
        lambda: file_says(functions.agent, instance.id) == "FROZEN", 5, "the kernel"
    )
    lines = functions.log("rests").splitlines()
    stand_still()
    assert functions.log("rests").splitlines()[-1] == lines[-1]
    flooded = functions.probe("rests", "state")["flooded"]
    own = [line for line in lines if line.startswith("line ")]
    numbers = [int(line.split()[1]) for line in own]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert flooded >= numbers[-1]


@pytest.mark.parametrize("new_worker", [kill_worker, reload])
def test_the_next_worker_finds_it_frozen_and_thaws_it(mortal, new_worker):
    with Functions(mortal, same_worker=False) as functions:
        deploy(functions)
        deploy(functions, "slow", scaling={"freeze_after_ms": 3_600_000, "max": 1})
        before = functions.probe("rests", "state")
        functions.probe("slow", "state")
        instance = frozen(functions)
        new_worker(mortal)
        functions.reconnect()
        assert frozen(functions).id == instance.id
        assert file_says(mortal, instance.id) == "FROZEN"
        assert [one.state for one in functions.instances("slow")] == [pb.INSTANCE_STATE_READY]
        after = functions.probe("rests", "state")
        assert after["ticks"] - before["ticks"] < 60
        assert frozen(functions).id == instance.id


def test_none_is_frozen_while_the_worker_before_is_in_a_call_of_it(mortal):
    with Functions(mortal, same_worker=False) as functions:
        deploy(functions)
        replies = []
        stream = threading.Thread(
            target=lambda: replies.append(mortal.http("GET", "/http/rests/stream?s=4"))
        )
        stream.start()
        mortal.wait_until(lambda: functions.capacity()["inflight"] == 1, 10, "the stream")
        reload(mortal)
        functions.reconnect()
        stand_still()
        assert len(functions.ready("rests")) == 1
        stream.join(30)
        ticks = [int(line) for line in replies[0].body.split()]
        assert ticks[-1] - ticks[0] > 200
        frozen(functions)


def test_all_are_thawed_and_ended_when_the_agent_stops(mortal):
    with Functions(mortal, same_worker=False) as functions:
        deploy(functions)
        functions.probe("rests", "state")
        frozen(functions)
        assert mortal.stop() == 0
        assert mortal.leaks() == {}
        mortal.start()
        functions.reconnect()
