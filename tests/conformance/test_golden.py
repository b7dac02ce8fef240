"""Plays the golden transcripts: one TOML file per documented behaviour of a platform.

Each file names a spec and steps; a step is one question to the contract (or to a door) and the
exact answer. Heads and header lists are compared as sets of lines, bodies byte for byte, JSON
bodies as values.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from agent.contracts import tencent_api
from agent.contracts.base import Call, CallReport, Contract, Headers, NodeFacts, Reply
from agent.contracts.bind import bind
from agent.contracts.doors import (
    Doors,
    Route,
    call_kind,
    call_options,
    no_door,
    refusal,
    unknown_function,
)
from agent.contracts.failures import from_error
from agent.errors import AgentError, FunctionFailed
from agent.model.failure import Failure, FailureKind
from agent.model.records import FunctionVersion, ImageFacts, Meters
from agent.model.spec_parse import parse_spec

GOLDEN = Path(__file__).parent / "golden"
FILES = sorted(GOLDEN.rglob("*.toml"))
NODE = NodeFacts(region="cn-test", account_id="123", app_id="1250000000", uin="100000000001")
RANDOM = bytes(range(16))
IMAGE = ImageFacts("kindling.local/hello:1", "sha256:0", "sha256:1", 1, cmd=("/app",))

# Per contract: the request id made of RANDOM, and the trace made of that id.
_FC = ("1-00010203-04050607-08090a0b0c0d", "0001000102030405060708090a0b0c0d", "060708090a0b0c0d")
_SCF = (
    "00010203-0405-4607-8809-0a0b0c0d0e0f",
    "000102030405460788090a0b0c0d0e0f",
    "88090a0b0c0d0e0f",
)
_VERCEL = (
    "cn-test::00010-2030405060708-090a0b0c0d0e",
    "ce000102030405060708090a0b0c0d0e",
    "0708090a0b0c0d0e",
)
KNOWN = {"fc": _FC, "fc2": _FC, "scf-web": _SCF, "scf-job": _SCF, "vercel": _VERCEL}


def bound(spec: dict[str, Any]) -> Contract:
    full = {"name": "hello", "image": "kindling.local/hello:1", **spec}
    return bind(FunctionVersion("hello", 3, parse_spec(full), IMAGE, "Ready", 0), NODE)


def pairs(listed: list[list[str]]) -> Headers:
    return [(name.encode(), value.encode()) for name, value in listed]


def call_of(contract: Contract, step: dict[str, Any]) -> Call:
    given = step.get("call", {})
    return Call(
        request_id=contract.new_request_id(RANDOM),
        kind=given.get("kind", "event"),
        method=given.get("method", "POST").encode(),
        target=given.get("target", "/").encode(),
        headers=pairs(given.get("headers", [])),
        remote=given.get("remote", "203.0.113.7"),
        host=given.get("host", ""),
        qualifier=given.get("qualifier", "LATEST"),
        want_log_tail=given.get("want_log_tail", False),
    )


def report_of(step: dict[str, Any]) -> CallReport:
    given = step.get("report", {})
    meters = Meters(
        wall_ms=given.get("wall_ms", 16.81),
        billed_ms=given.get("billed_ms", 17.0),
        peak_memory_bytes=given.get("peak_memory_bytes", 54861496),
    )
    return CallReport(
        meters, log_tail=given.get("log_tail", "").encode(), instance=given.get("instance", "i-1")
    )


def head_lines(head: bytes) -> tuple[str, list[str]]:
    text = head.decode("latin-1")
    assert text.endswith("\r\n\r\n")
    line, *rest = text[:-4].split("\r\n")
    return line, sorted(rest)


def check_head(head: bytes, want: str) -> None:
    line, *rest = want.strip("\n").split("\n")
    # An empty value stands as `name: `, whose space an editor may have eaten.
    wanted = sorted(f"{text} " if text.endswith(":") else text for text in rest)
    assert head_lines(head) == (line, wanted)


def check_headers(headers: Headers, want: list[list[str]]) -> None:
    assert sorted(headers) == sorted(pairs(want))


def check_reply(reply: Reply, want: dict[str, Any]) -> None:
    assert reply.status == want["status"]
    if "headers" in want:
        check_headers(reply.headers, want["headers"])
    for name, value in want.get("some_headers", []):
        assert (name.encode(), value.encode()) in reply.headers
    for name in want.get("no_headers", []):
        assert name.lower().encode() not in [n.lower() for n, _ in reply.headers]
    if "body" in want:
        assert reply.body.decode() == want["body"]
    if "json" in want:
        assert json.loads(reply.body) == want["json"]


def failure_of(step: dict[str, Any]) -> Failure:
    given = dict(step["failure"])
    given["log_lines"] = tuple(given.get("log_lines", ()))
    return Failure(**{**given, "kind": FailureKind(given["kind"])})


def play_head(contract: Contract, step: dict[str, Any]) -> None:
    length = step.get("length", 0)
    head = contract.request_head(call_of(contract, step), None if length == "streamed" else length)
    check_head(head, step["want"])


def play_hook(contract: Contract, step: dict[str, Any]) -> None:
    hook = contract.hook(step["hook"])
    if step["want"] == "none":
        assert hook is None
        return
    assert hook is not None
    assert hook.timeout_s == step["timeout_s"]
    check_head(contract.hook_head(hook, contract.new_request_id(RANDOM), "i-1"), step["want"])
    logged = contract.log_hook(hook, "R")
    assert list(logged or ()) == step["log"]


def play_http_reply(contract: Contract, step: dict[str, Any]) -> None:
    call = call_of(contract, step)
    headers = pairs(step.get("headers", []))
    status = step.get("status", 200)
    if "padding_bytes" in step:
        headers.append((b"X-Padding", b"a" * step["padding_bytes"]))
        with pytest.raises(FunctionFailed) as failed:
            contract.http_reply(call, status, headers, report_of(step))
        check_reply(contract.error(failed.value.failure, call), step["want"])
        return
    check_headers(contract.http_reply(call, status, headers, report_of(step)), step["want"])


def play_event_reply(contract: Contract, step: dict[str, Any]) -> None:
    reply = contract.event_reply(
        call_of(contract, step),
        step.get("status", 200),
        pairs(step.get("headers", [])),
        step.get("body", "").encode(),
        report_of(step),
    )
    check_reply(reply, step["want"])


def play_job_reply(contract: Contract, step: dict[str, Any]) -> None:
    assert contract.waits_for_job() is step["waits"]
    output = (step.get("output", "") * step.get("times", 1)).encode()
    call = call_of(contract, {"call": {"kind": "job", **step.get("call", {})}})
    reply = contract.job_reply(call, step.get("exit_code"), output, report_of(step))
    check_reply(reply, step["want"])


def play_error(contract: Contract, step: dict[str, Any]) -> None:
    failure = failure_of(step)
    report = report_of(step) if "report" in step else None
    check_reply(contract.error(failure, call_of(contract, step), report), step["want"])


def play_environment(contract: Contract, step: dict[str, Any]) -> None:
    assert contract.environment("i-1") == step["want"]
    assert contract.port == step["port"]


def play_job_input(contract: Contract, step: dict[str, Any]) -> None:
    event = (step["event"] * step.get("times", 1)).encode("latin-1")
    if "refused" not in step:
        assert contract.job_input(event, "R").environment == step["want"]
        return
    with pytest.raises(AgentError) as refused:
        contract.job_input(event, "R")
    reply = contract.error(from_error(refused.value), call_of(contract, {"call": {"kind": "job"}}))
    assert reply.status == step["refused"]
    assert step["saying"] in reply.body.decode()


def play_log(contract: Contract, step: dict[str, Any]) -> None:
    call = call_of(contract, step)
    id = call.request_id
    assert [*contract.log_before(id), *contract.log_after(id, report_of(step).meters)] == step[
        "want"
    ]


def play_door(contract: Contract, step: dict[str, Any]) -> None:
    """What a door says to a request for this function, up to the request or the refusal."""
    headers = pairs(step.get("headers", []))
    method, target = step["method"].encode(), step["target"].encode()
    doors = Doors(step.get("domain", ""))
    host = step.get("host", "127.0.0.1:8080").encode()
    route = doors.match(method, target, host, headers)
    if route is None:
        check_reply(no_door(method, target, "R"), step["refused"])
        return
    name = route.name
    call = call_of(contract, {"call": {"headers": step.get("headers", [])}})
    if route.needs_body:
        opened = tencent_api.parse(headers, step["body"].encode(), call.request_id)
        if isinstance(opened, Reply):
            check_reply(opened, step["refused"])
            return
        name = opened.name
    if name != "hello":
        check_reply(unknown_function(route, f"no function {name}", "R"), step["refused"])
        return
    play_admission(contract, route, call, step)


def play_admission(contract: Contract, route: Route, call: Call, step: dict[str, Any]) -> None:
    call.kind = call_kind(route.door, contract)
    no = refusal(route, contract, call)
    if no is not None:
        check_reply(no, step["refused"])
        return
    assert "refused" not in step
    assert call.kind == step["kind"]
    if call.kind == "job":
        return
    call.method, call.target = step["method"].encode(), route.target
    call.want_log_tail = call_options(call.headers).want_log_tail
    line, _ = head_lines(contract.request_head(call, 0))
    assert line == step["line"]


def play_sealed(contract: Contract, step: dict[str, Any]) -> None:
    call = call_of(contract, step)
    if "failure" in step:
        reply = contract.error(failure_of(step), call)
    elif contract.kind == "job":
        reply = contract.job_reply(call, None, b"", report_of(step))
    else:
        body = step.get("body", "").encode()
        reply = contract.event_reply(call, step.get("status", 200), [], body, report_of(step))
    check_reply(tencent_api.sealed(call, reply, report_of(step)), step["want"])


PLAYERS = {
    "head": play_head,
    "hook": play_hook,
    "http_reply": play_http_reply,
    "event_reply": play_event_reply,
    "job_reply": play_job_reply,
    "error": play_error,
    "environment": play_environment,
    "job_input": play_job_input,
    "log": play_log,
    "door": play_door,
    "sealed": play_sealed,
}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(GOLDEN).with_suffix("")))
def test_golden(path: Path) -> None:
    text = path.read_text()
    contract = bound(tomllib.loads(text)["spec"])
    request_id, trace, parent = KNOWN[contract.name]
    traced = f"traceparent: 00-{trace}-{parent}-01\ntracestate: kindling={parent}"
    transcript = tomllib.loads(text.replace("<id>", request_id).replace("<trace>", traced))
    assert transcript["step"]
    for step in transcript["step"]:
        PLAYERS[step["ask"]](contract, step)


def test_every_contract_has_transcripts() -> None:
    told = {path.parent.name for path in FILES}
    assert {"fc", "fc2", "scf-web", "scf-job", "vercel", "doors"} <= told
