"""Versions that the next worker cannot run: they stay what they are, and everybody is told."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from tests.integration.functions import Functions
from tests.integration.running import RunningAgent

NOT_THERE = f"sha256:{'0' * 64}"


@pytest.fixture
def mortal(make_agent: Callable[..., RunningAgent]) -> Iterator[RunningAgent]:
    """An agent of its own whose worker a test may kill; its layers are in memory."""
    agent = make_agent(node="mortal", sections={"storage": {"writable": "tmpfs"}})
    yield agent.start()
    agent.close()


def damage(agent: RunningAgent, statement: str, *values: object) -> None:
    """Change the store behind the worker's back, then let the next worker read it."""
    (path,) = agent.home.rglob("kindling.db")
    with closing(sqlite3.connect(path)) as db:
        assert db.execute(statement, values).rowcount == 1
        db.commit()
    before, after = agent.pids["worker"], len(agent.log())
    os.kill(before, signal.SIGKILL)
    agent.wait_for("worker is ready", 30, after=after)
    agent.wait_until(lambda: agent.pids["worker"] not in (0, before), 10, "the new pid")


def test_a_latest_that_cannot_be_loaded_is_told_and_no_other_version_runs(mortal):
    with Functions(mortal, same_worker=False) as functions:
        functions.deploy("web", "static")
        functions.deploy("web", "static", memory_mb=256, scaling={"min": 1})
        spec = "cast(replace(spec, '\"memory_mb\":256', '\"memory_mb\":5') as blob)"
        damage(mortal, f"UPDATE versions SET spec = {spec} WHERE name = 'web' AND version = 2")
        functions.reconnect()
        [shown] = mortal.cli("status", "--json").json()["functions"]
        assert (shown["version"], shown["state"], shown["image"]) == (
            2,
            "Failed",
            "kindling.local/static:1",
        )
        assert "memory_mb" in shown["reason"]
        assert "memory_mb" in mortal.cli("status").out
        reply = mortal.http("GET", "/http/web/")
        assert reply.status == 500
        assert b"web version 2 cannot run" in reply.body
        assert functions.instances("web") == []
        assert "web version 2 cannot run" in mortal.log()
        assert functions.deploy("web", "static", memory_mb=256).version.version == 3
        assert mortal.http("GET", "/http/web/").body == b"hello\n"


def test_a_version_whose_image_has_vanished_is_mended_by_an_equal_deploy(mortal):
    with Functions(mortal, same_worker=False) as functions:
        functions.deploy("web", "static")
        image = "json_set(image, '$.chain_id', ?)"
        damage(mortal, f"UPDATE versions SET image = {image} WHERE name = 'web'", NOT_THERE)
        functions.reconnect()
        reply = mortal.http("GET", "/http/web/")
        assert reply.status == 500
        assert b"image kindling.local/static:1 is not on this node any more" in reply.body
        outcome = functions.deploy("web", "static")
        assert (outcome.created, outcome.version.version) == (False, 1)
        assert mortal.http("GET", "/http/web/").body == b"hello\n"
