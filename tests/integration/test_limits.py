"""Memory, disk, processes, files, CPU and time: the kernel and the agent hold what a spec says.

Every limit is broken on purpose by the probe image. What the caller, the node's events and the call
record say must agree, and nothing of the broken instance may be left.
"""

from __future__ import annotations

import json
import signal

import pytest

from agent._pb.worker.v1 import worker_pb2 as pb
from agent.model.limits import LIMITS
from tests.integration.functions import Functions
from tests.integration.running import RunningAgent

MB = 1 << 20
MEMORY = {"memory_mb": 128}
MUCH_MB = 400
# A server whose children take memory, and which ends as it is told.
PARENT = """
import os, signal, subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
hungry = [sys.executable, "-c", "x = bytearray(1 << 30)"]
class Parent(BaseHTTPRequestHandler):
    def do_GET(self):
        what = self.path.strip("/").split("/")[-1]
        code = subprocess.run(hungry).returncode if "child" in what else 0
        if "exit" in what: os._exit(int(what.rpartition("-")[2]))
        if "kill" in what: os.kill(os.getpid(), signal.SIGKILL)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(code).encode())
    def log_message(self, *_): pass
HTTPServer(("0.0.0.0", 9000), Parent).serve_forever()
"""
# /bin/sh is not in the images; this takes memory as fast as Python can.
HUNGRY = "a = []\nwhile True: a.append(bytearray(1 << 20))"


# Memory


def test_past_its_memory_a_call_is_told_out_of_memory(functions, agent):
    functions.deploy("hungry", **MEMORY)
    first = functions.facts("hungry")["pid"]
    (instance,) = functions.instances("hungry")
    with functions.watching() as watched:
        reply = agent.http("GET", f"/http/hungry/memory?mb={MUCH_MB}")
        agent.wait_until(lambda: bool(watched.of("hungry", "InstanceFailed")), 10, "the event")
    assert (reply.status, reply.json()["Code"]) == (502, "FunctionOOMError")
    assert "out of memory, the limit is 128 MB" in reply.json()["Message"]
    assert reply.headers["x-fc-error-type"] == "UnhandledInvocationError"
    (event,) = watched.of("hungry", "InstanceFailed")
    assert event.instance == instance.id
    assert event.details["out_of_memory"] == "true"
    assert event.details["kind"] == "out_of_memory"
    assert event.details["exit_code"] == str(128 + signal.SIGKILL)
    assert "ran out of its 128 MB of memory" in event.message
    # The next call has a new instance.
    assert functions.facts("hungry")["pid"] == first
    (after,) = functions.ready("hungry")
    assert after.id != instance.id


@pytest.mark.parametrize(
    ("contract", "status", "words"),
    [
        ("fc2", 502, '"ErrorCode": "FunctionOOMError"'),
        ("scf-web", 434, "MemoryLimitReached"),
        ("vercel", 500, "FUNCTION_INVOCATION_FAILED"),
    ],
)
def test_every_contract_has_its_own_words_for_it(functions, agent, contract, status, words):
    functions.deploy("hungry", contract=contract, **MEMORY)
    reply = agent.http("GET", f"/http/hungry/memory?mb={MUCH_MB}")
    assert reply.status == status
    assert words in reply.body.decode()
    assert "out of memory" in reply.body.decode()


def test_a_job_past_its_memory_is_recorded_as_out_of_memory(functions, agent):
    program = ["/usr/bin/python3", "-c", HUNGRY]
    functions.deploy("hungry", "hello-job", "fc2", "job", command=program, **MEMORY)
    reply = agent.http("POST", "/invoke/hungry", "x")
    assert "out of memory" in reply.body.decode(), reply
    record = functions.call(reply.headers["x-kindling-request-id"])
    assert record.state == pb.CALL_STATE_FAILED
    assert record.exit_code == 128 + signal.SIGKILL
    assert "memory" in record.error
    assert 100 * MB < record.meters.peak_memory_bytes <= 129 * MB


def test_within_its_memory_nothing_happens_and_the_peak_is_told(functions, agent):
    functions.deploy("hungry", **MEMORY)
    reply = agent.http("GET", "/http/hungry/memory?mb=64")
    assert reply.json() == {"taken_mb": 64, "held_mb": 64}
    said = agent.cli("invoke", "hungry", "--path", "/echo", "--json").json()
    assert 64 * MB < said["meters"]["peak_memory_bytes"] < 128 * MB


def memory_lines(agent, name):
    lines = agent.cli("logs", name, "--json").out.splitlines()
    return [line for line in lines if "killed for memory" in line]


def test_a_child_killed_for_memory_is_a_line_in_the_log_and_the_server_lives(functions, agent):
    functions.deploy("parent", command=["/usr/bin/python3", "-c", PARENT], **MEMORY)
    assert agent.http("GET", "/http/parent/child").body == b"-9"
    agent.wait_until(lambda: len(memory_lines(agent, "parent")) == 1, 10, "the line")
    assert agent.http("GET", "/http/parent/").status == 200
    (instance,) = functions.ready("parent")
    reply = agent.http("GET", "/http/parent/exit-3")
    assert (reply.status, reply.json()["Code"]) == (502, "FunctionUnhandledError")
    assert "code 3" in reply.json()["Message"]
    assert "emory" not in reply.json()["Message"]
    assert len(memory_lines(agent, "parent")) == 1
    assert instance.id not in {ready.id for ready in functions.instances("parent")}


@pytest.mark.parametrize("code", [1, 3])
def test_who_gives_up_because_its_child_was_killed_keeps_its_own_code(functions, agent, code):
    functions.deploy("parent", command=["/usr/bin/python3", "-c", PARENT], **MEMORY)
    reply = agent.http("GET", f"/http/parent/child-exit-{code}")
    assert (reply.status, reply.json()["Code"]) == (502, "FunctionUnhandledError")
    assert f"code {code}" in reply.json()["Message"]
    assert "emory" not in reply.json()["Message"]
    assert len(memory_lines(agent, "parent")) == 1


def test_a_job_whose_child_was_killed_for_memory_keeps_its_own_end(functions, agent):
    program = (
        "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'x = bytearray(1 << 30)'])"
    )
    for name, code in (("well", 0), ("badly", 3)):
        command = ["/usr/bin/python3", "-c", f"{program}\nsys.exit({code})"]
        functions.deploy(name, "hello-job", "fc2", "job", command=command, **MEMORY)
        reply = agent.http("POST", f"/invoke/{name}", "x")
        record = functions.call(reply.headers["x-kindling-request-id"])
        assert record.exit_code == code
        assert "emory" not in record.error
        assert len(memory_lines(agent, name)) == 1


def test_killed_by_its_own_hand_is_not_out_of_memory(functions, agent):
    functions.deploy("victim")
    with functions.watching() as watched:
        reply = agent.http("GET", f"/http/victim/kill?signal={signal.SIGKILL}")
        agent.wait_until(lambda: bool(watched.of("victim", "InstanceFailed")), 10, "the event")
    assert (reply.status, reply.json()["Code"]) == (502, "FunctionUnhandledError")
    assert "code 137, signal 9 SIGKILL" in reply.json()["Message"]
    (event,) = watched.of("victim", "InstanceFailed")
    assert "out_of_memory" not in event.details
    assert event.details["signal"] == str(int(signal.SIGKILL))


# Disk


def test_past_its_disk_it_gets_enospc_at_the_quota(functions):
    functions.deploy("full", memory_mb=256)
    said = functions.probe("full", "disk?mb=700&path=/fill")
    assert said["error"] == "ENOSPC"
    assert 505 * MB <= said["written_bytes"] <= 513 * MB
    # It lives on, and what it deletes can be written again.
    functions.probe("full", "disk?mb=0&path=/fill&remove=1")
    assert functions.probe("full", "disk?mb=100&path=/fill")["error"] is None


def test_a_slot_is_empty_again_for_the_next_function(functions, agent):
    slots = sum(functions.capacity()["free_layers"].values())
    for n in range(slots + 1):
        functions.deploy("tidy")
        said = functions.probe("tidy", "disk?mb=400&path=/fill")
        assert said == {"written_bytes": 400 * MB, "error": None}, n
        functions.remove("tidy", force=True)


def test_with_no_free_slot_a_call_is_refused_and_nothing_is_left(functions, agent):
    slots = sum(functions.capacity()["free_layers"].values())
    functions.deploy("taker", scaling={"min": slots, "max": slots})
    assert sum(functions.capacity()["free_layers"].values()) == 0
    functions.deploy("late", timeout_s=5)
    reply = agent.http("GET", "/http/late/echo")
    assert (reply.status, reply.json()["Code"]) == (503, "ServiceUnavailable")
    assert "slots" in reply.json()["Message"]
    assert reply.headers["retry-after"]
    functions.remove("taker", force=True)
    agent.wait_until(lambda: sum(functions.capacity()["free_layers"].values()) == slots, 10)
    assert agent.http("GET", "/http/late/echo").status == 200


def test_shared_memory_is_bounded(functions):
    functions.deploy("full", memory_mb=256)
    said = functions.probe("full", "disk?mb=100&path=/dev/shm/fill")
    assert (said["error"], said["written_bytes"]) == ("ENOSPC", 64 * MB)


# Processes, files, CPU


def test_it_gets_no_more_processes_than_its_limit(functions):
    functions.deploy("forks", pids=50)
    said = functions.probe("forks", "spawn?n=100&s=1")
    assert said["error"] == "EAGAIN"
    assert 40 <= said["started"] < 50


@pytest.mark.parametrize("contract", ["scf-web", "vercel"])
def test_it_gets_no_more_files_than_its_contract_says(functions, contract):
    functions.deploy("opens", contract=contract)
    said = functions.probe("opens", "open?n=3000")
    assert said["error"] == "EMFILE"
    assert LIMITS[contract].fds - 20 <= said["opened"] < LIMITS[contract].fds


def test_the_cpu_quota_reaches_the_kernel(functions, agent):
    functions.deploy("slow", cpu_millis=250, scaling={"min": 1})
    (instance,) = functions.instances("slow")
    group = agent.group("cpu", instance.id)
    if agent.layout.version == 2:
        quota, period = (group / "cpu.max").read_text().split()
    else:
        quota = (group / "cpu.cfs_quota_us").read_text()
        period = (group / "cpu.cfs_period_us").read_text()
    assert int(quota) / int(period) == 0.25


def test_the_memory_limit_reaches_the_kernel_and_leaves_no_swap(functions, agent):
    functions.deploy("held", scaling={"min": 1}, **MEMORY)
    (instance,) = functions.instances("held")
    group = agent.group("memory", instance.id)
    # cgroup v1 counts memory and swap together, where the kernel counts swap at all.
    names = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
    wanted = [128 * MB, 128 * MB]
    if agent.layout.version == 2:
        names, wanted = ["memory.max", "memory.swap.max"], [128 * MB, 0]
    known = [name for name in names if (group / name).exists()]
    assert names[0] in known
    found = [int((group / name).read_text()) for name in known]
    assert found == wanted[: len(known)]


# Time


@pytest.mark.parametrize(
    ("contract", "status", "words"),
    [
        ("fc", 502, "Function timed out after 1 seconds"),
        ("fc2", 502, "FunctionTimeoutError"),
        ("scf-web", 433, "TimeLimitReached"),
        ("vercel", 504, "FUNCTION_INVOCATION_TIMEOUT"),
    ],
)
def test_a_call_past_its_time_is_told_and_its_instance_recycled(
    functions, agent, contract, status, words
):
    functions.deploy("late", contract=contract, timeout_s=1, concurrency=1)
    reply = agent.http("GET", "/http/late/sleep?s=30")
    assert reply.status == status
    assert words in reply.body.decode()
    agent.wait_until(lambda: not functions.instances("late"), 20, "the end of the instance")
    assert agent.http("GET", "/http/late/echo").status == 200


def test_among_several_calls_only_the_late_one_ends(functions, agent):
    functions.deploy("late", timeout_s=1, concurrency=2)
    first = functions.facts("late")["hostname"]
    assert agent.http("GET", "/http/late/sleep?s=2").status == 502
    assert functions.facts("late")["hostname"] == first


def test_a_job_past_its_time_is_ended(functions, agent):
    functions.deploy("late", "hello-job", "fc2", "job", timeout_s=1)
    reply = agent.http("POST", "/invoke/late", json.dumps({"sleep_s": 60}))
    assert "timed out after 1 seconds" in reply.body.decode(), reply
    record = functions.call(reply.headers["x-kindling-request-id"])
    assert record.state == pb.CALL_STATE_FAILED
    assert "longer than 1 s" in record.error


# The node


def test_a_node_without_memory_left_says_so(make_agent):
    agent: RunningAgent = make_agent(
        node="small",
        sections={"storage": {"writable": "tmpfs"}, "limits": {"memory_mb": 512}},
    )
    agent.start()
    with Functions(agent) as functions:
        functions.deploy("big", memory_mb=512, scaling={"min": 1})
        functions.deploy("more", memory_mb=128)
        reply = agent.http("GET", "/http/more/echo")
        assert (reply.status, reply.json()["Code"]) == (503, "ServiceUnavailable")
        assert "more wants 128 MB, 0 MB are free" in reply.json()["Message"]
    agent.close()
