"""What is asked about a thousand functions lets others go in between: the loop's turns, counted."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent._pb.worker.v1 import worker_pb2 as pb
from agent.aio import slices
from agent.aio.slices import SLICE_S, Slices
from agent.aio.tasks import spawn, stop
from agent.control.deploying import DeployVerbs
from agent.control.forms import ROOM, VersionForms
from agent.control.node import FunctionView, InstanceView, Node
from agent.instances.timer import Timer
from agent.node.facts import NodeFactsView
from agent.telemetry.logs import LogLine, Logs, read
from agent.telemetry.metrics import AgentMetrics
from tests.component.control_fake import AT_NS, COLD, spec, version
from tests.component.function_house import until

MANY = 1000
LEAST_TURNS = 500


@pytest.fixture
def every_slice_is_over(monkeypatch):
    """A clock that has run a slice on whenever it is looked at: a pause is one at every step."""
    monkeypatch.setattr(slices, "SLICE_S", 0.0)


class Turns:
    """How often the loop came round to somebody else."""

    def __init__(self):
        self.count = 0

    async def run(self):
        while True:
            self.count += 1
            await asyncio.sleep(0)


@asynccontextmanager
async def turning():
    turns = Turns()
    task = spawn("turns", turns.run())
    yield turns
    await stop(task)


async def test_a_slice_ends_when_it_has_lasted_long_enough_and_not_before():
    at = [0.0]
    some = Slices(lambda: at[0])
    async with turning() as turns:
        for _ in range(100):
            await some.pause()
        assert turns.count == 0
        at[0] += SLICE_S
        await some.pause()
        assert turns.count == 1
        await some.pause()
        assert turns.count == 1


class Many:
    """A node with a thousand functions of one instance each."""

    def __init__(self):
        self.versions = [version(spec(f"f{n:04}")) for n in range(MANY)]

    async def functions(self):
        return [FunctionView(one.name, one, (one,)) for one in self.versions]

    async def instances(self, function):
        del function
        return [
            InstanceView(f"{one.name}-1", one.name, 1, "READY", 0, AT_NS, COLD)
            for one in self.versions
        ]

    async def get(self, name, qualifier):
        del qualifier
        return FunctionView(name, self.versions[0], tuple(self.versions), ())


@pytest.mark.parametrize(
    "ask",
    [
        lambda verbs: verbs.list_functions(pb.ListRequest()),
        lambda verbs: verbs.list_instances(pb.ListInstancesRequest()),
        lambda verbs: verbs.get(pb.GetRequest(name="f")),
    ],
    ids=["List", "ListInstances", "Get"],
)
async def test_a_question_about_many_lets_others_go_in_between(ask, every_slice_is_over):
    verbs = DeployVerbs(cast(Node, Many()))
    async with turning() as turns:
        await ask(verbs)
        assert turns.count >= LEAST_TURNS


async def test_a_scrape_of_many_functions_lets_others_go_in_between(every_slice_is_over):
    metrics = AgentMetrics()
    for n in range(MANY):
        metrics.calls.function(f"f{n}")
    async with turning() as turns:
        text = await metrics.render()
        assert turns.count >= LEAST_TURNS
    assert text.count(b"kindling_calls_inflight{") == MANY


async def test_a_long_log_is_read_in_slices(every_slice_is_over):
    log = Logs(1 << 20, 1 << 30).of("f")
    for n in range(MANY):
        log.append(LogLine(n, "stdout", "f-1", 1, str(n)))
    for tail in (None, MANY):
        async with turning() as turns:
            found = [one.text async for one in read(log.entries(), lambda _: True, tail)]
            assert turns.count >= LEAST_TURNS
        assert found == [str(n) for n in range(MANY)]


async def test_the_timer_visits_many_versions_in_slices(every_slice_is_over):
    class Version:
        waiting = False
        seen_at = 0

        def tick(self, now):
            del now
            self.seen_at = turns.count

    versions = [Version() for _ in range(MANY)]
    async with turning() as turns:
        timer = spawn("timer", Timer(asyncio.get_running_loop().time).run(lambda: versions))
        await until(lambda: versions[-1].seen_at)
        await stop(timer)
    assert versions[-1].seen_at - versions[0].seen_at >= LEAST_TURNS


async def test_the_state_of_many_versions_is_told_in_slices(every_slice_is_over):
    runners = SimpleNamespace(fleet="", jobs="", builder=SimpleNamespace(shims=""))
    parts: Any = SimpleNamespace(
        catalog=SimpleNamespace(targets=lambda: list(range(MANY))),
        reconciler=SimpleNamespace(sentence="as wanted"),
        runners=runners,
        lazy="",
        layers=SimpleNamespace(counts=dict),
        gateway=SimpleNamespace(state=dict),
    )
    async with turning() as turns:
        state = await NodeFactsView(parts).state()
        assert turns.count >= LEAST_TURNS
    assert len(state["targets"]) == MANY


async def test_a_form_is_kept_as_long_as_its_version_is_latest():
    forms, first = VersionForms(), version(spec("f"))
    form = forms.of(first)
    assert forms.of(first) is form
    assert pb.FunctionVersion.FromString(form).version == 1
    second = version(spec("f", timeout_s=7), 2)
    assert pb.FunctionVersion.FromString(forms.of(second)).version == 2
    assert len(forms) == 1
    assert forms.entry(second).latest.spec.timeout_s == 7


async def test_forms_of_removed_functions_are_forgotten():
    forms = VersionForms()
    for n in range(ROOM + 10):
        forms.of(version(spec(f"f{n}")))
    forms.forget_all_but({"f1", "f2"}, 2)
    assert len(forms) == 2
