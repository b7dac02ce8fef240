"""kill -9 of the worker, of containerd, of a shim, of everything; a swap of workers; a stop.

Functions outlive the worker: the same processes serve through the next one, no connection is
refused meanwhile, logs go on. After the death of everything the next start sweeps and serves.
Times are printed with `pytest -s`, the bounds asserted on are generous.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise

import pytest

from agent._pb.worker.v1 import worker_pb2 as pb
from agent.app import SHIMS_PER_CORE
from tests.integration.functions import Functions
from tests.integration.running import Reply, RunningAgent, is_alive

MB = 1 << 20
SERVES_AGAIN_S = 10.0
STOP_TIMEOUT_S = 5
# For what ends after the worker: containerd, the namespaces, the sweep.
STOP_MARGIN_S = 5
# Serves on its port and says a number every 20 ms, so that gaps in its log show.
TICKER = r"""
import socket, threading, time
server = socket.create_server(("0.0.0.0", 9000))
def serve():
    while True:
        connection, _ = server.accept()
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        connection.close()
threading.Thread(target=serve, daemon=True).start()
n = 0
while True:
    print("tick", n, flush=True)
    n += 1
    time.sleep(0.02)
"""


class Caller:
    """Calls one path all the while, each time on a new connection, and notes how that went."""

    def __init__(self, agent: RunningAgent, path: str) -> None:
        self.refused = 0
        self.broken = 0
        self.statuses: list[int] = []
        self.served_at: list[float] = []
        self._agent, self._path = agent, path
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._call_on)

    def __enter__(self) -> Caller:
        self._thread.start()
        self._agent.wait_until(lambda: len(self.statuses) > 5, 10, "calls")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def _call_on(self) -> None:
        while not self._stop.is_set():
            try:
                self.statuses.append(self._agent.http("GET", self._path, timeout_s=30).status)
                self.served_at.append(time.monotonic())
            except ConnectionRefusedError:
                self.refused += 1
            except (OSError, http.client.HTTPException):
                self.broken += 1
            time.sleep(0.005)  # a caller, not a flood

    def wait_for_more(self, agent: RunningAgent, calls: int) -> None:
        """Wait until so many more calls were answered."""
        enough = len(self.statuses) + calls
        agent.wait_until(lambda: len(self.statuses) >= enough, 30, f"{calls} more answers")

    @property
    def longest_gap_s(self) -> float:
        """The longest time between two answers."""
        return max(after - before for before, after in pairwise(self.served_at))


def kill_worker(agent: RunningAgent) -> None:
    """kill -9 the worker and wait for the next one."""
    before = agent.pids["worker"]
    os.kill(before, signal.SIGKILL)
    after = len(agent.log())
    agent.wait_for("worker is ready", 30, after=after)
    agent.wait_until(lambda: agent.pids["worker"] not in (0, before), 10, "the new pid")


def pids_of(agent: RunningAgent) -> set[int]:
    """Return the processes of the node's instances, of which there must be some."""
    found = agent.instance_pids()
    assert found, "no process of an instance was found"
    return found


def states(functions: Functions) -> dict[str, int]:
    return {one.id: one.state for one in functions.instances()}


@pytest.fixture
def mortal(make_agent: Callable[..., RunningAgent]) -> Iterator[RunningAgent]:
    """An agent of its own that a test may kill and stop; its layers are in memory."""
    agent = make_agent(
        node="mortal",
        sections={"storage": {"writable": "tmpfs"}, "limits": {"stop_timeout_s": STOP_TIMEOUT_S}},
    )
    agent.start()
    yield agent
    agent.close()


# The worker


def test_functions_outlive_a_killed_worker_and_no_connection_is_refused(agent):
    with Functions(agent, same_worker=False) as functions:
        functions.deploy("web", scaling={"min": 2}, concurrency=10)
        functions.deploy("tiny", "static", scaling={"min": 1}, concurrency=10)
        ticker = ["/usr/bin/python3", "-c", TICKER]
        functions.deploy("ticker", command=ticker, scaling={"min": 1})
        functions.probe("web", "disk?mb=20&path=/kept")
        before, pids, capacity = states(functions), pids_of(agent), functions.capacity()
        with Caller(agent, "/http/tiny/") as caller:
            kill_worker(agent)
            answered = len(caller.statuses)
            agent.wait_until(lambda: len(caller.statuses) > answered + 5, 30, "replies")
        assert caller.refused == 0
        # Only a call that the dying worker had already taken may break.
        assert caller.broken <= 1
        assert set(caller.statuses) == {200}
        gap_s = caller.longest_gap_s
        print(f"\nserves again {gap_s * 1000:.0f} ms after the last reply of the killed worker")
        assert gap_s < SERVES_AGAIN_S
        functions.reconnect()
        assert states(functions) == before
        assert pids_of(agent) == pids
        assert functions.capacity() == capacity
        reply = agent.http("GET", "/http/web/disk?mb=1&path=/kept")
        assert "x-kindling-cold-start" not in reply.headers
        assert pids_of(agent) == pids
        check_ticks(agent, functions)


def check_ticks(agent: RunningAgent, functions: Functions) -> None:
    """The log goes on, and of what was said without a worker nothing is missing."""

    def ticks() -> list[int]:
        return [int(n) for n in re.findall(r"^tick (\d+)$", functions.log("ticker"), re.M)]

    first = ticks()
    assert first == list(range(first[0], first[0] + len(first)))
    agent.wait_until(lambda: ticks()[-1] > first[-1] + 5, 10, "further ticks")


def test_the_instance_of_a_call_that_died_with_the_worker_is_recycled(mortal):
    with Functions(mortal, same_worker=False) as functions:
        functions.deploy("alone", scaling={"min": 1})
        functions.deploy("shared", scaling={"min": 1}, concurrency=5)
        (alone,), (shared,) = functions.instances("alone"), functions.instances("shared")
        callers = [
            abandoned_call(mortal, f"/http/{name}/sleep?s=60") for name in ("alone", "shared")
        ]
        mortal.wait_until(lambda: functions.capacity()["inflight"] == 2, 10, "two calls")
        kill_worker(mortal)
        functions.reconnect()
        mortal.wait_until(
            lambda: [one.id for one in functions.ready("alone")] not in ([], [alone.id]), 20
        )
        assert [one.id for one in functions.ready("shared")] == [shared.id]
        assert mortal.http("GET", "/http/alone/echo").status == 200
        assert mortal.http("GET", "/http/shared/echo").status == 200
        for caller in callers:
            caller.close()


def abandoned_call(agent: RunningAgent, path: str) -> socket.socket:
    """Send a request and read nothing."""
    caller = socket.create_connection(("127.0.0.1", agent.invoke_port), 10)
    caller.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return caller


def test_a_job_outlives_the_worker_and_its_exit_is_recorded(mortal):
    with Functions(mortal, same_worker=False) as functions:
        functions.deploy("job", "hello-job", "scf-job", "job")
        event = json.dumps({"sleep_s": 2, "exit_code": 7})
        reply = mortal.http("POST", "/invoke/job", event)
        kill_worker(mortal)
        functions.reconnect()
        id = reply.headers["x-scf-request-id"]
        mortal.wait_until(
            lambda: functions.call(id).state != pb.CALL_STATE_RUNNING, 30, "the end of the job"
        )
        record = functions.call(id)
        assert (record.state, record.exit_code) == (pb.CALL_STATE_FAILED, 7)


@pytest.mark.parametrize("later_s", [0.0, 0.03, 0.3], ids=["creating", "created", "starting"])
def test_a_start_under_way_when_the_worker_dies_leaves_nothing(mortal, later_s):
    with Functions(mortal, same_worker=False) as functions:
        functions.deploy("beside", scaling={"min": 4})
        functions.deploy("slow", env={"PROBE_DELAY_S": "30"})
        beside = pids_of(mortal)
        caller = abandoned_call(mortal, "/http/slow/echo")
        mortal.wait_until(lambda: pids_of(mortal) != beside, 10, "the container")
        time.sleep(later_s)  # sleeps: which step it is killed in: none of them tells anybody
        kill_worker(mortal)
        functions.reconnect()
        caller.close()
        mortal.wait_until(lambda: pids_of(mortal) == beside, 20, "its end")
        assert functions.instances("slow") == []
        # The shims, of which one was making a container, still serve.
        functions.deploy("more", scaling={"min": 4})


def test_a_swap_of_workers_loses_and_refuses_no_call(mortal):
    with Functions(mortal, same_worker=False) as functions:
        functions.deploy("web", scaling={"min": 2}, concurrency=20)
        before, pids = states(functions), pids_of(mortal)
        long_call: list[Reply] = []
        patient = threading.Thread(
            target=lambda: long_call.append(mortal.http("GET", "/http/web/sleep?s=2"))
        )
        patient.start()
        mortal.wait_until(lambda: functions.capacity()["inflight"] == 1, 10, "the long call")
        old = mortal.pids["worker"]
        with Caller(mortal, "/http/web/echo") as one, Caller(mortal, "/http/web/echo") as two:
            after = len(mortal.log())
            assert mortal.process is not None
            mortal.process.send_signal(signal.SIGHUP)
            mortal.wait_for("worker is ready", 30, after=after)
            patient.join(30)
            mortal.wait_until(lambda: not is_alive(old), 30, "the end of the old worker")
            for caller in (one, two):  # calls that only the new worker serves
                caller.wait_for_more(mortal, 20)
        for caller in (one, two):
            assert (caller.refused, caller.broken, set(caller.statuses)) == (0, 0, {200})
        assert long_call[0].json() == {"slept_s": 2}
        functions.reconnect()
        assert (states(functions), pids_of(mortal)) == (before, pids)
        mortal.wait_until(lambda: functions.capacity()["inflight"] == 0, 10, "no call left")


# What is below the worker


def test_functions_serve_on_while_containerd_dies_and_the_next_one_deploys(mortal):
    with Functions(mortal) as functions:
        functions.deploy("web", scaling={"min": 1})
        pids = pids_of(mortal)
        after = len(mortal.log())
        os.kill(mortal.pids["containerd"], signal.SIGKILL)
        assert mortal.http("GET", "/http/web/echo").status == 200
        mortal.wait_for("containerd serves", 30, after=after)
        assert pids_of(mortal) == pids
        functions.deploy("more", scaling={"min": 1})
        assert mortal.http("GET", "/http/more/echo").status == 200


def test_when_all_shims_die_calls_end_and_other_instances_take_over(mortal):
    with Functions(mortal) as functions:
        functions.deploy("web", scaling={"min": 1}, concurrency=10)
        functions.deploy("idle", scaling={"min": 1})
        (old,), (idle,) = functions.ready("web"), functions.ready("idle")
        shims = mortal.shims()
        assert "anchored_shims" in functions.node().features
        assert len(shims) >= SHIMS_PER_CORE * len(os.sched_getaffinity(0))
        long_call: list[Reply] = []
        patient = threading.Thread(
            target=lambda: long_call.append(mortal.http("GET", "/http/web/sleep?s=3"))
        )
        patient.start()
        mortal.wait_until(lambda: functions.capacity()["inflight"] == 1, 10, "the long call")
        with Caller(mortal, "/http/web/echo") as caller:
            for pid in shims:
                os.kill(pid, signal.SIGKILL)
            mortal.wait_until(lambda: not any(map(is_alive, shims)), 10, "the end of the shims")
            for name, gone in (("web", old.id), ("idle", idle.id)):
                mortal.wait_until(
                    lambda name=name, gone=gone: (
                        [one.id for one in functions.ready(name)] not in ([], [gone])
                    ),
                    30,
                    f"another instance of {name}",
                )
            patient.join(30)
        assert long_call[0].json() == {"slept_s": 3}
        assert (caller.refused, caller.broken, set(caller.statuses)) == (0, 0, {200})
        mortal.wait_until(lambda: len(functions.instances()) == 2, 30, "the end of the old ones")
        # As many again; started with none of them left, an instance has one of its own besides.
        mortal.wait_until(lambda: len(mortal.shims()) >= len(shims), 30, "new shims")
        left = [path for path in mortal.run.rglob("*") if path.name in (old.id, idle.id)]
        assert left == [], "of the runtime's or containerd's"
        assert functions.probe("web", "log?lines=3")
        mortal.wait_until(lambda: "2 x" in functions.log("web"), 10, "output that is read again")


def test_instances_whose_shim_died_while_no_worker_ran_are_replaced(mortal):
    with Functions(mortal, same_worker=False) as functions:
        functions.deploy("web", scaling={"min": 2})
        old = {one.id for one in functions.ready("web")}
        shims = mortal.shims()
        worker = mortal.pids["worker"]
        os.kill(worker, signal.SIGSTOP)
        for pid in shims:
            os.kill(pid, signal.SIGKILL)
        after = len(mortal.log())
        os.kill(worker, signal.SIGKILL)
        mortal.wait_for("worker is ready", 30, after=after)
        functions.reconnect()
        assert mortal.http("GET", "/http/web/echo").status == 200
        mortal.wait_until(
            lambda: (
                len(functions.ready("web")) == 2
                and not old & {one.id for one in functions.instances()}
            ),
            30,
            "two others",
        )


def test_without_anchored_shims_each_container_has_its_own_and_all_goes(make_agent):
    agent: RunningAgent = make_agent(
        node="plain",
        sections={"storage": {"writable": "tmpfs"}, "runtime": {"anchored": False}},
    )
    agent.start()
    with Functions(agent) as functions:
        assert "anchored_shims" not in functions.node().features
        assert agent.shims() == []
        functions.deploy("web", scaling={"min": 2})
        assert len(agent.shims()) == 2
        assert agent.http("GET", "/http/web/echo").status == 200
        functions.remove("web")
        agent.wait_until(lambda: agent.shims() == [], 10, "the end of the shims")
    agent.close()


# Everything


def test_after_kill_9_of_everything_the_next_start_sweeps_and_serves(agent):
    with Functions(agent, same_worker=False) as functions:
        functions.deploy("web", scaling={"min": 1})
        functions.deploy("lazy", "static")
        functions.probe("web", "disk?mb=30&path=/old")
        capacity = functions.capacity()
        assert agent.http("GET", "/http/lazy/").status == 200
        orphans = pids_of(agent)
        agent.kill_everything()
        assert orphans == {pid for pid in orphans if is_alive(pid)}, "instances are left alone"
        agent.start()
        assert not any(map(is_alive, orphans))
        functions.reconnect()
        # What was deployed still is; what must run does.
        agent.wait_until(lambda: len(functions.ready("web")) == 1, 20, "the wanted instance")
        assert agent.http("GET", "/http/web/echo").status == 200
        assert functions.probe("web", "disk?mb=500&path=/new")["error"] is None
        assert agent.http("GET", "/http/lazy/").headers["x-kindling-cold-start"]
        functions.remove("lazy")
        agent.wait_until(lambda: functions.capacity() == capacity, 10, "the slot of lazy")


@pytest.mark.parametrize("how", ["term", "ctrl-c"])
def test_a_stop_lets_calls_end_and_leaves_nothing(mortal, how):
    with Functions(mortal, same_worker=False) as functions:
        functions.deploy("web", scaling={"min": 3})
        functions.deploy("stubborn", env={"PROBE_IGNORE_TERM": "1"}, scaling={"min": 1})
        functions.deploy("job", "hello-job", "scf-job", "job")
        mortal.http("POST", "/invoke/job", json.dumps({"sleep_s": 600}))
        replies: list[Reply] = []
        caller = threading.Thread(
            target=lambda: replies.append(mortal.http("GET", "/http/web/sleep?s=1"))
        )
        caller.start()
        mortal.wait_until(lambda: functions.capacity()["inflight"] == 1, 10, "the call")
        pids = pids_of(mortal)
        assert mortal.process is not None
        began = time.monotonic()
        if how == "term":
            mortal.process.send_signal(signal.SIGTERM)
        else:
            os.killpg(mortal.process.pid, signal.SIGINT)
        assert mortal.wait() == 0
        elapsed_s = time.monotonic() - began
        print(f"\nstopped in {elapsed_s:.1f} s")
        assert elapsed_s <= STOP_TIMEOUT_S + STOP_MARGIN_S
        caller.join(10)
        assert replies[0].json() == {"slept_s": 1}
        assert not any(map(is_alive, pids))
        assert mortal.leaks() == {}
        assert list(mortal.run.iterdir()) == []
        with pytest.raises(ConnectionRefusedError), closing(abandoned_call(mortal, "/")):
            pass
        mortal.start()
        functions.reconnect()
        mortal.wait_until(lambda: len(functions.ready("web")) == 3, 20, "what is deployed")
