"""`kindling reload` against the real control server: what is asked, awaited and said at the end."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agent.control.node import NodeView
from agent.errors import AgentError, FailedPrecondition, InvalidSpec, Overloaded, Problem
from agent.rootless.outcome import FAILED, RUNNING, ReloadOutcome
from tests.component.cli_agent import Agent, running
from tests.schemas import faults

REASON = "ModuleNotFoundError: no module x; the agent goes on as it was"


@pytest.fixture
def agent() -> Iterator[Agent]:
    with running() as one:
        yield one


def times(agent: Agent, verb: str) -> int:
    return [seen[0] for seen in agent.node.seen].count(verb)


def failing_first(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, verb: str, errors: list[AgentError]
) -> None:
    """Have the node refuse so many calls of a verb before it answers."""
    real: Callable[[], Any] = getattr(agent.node, verb)
    left = list(errors)

    async def answer() -> Any:
        if left:
            raise left.pop(0)
        return await real()

    monkeypatch.setattr(agent.node, verb, answer)


@pytest.mark.parametrize("looks", [0, 3])
def test_a_reload_waits_for_its_end_and_says_how_long_it_took(agent: Agent, looks: int) -> None:
    agent.node.reload_looks = looks
    done = agent.cli("reload")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith("reloaded in ")
    assert (times(agent, "reload"), times(agent, "info")) == (1, looks + 1)


def test_a_reload_as_json(agent: Agent) -> None:
    agent.node.outcome = ReloadOutcome(6, FAILED, "an older one")
    found = agent.json("reload", "reload")
    assert found.pop("took_ms") > 0
    assert found == {"number": 7, "state": "done", "reason": ""}


def test_a_failed_reload_is_told_by_the_verb_and_by_status(agent: Agent) -> None:
    assert agent.json("status", "status")["node"]["reload"] is None
    assert "reload" not in agent.cli("status").stdout
    agent.node.reload_reason = REASON
    done = agent.cli("reload")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == f"kindling reload: {REASON}\n"
    assert f"last reload failed: {REASON}\n" in agent.cli("status").stdout
    found = agent.json("status", "status")["node"]["reload"]
    assert found == {"number": 1, "state": "failed", "reason": REASON}
    asked = agent.cli("reload", "--json")
    assert faults("reload", json.loads(asked.stdout)) == []
    assert json.loads(asked.stderr)["error"]["code"] == "ReloadFailed"
    agent.node.reload_reason = ""
    assert agent.cli("reload").exit_code == 0
    assert "reload" not in agent.cli("status").stdout


def test_a_later_reload_that_ended_stands_for_ours(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = agent.node.info
    numbers = itertools.count(1)

    async def info() -> NodeView:
        agent.node.outcome = ReloadOutcome(next(numbers), RUNNING)
        return await real()

    agent.node.reload_looks = 2
    monkeypatch.setattr(agent.node, "info", info)
    assert agent.json("reload", "reload")["number"] == 3


def test_the_swap_of_workers_is_waited_out(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    away = Overloaded("makes room", reason="draining")
    failing_first(agent, monkeypatch, "reload", [away])
    failing_first(agent, monkeypatch, "info", [away, away])
    assert agent.cli("reload").exit_code == 0
    assert times(agent, "reload") == 1


def test_the_end_of_the_wait_tells_how_far_it_is(agent: Agent) -> None:
    agent.node.reload_looks = 1_000_000
    done = agent.cli("reload", "--timeout", "0.3")
    assert done.exit_code == 1
    assert "after 0.3 s the reload has not ended: it is running" in done.stderr
    assert agent.refused("reload", "--timeout", "0")["code"] == "ReloadRuns"


def test_an_agent_that_answers_nothing_any_more_is_a_reload_that_was_asked_for(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_first(agent, monkeypatch, "info", [Overloaded("no", reason="draining")] * 1000)
    done = agent.cli("reload", "--timeout", "0.5")
    assert done.exit_code == 1
    assert "it is asked for" in done.stderr


@pytest.mark.parametrize(
    "error",
    [FailedPrecondition("no, never"), InvalidSpec([Problem("x", "no, never")])],
)
def test_a_refusal_that_stands_is_told_at_once(agent: Agent, error: AgentError) -> None:
    agent.node.error = error
    done = agent.cli("reload")
    assert done.exit_code == 1
    assert "no, never" in done.stderr
    assert times(agent, "reload") == 1


def test_no_agent_is_told_at_once(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Agent, "env", {"KINDLING_SOCKET": f"{agent.socket}-not"})
    done = agent.cli("reload")
    assert done.exit_code == 1
    assert "no agent runs at" in done.stderr


def test_a_timeout_that_is_no_number_is_wrong_use(agent: Agent) -> None:
    assert agent.cli("reload", "--timeout", "nan").exit_code == 2
