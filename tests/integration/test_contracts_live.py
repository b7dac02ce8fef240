"""One function per contract on the real agent, called through every door, with its cold start.

What a door answers stands in `tests/conformance/golden/doors`; the sample images tell what the
platform's side of them received.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agent._pb.worker.v1 import worker_pb2 as pb
from tests.integration.functions import Functions
from tests.integration.running import Reply, RunningAgent
from tests.leak import members, our_uids

Fields = dict[str, Any]
PHASES = {"queue", "image", "slots", "create", "start", "listen", "init"}
# Of the whole: what an itemised start may leave unexplained.
UNEXPLAINED = 0.02


@dataclass(frozen=True)
class Sample:
    """A function of one contract; `fields` are further ones of its spec."""

    name: str
    image: str
    contract: str
    kind: str
    fields: Fields = field(default_factory=dict)


SAMPLES = [
    Sample("fc-event", "hello-event", "fc", "event", {"hooks": {"initialize": {}}}),
    Sample("fc-http", "hello-http", "fc", "http"),
    Sample("fc2-event", "hello-event", "fc2", "event"),
    Sample("fc2-job", "hello-job", "fc2", "job"),
    Sample("scf-web", "hello-http", "scf-web", "http"),
    Sample("scf-job", "hello-job", "scf-job", "job"),
    Sample("vercel", "hello-http", "vercel", "http", {"port": 8080}),
]
NAMES = [sample.name for sample in SAMPLES]
WEB = [sample.name for sample in SAMPLES if sample.kind != "job"]
EVENT = json.dumps({"name": "fire"})


@pytest.fixture(scope="module")
def deployed(agent: RunningAgent) -> Iterator[Functions]:
    """Every sample, deployed once for this file."""
    with Functions(agent) as functions:
        for one in SAMPLES:
            functions.deploy(one.name, one.image, one.contract, one.kind, **one.fields)
        yield functions


def invoke(agent: RunningAgent, name: str, event: str = EVENT, **headers: str) -> Reply:
    return agent.http("POST", f"/invoke/{name}", event, headers)


def fc_api(agent: RunningAgent, name: str) -> Reply:
    return agent.http("POST", f"/2023-03-30/functions/{name}/invocations", EVENT)


def tencent(agent: RunningAgent, name: str, event: str = EVENT) -> dict[str, Any]:
    body = json.dumps({"FunctionName": name, "ClientContext": event})
    reply = agent.http("POST", "/", body, {"X-TC-Action": "Invoke"})
    assert reply.status == 200, reply
    response: dict[str, Any] = reply.json()["Response"]
    return response


# Replies, door by door


def test_fc_event_is_called_with_invoke_and_its_answer_is_the_result(agent, deployed):
    for reply in (invoke(agent, "fc-event"), fc_api(agent, "fc-event")):
        assert reply.status == 200
        result = reply.json()
        assert (result["message"], result["path"]) == ("hello, fire", "/invoke")
        assert result["initialized"] is True
        assert result["request_id"] == reply.headers["x-fc-request-id"]
        # The container's own headers do not reach the caller of an event.
        assert reply.headers["content-type"] == "application/octet-stream"
        assert reply.headers["x-fc-instance-id"] == result["instance"]


def test_fc_event_returns_its_log_tail_when_asked(agent, deployed):
    reply = invoke(agent, "fc-event", **{"X-Fc-Log-Type": "Tail"})
    assert reply.json()["request_id"] == reply.headers["x-fc-request-id"]
    tail = base64.b64decode(reply.headers["x-fc-log-result"]).decode()
    assert f"FC Invoke Start RequestId: {reply.headers['x-fc-request-id']}" in tail
    assert f"event of {len(EVENT)} bytes, request {reply.headers['x-fc-request-id']}" in tail
    assert f"FC Invoke End RequestId: {reply.headers['x-fc-request-id']}" in tail


def test_fc_http_passes_paths_and_answers_unchanged(agent, deployed):
    path = "/a%20b/%2F?q=%C3%A4&r"
    reply = agent.http("GET", f"/http/fc-http{path}")
    assert (reply.status, reply.body.decode()) == (200, f"hello from GET {path}\n")
    assert agent.http("GET", "/http/fc-http/status?code=418").status == 418
    # FC's event door of an HTTP function is POST /invoke, answered by the app.
    for reply in (invoke(agent, "fc-http"), fc_api(agent, "fc-http")):
        assert (reply.status, reply.body) == (200, b"hello from POST /invoke\n")


def test_fc2_event_answers_its_result(agent, deployed):
    for reply in (invoke(agent, "fc2-event"), fc_api(agent, "fc2-event")):
        assert reply.status == 200
        assert reply.json()["message"] == "hello, fire"
        assert reply.json()["initialized"] is False


def test_fc2_job_is_answered_at_its_exit_with_its_output(agent, deployed):
    for reply in (invoke(agent, "fc2-job"), fc_api(agent, "fc2-job")):
        assert reply.status == 200
        assert reply.body.decode().splitlines() == [
            f"job starts with event: {EVENT}",
            "job ends with 0",
        ]


def test_scf_web_takes_events_and_passes_http_through(agent, deployed):
    reply = invoke(agent, "scf-web")
    assert (reply.status, reply.body) == (200, b"hello from POST /event-invoke\n")
    response = tencent(agent, "scf-web")
    assert response["Result"]["RetMsg"] == "hello from POST /event-invoke\n"
    assert response["Result"]["FunctionRequestId"] == response["RequestId"]
    seen = agent.http("GET", "/http/scf-web/headers", headers={"X-Scf-Request-Id": "forged"})
    names = [name.lower() for name, _ in seen.json()["headers"]]
    assert names.count("x-scf-request-id") == 1
    assert ["X-Scf-Request-Id", "forged"] not in seen.json()["headers"]


def test_scf_job_is_answered_at_its_start_and_its_exit_is_recorded(agent, deployed):
    event = json.dumps({"exit_code": 7, "sleep_s": 0.2})
    reply = invoke(agent, "scf-job", event)
    assert reply.status == 200
    ids = [reply.headers["x-scf-request-id"], tencent(agent, "scf-job", event)["RequestId"]]
    for id in ids:
        agent.wait_until(lambda id=id: deployed.call(id).HasField("exit_code"), 20, "the exit")
        record = deployed.call(id)
        assert (record.exit_code, record.state) == (7, pb.CALL_STATE_FAILED)
    assert deployed.log("scf-job").count("job ends with 7") == 2


def test_vercel_gets_events_as_post_to_the_root(agent, deployed):
    reply = invoke(agent, "vercel")
    assert (reply.status, reply.body) == (200, b"hello from POST /\n")
    assert reply.headers["x-vercel-id"].startswith("local::")
    assert agent.http("GET", "/http/vercel/x").body == b"hello from GET /x\n"
    assert agent.http("GET", "/http/vercel/env").json()["PORT"] == "8080"


@pytest.mark.parametrize("name", ["fc-event", "fc2-event", "fc2-job", "scf-job"])
def test_what_serves_no_http_refuses_it_and_starts_nothing(agent, deployed, name):
    before = {one.id for one in deployed.instances(name)}
    reply = agent.http("GET", f"/http/{name}/x")
    assert reply.status == 400
    assert "not an HTTP function" in reply.body.decode()
    assert {one.id for one in deployed.instances(name)} == before


@pytest.mark.parametrize("name", ["scf-web", "scf-job", "vercel", "nobody"])
def test_fcs_door_knows_fcs_functions_only(agent, deployed, name):
    reply = fc_api(agent, name)
    assert (reply.status, reply.json()["Code"]) == (404, "FunctionNotFound")


@pytest.mark.parametrize("name", ["fc-event", "fc-http", "fc2-event", "fc2-job", "vercel", "no"])
def test_tencents_door_knows_tencents_functions_only(agent, deployed, name):
    assert tencent(agent, name)["Error"]["Code"] == "ResourceNotFound.FunctionName"


def test_an_unknown_name_is_refused_in_our_own_shape(agent, deployed):
    for reply in (invoke(agent, "nobody"), agent.http("GET", "/http/nobody/")):
        assert reply.status == 404
        assert reply.json()["error"]["code"] == "FunctionNotFound"
        assert reply.json()["request_id"] == reply.headers["x-kindling-request-id"]


def test_a_stream_comes_through_as_it_is_made(agent, deployed):
    client = http.client.HTTPConnection("127.0.0.1", agent.invoke_port, timeout=60)
    with closing(client):
        client.request("GET", "/http/fc-http/stream?n=3&ms=1000")
        reply = client.getresponse()
        assert reply.headers["transfer-encoding"] == "chunked"
        assert reply.readline() == b"line 0\n"
        # The function still pauses before its next line.
        assert [one.inflight for one in deployed.instances("fc-http")] == [1]
        assert reply.read() == b"line 1\nline 2\n"
    agent.wait_until(lambda: deployed.capacity()["inflight"] == 0, 10, "the end of the call")


# Cold and warm


@pytest.mark.parametrize("sample", SAMPLES, ids=NAMES)
def test_a_cold_start_is_itemised_and_the_items_add_up(agent, deployed, sample):
    deployed.deploy(
        f"cold-{sample.name}", sample.image, sample.contract, sample.kind, **sample.fields
    )
    try:
        check_cold_start(agent, deployed, sample)
    finally:
        deployed.remove(f"cold-{sample.name}", force=True)


def check_cold_start(agent: RunningAgent, deployed: Functions, sample: Sample) -> None:
    name = f"cold-{sample.name}"
    first = invoke(agent, name, **{"X-Kindling-Trace": "1"})
    assert first.status == 200, first
    total_ms = float(first.headers["x-kindling-cold-start"])
    phases = started(first)
    assert set(phases) == PHASES
    assert abs(sum(phases.values()) - total_ms) <= UNEXPLAINED * total_ms, (phases, total_ms)
    second = invoke(agent, name, **{"X-Kindling-Trace": "1"})
    assert second.status == 200
    if sample.kind == "job":
        # Every run of a job is a start of its own.
        assert "x-kindling-cold-start" in second.headers
        return
    assert "x-kindling-cold-start" not in second.headers
    assert not started(second)
    (instance,) = deployed.instances(name)
    assert instance.cold_start.total.ToNanoseconds() / 1e6 == pytest.approx(total_ms, abs=0.01)


def started(reply: Reply) -> dict[str, float]:
    """Return the phases of the start that a reply's Server-Timing tells, milliseconds."""
    found = {}
    for entry in reply.headers["server-timing"].split(", "):
        name, _, spent = entry.partition(";dur=")
        if name.startswith("start-"):
            found[name.removeprefix("start-")] = float(spent)
    return found


def test_the_command_line_tells_the_same(agent, deployed):
    said = agent.cli("invoke", "fc-http", "--path", "/x", "--json").json()
    assert base64.b64decode(said["body_base64"]) == b"hello from GET /x\n"
    assert said["status"] == 200
    said = agent.cli("invoke", "scf-job", "--data", "{}", "--wait").out
    assert "job starts with event: {}\njob ends with 0\n" in said


# Whose processes


def test_every_process_belongs_to_kindling_or_its_subordinate_ids(agent, deployed):
    for name in WEB:
        assert invoke(agent, name).status == 200
    deployed.deploy("user", scaling={"min": 1}, user="1000:1000")
    assert deployed.facts("user")["uid"] == 1000
    pids = ours(agent)
    names = {Path(os.readlink(f"/proc/{pid}/exe")).name for pid in pids}
    needed = {"containerd", "containerd-shim-runc-v2", "rootlesskit", "slirp4netns", "init"}
    assert needed <= names, names
    kindling, subordinate = our_uids()
    uids = {pid: owner(pid) for pid in pids}
    strangers = {
        pid: uid for pid, uid in uids.items() if uid not in kindling and uid not in subordinate
    }
    assert strangers == {}
    assert subordinate.start + 999 in uids.values(), "uid 1000 of a container is a subordinate one"


def ours(agent: RunningAgent) -> set[int]:
    """Return the processes below the node's cgroups and those that name its run directory."""
    found = members([agent.layout.agent_directory(agent.node).parent])
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                named = str(agent.run).encode() in (entry / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if named:
                found.add(int(entry.name))
    return found


def owner(pid: int) -> int:
    """Return the user a process runs as, seen from the host."""
    status = Path(f"/proc/{pid}/status").read_text("utf-8", "replace")
    line = next(line for line in status.splitlines() if line.startswith("Uid:"))
    (uid,) = set(line.split()[1:])
    return int(uid)
