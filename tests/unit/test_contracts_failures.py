"""Every failure has words in every contract, and every error of the agent becomes a failure."""

from __future__ import annotations

import json

import pytest

from agent import errors
from agent.contracts.base import Call, CallReport, Contract, NodeFacts
from agent.contracts.bind import DIALECTS, bind
from agent.contracts.failures import from_error
from agent.contracts.tencent_api import sealed
from agent.errors import Problem
from agent.model.failure import Failure, FailureKind
from agent.model.records import FunctionVersion, Meters
from agent.model.spec_parse import parse_spec

CASES = [
    ("fc", "event"),
    ("fc", "http"),
    ("fc2", "event"),
    ("fc2", "job"),
    ("scf-web", "http"),
    ("scf-job", "job"),
    ("vercel", "http"),
]
PLATFORM = {
    FailureKind.QUEUE_FULL,
    FailureKind.QUEUE_TIMEOUT,
    FailureKind.NO_CAPACITY,
    FailureKind.DRAINING,
    FailureKind.INTERNAL,
    FailureKind.IMAGE_UNAVAILABLE,
}


def contract(name: str, kind: str) -> Contract:
    spec = parse_spec({"name": "f", "image": "kindling.local/f:1", "contract": name, "kind": kind})
    return bind(FunctionVersion("f", 1, spec, None, "Ready", 0), NodeFacts())


@pytest.mark.parametrize("kind", list(FailureKind), ids=lambda kind: kind.value)
@pytest.mark.parametrize(("name", "function_kind"), CASES)
def test_every_failure_has_words(name: str, function_kind: str, kind: FailureKind) -> None:
    bound = contract(name, function_kind)
    request_id = bound.new_request_id(bytes(range(16)))
    # The longest stamped lines anyone could hand in must not make a reply without end.
    failure = Failure(kind, "why", exit_code=9, signal=9, log_lines=("é" * 3000,) * 20)
    for call_kind in ("event", "http", "job"):
        call = Call(request_id, call_kind, b"GET", b"/", [])
        reply = bound.error(failure, call, CallReport(Meters()))
        assert reply.body
        assert len(reply.body) < 32 * 1024
        if kind in PLATFORM:
            assert reply.status in {429, 432} or reply.status >= 500
        if name != "vercel":
            assert json.loads(reply.body)
        if name.startswith("scf"):
            assert json.loads(sealed(call, reply).body)["Response"]["RequestId"] == request_id


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.InvalidSpec([Problem("event", "holds NUL")]), FailureKind.BAD_REQUEST),
        (errors.FailedPrecondition("no"), FailureKind.BAD_REQUEST),
        (errors.NotFound("no f"), FailureKind.FUNCTION_NOT_FOUND),
        (errors.Overloaded("full", reason="queue"), FailureKind.QUEUE_FULL),
        (errors.Overloaded("late", reason="queue_timeout"), FailureKind.QUEUE_TIMEOUT),
        (errors.Overloaded("bye", reason="draining"), FailureKind.DRAINING),
        (errors.Overloaded("no slot", reason="slots"), FailureKind.NO_CAPACITY),
        (errors.Overloaded("no memory", reason="memory"), FailureKind.NO_CAPACITY),
        (errors.RuntimeUnavailable("containerd"), FailureKind.INTERNAL),
        (errors.Bug("us"), FailureKind.INTERNAL),
        (
            errors.FunctionFailed(Failure(FailureKind.EXITED, exit_code=3)),
            FailureKind.EXITED,
        ),
    ],
)
def test_errors_become_failures(error: errors.AgentError, kind: FailureKind) -> None:
    failure = from_error(error)
    assert failure.kind is kind
    if isinstance(error, errors.Overloaded):
        assert failure.retry_after_s == error.retry_after_s


def test_every_contract_of_the_spec_has_a_dialect() -> None:
    assert set(DIALECTS) == {"fc", "fc2", "scf-web", "scf-job", "vercel"}
