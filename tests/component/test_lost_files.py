"""Instances on lazy mounts whose engine dies or hangs, and what is let go beside them."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.aio.tasks import spawn, stop
from agent.containerd.lazy import LazySource
from agent.core.instance import State
from agent.deployments.catalog import Catalog
from agent.linux.process import Identity
from agent.recovery import lost_files
from agent.recovery.lost_files import LostFiles
from agent.telemetry.events import Events
from tests.component.function_house import until

ALIVE = LazySource("soci", Identity.of(os.getpid()))
DEAD = LazySource("soci", Identity(ALIVE.process.pid, ALIVE.process.start - 1))
STUCK_S = 10.0


class Engine:
    name = "soci"

    def __init__(self):
        self.hangs = False
        self.ended = 0

    async def answers(self):
        return not self.hangs

    def stuck(self):
        self.ended += 1


class Row:
    """A node whose instances, engines and prepared images a test sets."""

    def __init__(self):
        self.engine = Engine()
        self.instances: dict[str, Any] = {}
        self.prepared: set[str] = set()
        self.in_use: list[set[str]] = []
        self.fault: Exception | None = None
        self.now_s = 0.0
        fleet: Any = SimpleNamespace(
            admission=SimpleNamespace(instances=self.instances),
            mode=SimpleNamespace(owns_instances=True),
            now=lambda: self.now_s,
        )
        images = SimpleNamespace(let_go=self._let_go, sources=lambda: self.prepared)
        engines = {"soci": self.engine}
        stores: Any = SimpleNamespace(
            containerd=SimpleNamespace(lazy=engines), lazy=images, events=Events()
        )
        self.lost = LostFiles(fleet, Catalog(), stores, STUCK_S)

    async def _let_go(self, in_use):
        self.in_use.append(in_use)
        if self.fault is not None:
            error, self.fault = self.fault, None
            raise error

    def run(self, id, source, chain_id="sha256:c", **more):
        container = SimpleNamespace(source=str(source)) if source is not None else None
        image = SimpleNamespace(chain_id=chain_id)
        version = SimpleNamespace(name="f", version=1, key=("f", 1), image=image)
        self.instances[id] = SimpleNamespace(
            id=id,
            version=version,
            container=container,
            state=State.READY,
            note=lambda text: None,
            **more,
        )

    async def look_at(self, *times_s):
        for self.now_s in times_s:
            await self.lost.look()


@pytest.fixture
def row():
    return Row()


async def test_an_engine_that_hangs_is_ended_though_nothing_can_be_started_on_it(row):
    """Scaled to zero: no instance runs on its mounts, and every start fails."""
    row.prepared.add(str(ALIVE))
    row.engine.hangs = True
    await row.look_at(0, STUCK_S - 1)
    assert row.engine.ended == 0
    await row.look_at(STUCK_S)
    assert row.engine.ended == 1


async def test_silence_counts_from_when_it_was_heard_last_not_from_a_former_one(row):
    row.run("f-1", ALIVE)
    row.engine.hangs = True
    await row.look_at(0)
    row.instances.clear()  # nobody listens to it for a while
    await row.look_at(1)
    row.run("f-2", ALIVE)
    await row.look_at(100, 101)
    assert row.engine.ended == 0
    await row.look_at(100 + STUCK_S)
    assert row.engine.ended == 1


async def test_what_another_worker_holds_may_run_on_mounts(row):
    row.run("f-1", ALIVE, "sha256:ours")
    row.run("f-2", "", "sha256:unpacked")
    row.run("f-3", None, "sha256:theirs")
    await row.look_at(0)
    assert row.in_use == [{"sha256:ours", "sha256:theirs"}]


async def test_looking_goes_on_after_an_unexpected_error(row, monkeypatch):
    monkeypatch.setattr(lost_files, "LOOK_S", 0.0)
    row.fault = cast(Exception, KeyError("soci"))
    looking = spawn("looking", row.lost.run())
    await until(lambda: len(row.in_use) >= 2)
    assert not looking.done()
    await stop(looking)


async def test_what_lost_its_files_is_told_once(row):
    row.run("f-1", DEAD)
    told: list[str] = []
    row.instances["f-1"].note = told.append
    await row.look_at(0, 1)
    assert len(told) == 1
    assert "soci" in told[0]
