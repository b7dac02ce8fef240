"""What lazy engines keep: counted, and given back when nothing needs it."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.aio.tasks import spawn
from agent.containerd import engine_store
from agent.containerd.engine_store import EngineStore, measure
from agent.containerd.lazy import LazyEngine
from agent.core.image_gc import Amount
from agent.errors import RuntimeUnavailable
from agent.linux import mount, mountinfo
from agent.rootless import protocol
from agent.rootless.engines import Engines
from agent.rootless.settings import Engine

BLOCK = 4096


class KnownEngine:
    """An engine with a directory; `end` sets it aside as `supervise` does."""

    name = "soci"

    def __init__(self, place: Path) -> None:
        self.data, self.set_aside = place / "soci", place / "soci.gone"
        self.turn = asyncio.Lock()
        self.users = 0
        self.mounted: list[str] = []
        self.away = False
        self.snapshots = SimpleNamespace(list=self._list)
        self.ended = 0

    in_use = LazyEngine.in_use

    @property
    def has_run(self) -> bool:
        return (self.data / "db").exists()

    async def _list(self, *, deadline: float) -> list[str]:
        if self.away:
            raise RuntimeUnavailable("it does not answer")
        return self.mounted

    async def end(self) -> None:
        self.ended += 1
        self.set_aside.mkdir(exist_ok=True)
        for kept in list(self.data.iterdir()) if self.data.exists() else ():
            kept.rename(self.set_aside / kept.name)

    def keep(self, size_bytes: int) -> None:
        """Have it run and keep so much."""
        (self.data / "content").mkdir(parents=True, exist_ok=True)
        (self.data / "db").write_bytes(b"x")
        (self.data / "content/blob").write_bytes(os.urandom(size_bytes))


@pytest.fixture
def engine(tmp_path: Path) -> KnownEngine:
    return KnownEngine(tmp_path)


@pytest.fixture
def store(engine: KnownEngine) -> EngineStore:
    known: Any = engine
    return EngineStore((known,))


async def test_what_an_engine_keeps_is_counted_and_given_back(engine, store):
    assert (await store.look(), await store.idle()) == (Amount(), {})
    engine.keep(5 * BLOCK)
    kept = await store.look()
    assert kept.files == 3
    assert 6 * BLOCK <= kept.bytes <= 8 * BLOCK
    assert await store.idle() == {"soci": kept}
    assert await store.give_back("soci")
    assert (await store.look(), await store.idle()) == (Amount(), {})
    assert not engine.set_aside.exists()


@pytest.mark.parametrize("why", ["mounted", "in use", "away"])
async def test_an_engine_that_is_needed_keeps_what_it_has(engine, store, why):
    engine.keep(1)
    engine.mounted, engine.away = (["layer"] if why == "mounted" else []), why == "away"
    engine.users = int(why == "in use")
    assert await store.idle() == {}
    assert not await store.give_back("soci")
    assert engine.ended == 0
    assert engine.has_run


async def test_an_engine_is_idle_from_its_last_use_on(engine, store):
    engine.keep(1)
    assert await store.idle(least_s=1e6) == {}
    store._idle_since["soci"] = time.monotonic() - 2e6
    assert list(await store.idle(least_s=1e6)) == ["soci"]
    engine.mounted = ["layer"]
    assert await store.idle(least_s=1e6) == {}
    engine.mounted = []
    assert await store.idle(least_s=1e6) == {}


async def test_who_begins_to_use_an_engine_waits_for_its_end(engine, store):
    engine.keep(1)
    async with engine.turn:
        using = engine.in_use()
        begun = spawn("use", using.__aenter__())
        await asyncio.sleep(0)
        assert not begun.done()
    await begun
    assert not await store.give_back("soci")
    await using.__aexit__(None, None, None)
    assert await store.give_back("soci")


async def test_what_a_worker_that_died_left_to_remove_is_removed(engine, store):
    engine.set_aside.mkdir()
    (engine.set_aside / "1-content").mkdir()
    assert list(await store.idle()) == ["soci"]
    assert await store.give_back("soci")
    assert not engine.set_aside.exists()


async def test_what_an_engine_has_left_mounted_is_detached(engine, store, monkeypatch):
    engine.keep(1)
    table = [f"1 2 0:1 / {engine.data}/1/fs rw - fuse.rawBridge soci rw\n"]
    detached = []

    def unmount(point):
        detached.append(point)
        table.clear()

    monkeypatch.setattr(mountinfo, "text", lambda: "".join(table))
    monkeypatch.setattr(mount, "unmount", unmount)
    monkeypatch.setattr(engine_store, "LOOK_EVERY_S", 0.001)
    assert await store.give_back("soci")
    assert detached == [f"{engine.data}/1/fs"]


def test_mounts_are_not_entered(tmp_path, monkeypatch):
    (tmp_path / "1/fs").mkdir(parents=True)
    (tmp_path / "1/fs/huge").write_bytes(os.urandom(10 * BLOCK))
    whole = measure([tmp_path])
    table = f"1 2 0:1 / {tmp_path}/1/fs rw - fuse.rawBridge soci rw\n"
    monkeypatch.setattr(mountinfo, "text", lambda: table)
    assert engine_store.measure([tmp_path]).files == whole.files - 2
    assert engine_store.measure([tmp_path]).bytes < BLOCK * 4


# -- as supervise does it


@pytest.fixture
def engines(tmp_path):
    program = tmp_path / "engine"
    program.write_text("#!/bin/sh\nexec sleep 1000\n")
    program.chmod(0o755)
    house: Any = SimpleNamespace(
        engines=(Engine("soci", str(program), "", ""),),
        data=tmp_path / "data",
        run=tmp_path / "run",
        registries=None,
    )
    made = Engines(house, lambda: dict(os.environ), lambda: None)
    yield made
    for pid in made.pids.values():
        if pid:
            os.kill(pid, 9)
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)


def test_an_engine_at_rest_has_nothing_and_runs_again_when_asked(engines, tmp_path):
    engines.heard(protocol.ENGINE, "soci")
    engines.step(0.0)
    pid = engines.pids["soci"]
    data = tmp_path / "data/lazy/soci"
    (data / "content").mkdir()
    engines.heard(protocol.REST, "soci")
    engines.ended(pid, os.waitpid(pid, 0)[1], 1.0)
    assert engines.pids == {}
    assert list(data.iterdir()) == []
    assert [kept.name.split("-")[1] for kept in (tmp_path / "data/lazy/soci.gone").iterdir()] == [
        "content"
    ]
    engines.step(1.0)
    assert engines.pids == {}
    engines.heard(protocol.ENGINE, "soci")
    engines.step(1.0)
    assert engines.pids["soci"] not in (0, pid)


def test_an_engine_asked_for_while_it_ends_begins_with_nothing(engines, tmp_path):
    engines.heard(protocol.ENGINE, "soci")
    engines.step(0.0)
    pid = engines.pids["soci"]
    (tmp_path / "data/lazy/soci/content").mkdir()
    engines.heard(protocol.REST, "soci")
    engines.heard(protocol.ENGINE, "soci")
    engines.step(0.0)
    assert engines.pids["soci"] == pid
    engines.ended(pid, os.waitpid(pid, 0)[1], 1.0)
    engines.step(1.0)
    assert engines.pids["soci"] not in (0, pid)
    assert not (tmp_path / "data/lazy/soci/content").exists()
