"""The command line's JSON and the scheduler's door of a real agent, each as it is described."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from agent._pb.worker.v1 import worker_pb2 as pb
from tests.integration.functions import HOST, Functions, archives
from tests.integration.running import RunningAgent
from tests.schemas import faults

SERVICE = pb.DESCRIPTOR.services_by_name["Worker"].full_name
DEPLOY = ("deploy", "--contract", "fc", "--kind", "http", "--wait")


@pytest.fixture
def own(make_agent) -> Iterator[RunningAgent]:
    """An agent of its own: images are imported and removed."""
    agent = make_agent(node="words", sections={"storage": {"writable": "tmpfs"}})
    agent.start()
    with Functions(agent) as functions:
        functions.bring("hello-http")
        yield agent
    agent.close()


def told(agent: RunningAgent, schema: str, *arguments: str | Path) -> Any:
    """Run a verb with --json and return what it prints, checked against its schema."""
    value = agent.cli(*arguments, "--json").json()
    assert faults(schema, value) == []
    return value


def test_every_verb_tells_json_as_its_schema_says(own):
    deployed = told(
        own, "deploy", *DEPLOY, "--name", "web", "--image", f"{HOST}/hello-http:1",
        "--set", "scaling.min=1", "--set", "scaling.freeze_after_ms=-1",
    )  # fmt: skip
    assert (deployed["created"], deployed["version"], deployed["state"]) == (True, 1, "Ready")
    invoked = told(own, "invoke", "invoke", "web", "--path", "/x")
    assert base64.b64decode(invoked["body_base64"]) == b"hello from GET /x\n"
    assert (invoked["status"], invoked["error"]) == (200, None)
    status = told(own, "status", "status")
    assert status["node"]["name"] == own.node
    assert [one["name"] for one in status["functions"]] == ["web"]
    assert [(one["function"], one["state"]) for one in status["instances"]] == [("web", "READY")]
    lines = [json.loads(line) for line in own.cli("logs", "web", "--json").out.splitlines()]
    assert [fault for line in lines for fault in faults("logs", line)] == []
    assert any(invoked["request_id"] in line["text"] for line in lines)
    told(own, "drain", "drain")
    told(own, "undrain", "undrain")
    told(own, "remove", "remove", "web")
    assert told(own, "status", "status")["functions"] == []


def test_images_tell_json_as_their_schemas_say(own):
    name = f"{HOST}/hello-http:1"
    told(own, "image-rm", "image", "rm", name)
    listed = told(own, "image-ls", "image", "ls")["images"]
    assert name not in {image["name"] for image in listed}
    imported = told(own, "image-import", "image", "import", archives()[name])["images"]
    assert [image["name"] for image in imported] == [name]
    listed = told(own, "image-ls", "image", "ls")["images"]
    assert imported[0]["digest"] in {image["digest"] for image in listed}


def test_a_check_of_this_host_finds_all_in_place(agent):
    found = told(agent, "check", "check", "--config", agent.config)
    assert found["ok"]
    assert [one["name"] for one in found["checks"] if one["required"] and not one["ok"]] == []


def test_a_refusal_is_told_as_the_schema_of_errors_says(agent):
    done = agent.cli("remove", "nobody", "--json", check=False)
    assert (done.status, done.out) == (1, "")
    error = json.loads(done.err)
    assert faults("error", error) == []
    assert error["error"]["code"] == "NotFound"


@pytest.mark.parametrize("door", ["kindling.sock", "kindling-ro.sock"])
def test_health_and_reflection_answer_at_both_doors(agent, door):
    options = [("grpc.default_authority", "localhost")]
    with grpc.insecure_channel(f"unix:{agent.run / door}", options) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", SERVICE):
            request = health_pb2.HealthCheckRequest(service=service)
            reply = health.Check(request, timeout=10)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        (answer,) = reflection.ServerReflectionInfo(iter([request]), timeout=10)
        assert SERVICE in {one.name for one in answer.list_services_response.service}
