"""Specs and errors over the wire's messages: the same names, nothing lost, always small enough."""

from __future__ import annotations

import tomllib
from typing import Any
from urllib.parse import quote

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.json_format import MessageToDict, ParseDict
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from agent._pb.worker.v1 import worker_pb2 as pb
from agent.cli import answer
from agent.cli.deploy import spec_message
from agent.control.convert import spec_from_proto, spec_to_proto, spec_values, timestamp
from agent.control.errors import DETAILS_KEY, MESSAGE_BYTES, Refusal, clipped, refusal, told
from agent.errors import Bug, FunctionFailed, InvalidSpec, Problem
from agent.model import spec as model
from agent.model.failure import Failure, FailureKind
from agent.model.spec import canonical
from agent.model.spec_parse import parse_spec

WHOLE = """
name = "whole"
version = 7
image = "kindling.local/whole:1"
contract = "fc2"
kind = "http"
command = ["/bin/a", "b c"]
args = ["", "ü"]
user = "1000:1000"
port = 8000
memory_mb = 512
cpu_millis = 250
pids = 64
disk_mb = 512
timeout_s = 12.5
startup_timeout_s = 30
concurrency = 4
max_queue = 10
queue_timeout_s = 1
egress = ["10.0.0.0/8", "192.168.0.0/16"]
acceleration = "eager"
on_client_cancel = "recycle"
init = "false"
[env]
A = "1"
[labels]
team = "x"
[scaling]
min = 0
max = 9
standby = 0
idle_s = 60
freeze_after_ms = 0
[hooks.pre_stop]
path = "/pre-stop"
timeout_s = 5
[async_calls]
max_retries = 0
max_age_s = 60
on_success = "http://example.net/ok"
"""


@pytest.mark.parametrize(
    "values",
    [
        tomllib.loads(WHOLE),
        {"name": "a", "image": "x/a:1", "contract": "fc"},
        {"name": "a", "image": "x/a:1", "contract": "scf-job", "egress": "none"},
        {"name": "a", "image": "x/a:1", "contract": "vercel", "env": {"PORT": "3000"}},
        {"name": "a", "image": "x/a:1", "contract": "scf-web", "egress": "all"},
    ],
)
def test_toml_json_and_proto_give_the_same_spec(values: dict[str, Any]) -> None:
    direct = parse_spec(values)
    wire = dict(values)
    if isinstance(wire.get("egress"), str):
        wire["egress"] = [wire["egress"]]
    message = ParseDict(wire, pb.FunctionSpec())
    assert spec_from_proto(message) == direct
    assert spec_from_proto(pb.FunctionSpec.FromString(message.SerializeToString())) == direct
    # What comes back whole may be deployed again and is equal.
    assert canonical(spec_from_proto(spec_to_proto(direct))) == canonical(direct)


def test_a_set_field_comes_out_as_toml_has_it() -> None:
    values = tomllib.loads(WHOLE)
    message = ParseDict(values, pb.FunctionSpec())
    assert spec_values(message) == values
    assert MessageToDict(message) == values, "JSON names equal TOML names without any option"


@pytest.mark.parametrize("name", ["all", "none"])
def test_egress_words_are_a_list_of_one_on_the_wire(name: str) -> None:
    values = spec_values(pb.FunctionSpec(name="a", egress=[name]))
    assert values["egress"] == name


ONLY_ON_THE_WIRE = {"never_freeze"}
"""What TOML says by the value of another field (`agent/model/spec_wire.py`)."""


def _names(message: Descriptor) -> set[str]:
    return {field.name for field in message.fields} - ONLY_ON_THE_WIRE


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (model.FunctionSpec, pb.FunctionSpec),
        (model.Secret, pb.Secret),
        (model.MountSpec, pb.VolumeMount),
        (model.ScalingSpec, pb.Scaling),
        (model.HooksSpec, pb.Hooks),
        (model.HookSpec, pb.Hook),
        (model.HealthCheck, pb.HealthCheck),
        (model.RegistrySpec, pb.Registry),
        (model.AsyncCalls, pb.AsyncCalls),
    ],
)
def test_the_model_and_the_proto_have_the_same_fields(table: type[BaseModel], message: Any) -> None:
    assert set(table.model_fields) == _names(message.DESCRIPTOR)


@pytest.mark.parametrize("after_ms", [-1, 0, 250])
def test_when_an_instance_is_frozen_comes_back_as_it_was_given(after_ms: int) -> None:
    given = {"name": "a", "image": "x/a:1", "contract": "fc"}
    values = given | {"scaling": {"min": 1, "freeze_after_ms": after_ms}}
    sent = spec_message(values)
    assert sent.scaling.never_freeze == (after_ms == -1)
    spec = spec_from_proto(sent)
    assert (spec.scaling.min, spec.scaling.freeze_after_ms) == (1, after_ms)
    assert spec_from_proto(spec_to_proto(spec)) == spec
    assert answer.spec(spec_to_proto(spec))["scaling"]["freeze_after_ms"] == after_ms


def test_secrets_and_credentials_never_come_back() -> None:
    values = {
        "name": "a",
        "image": "x/a:1",
        "contract": "fc",
        "secrets": [{"name": "KEY", "value": "hush-1"}],
        "registry": {"username": "hush-2", "password": "hush-3", "identity_token": "hush-4"},
    }
    whole = spec_to_proto(spec_from_proto(ParseDict(values, pb.FunctionSpec())))
    assert b"hush" not in whole.SerializeToString()
    assert [secret.name for secret in whole.secrets] == ["KEY"]


def test_unknown_fields_are_told_together_with_other_problems() -> None:
    message = pb.FunctionSpec(name="a", image="x/a:1", contract="fc", memory_mb=1)
    message.secrets.add(name="K", value="v").MergeFromString(b"\xa0\x06\x07")
    with pytest.raises(InvalidSpec) as caught:
        spec_from_proto(message)
    fields = {problem.field for problem in caught.value.problems}
    assert fields == {"secrets[0].field 100", "memory_mb"}


def test_never_is_no_timestamp() -> None:
    assert timestamp(0) is None
    stamp = timestamp(1_700_000_000_000_000_001)
    assert stamp is not None
    assert (stamp.seconds, stamp.nanos) == (1_700_000_000, 1)


def _read_back(refused: Refusal) -> Refusal:
    error = grpc.aio.AioRpcError(
        refused.code,
        initial_metadata=grpc.aio.Metadata(),
        trailing_metadata=grpc.aio.Metadata(*refused.trailers),
        details=clipped(refused.message, MESSAGE_BYTES),
    )
    return told(error)


def _trailer_bytes(refused: Refusal) -> int:
    # HPACK counts 32 bytes per entry beside name and value (RFC 7541, 4.1).
    message = quote(clipped(refused.message, MESSAGE_BYTES), safe=" ")
    ((key, value),) = refused.trailers
    return 3 * 32 + len("grpc-status16grpc-message") + len(message) + len(key) + len(value) * 4 // 3


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=3000)


@given(problems=st.lists(st.builds(Problem, texts, texts), max_size=40))
def test_any_problems_fit_into_trailers_and_come_back(problems: list[Problem]) -> None:
    refused = refusal(InvalidSpec(problems), "Deploy")
    assert _trailer_bytes(refused) < 8192
    back = _read_back(refused)
    assert (back.code, back.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_SPEC")
    assert len(back.problems) <= len(problems)
    if len(back.problems) < len(problems):
        assert back.problems[-1].message.endswith("more problems")


@given(message=texts, lines=st.lists(texts, max_size=30), kind=st.sampled_from(FailureKind))
def test_any_failure_fits_and_keeps_its_last_lines(
    message: str, lines: list[str], kind: FailureKind
) -> None:
    failure = Failure(kind, message, 139, 11, True, log_lines=(*lines, "the last line"))
    refused = refusal(FunctionFailed(failure), "Deploy")
    assert _trailer_bytes(refused) < 8192
    back = _read_back(refused)
    assert back.log.endswith("the last line")
    assert back.metadata is not None
    assert back.metadata["kind"] == kind.value
    assert (back.metadata["exit_code"], back.metadata["signal"]) == ("139", "11")


def test_broken_details_are_left_out() -> None:
    error = grpc.aio.AioRpcError(
        grpc.StatusCode.NOT_FOUND,
        grpc.aio.Metadata(),
        grpc.aio.Metadata((DETAILS_KEY, b"\xff\xff\xff")),
        "no such thing",
    )
    assert told(error) == Refusal(grpc.StatusCode.NOT_FOUND, "no such thing", metadata={})


def test_every_error_of_the_agent_has_a_code() -> None:
    assert refusal(Bug("x"), "Get").code == grpc.StatusCode.INTERNAL
    assert refusal(RuntimeError("inner detail"), "Get").message.startswith("Get failed inside")
    assert "inner detail" not in refusal(RuntimeError("inner detail"), "Get").message
