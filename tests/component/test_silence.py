"""Downloads that fall silent, alone and beside others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agent.aio.tasks import spawn, stop
from agent.containerd import silence
from agent.containerd.client import Containerd
from agent.containerd.silence import Progress
from agent.errors import RuntimeUnavailable

WAITS = Progress("waiting", "layer-sha256:1", 0, 10)
BEGUN = Progress("downloading", "layer-sha256:1", 5, 10)
WHOLE = Progress("complete", "layer-sha256:1", 10, 10)


class Transfers:
    """A transfer whose downloads tell one step each and say nothing more until they are let go."""

    def __init__(self, containerd: Containerd, patch: pytest.MonkeyPatch) -> None:
        self.transfer = containerd.transfer
        self.began = asyncio.Semaphore(0)
        patch.setattr(self.transfer, "run", self._run)

    async def _run(self, source: Any, *_: object, told: Any, **__: object) -> None:
        step, go = source
        told(step)
        self.began.release()
        await go.wait()

    async def start(self, step: Progress, go: asyncio.Event) -> asyncio.Task[None]:
        source: Any = (step, go)
        nobody: Any = None
        download = self.transfer._heard(source, nobody, "pull x", "", 0.0, lambda _: None)
        task = spawn("download", download)
        await self.began.acquire()
        return task


@pytest.fixture
async def transfers(tmp_path, monkeypatch):
    monkeypatch.setattr(silence, "SILENCE_S", 0.05)
    containerd = Containerd(tmp_path / "containerd.sock")
    yield Transfers(containerd, monkeypatch)
    await containerd.close()


@pytest.mark.parametrize("step", [WAITS, BEGUN])
async def test_a_download_alone_that_falls_silent_ends(transfers, step):
    with pytest.raises(RuntimeUnavailable, match="nothing came for"):
        await (await transfers.start(step, asyncio.Event()))


async def test_one_that_has_begun_ends_beside_others_too(transfers):
    other = await transfers.start(WAITS, asyncio.Event())
    with pytest.raises(RuntimeUnavailable):
        await (await transfers.start(BEGUN, asyncio.Event()))
    await stop(other)


async def test_one_that_waited_for_another_in_vain_ends_once_it_is_alone(transfers):
    go = asyncio.Event()
    other = await transfers.start(WHOLE, go)
    waiting = await transfers.start(WAITS, asyncio.Event())
    go.set()
    await other
    with pytest.raises(RuntimeUnavailable):
        await waiting


async def test_what_unpacks_is_not_silent(transfers):
    go = asyncio.Event()
    unpacking = await transfers.start(WHOLE, go)
    with pytest.raises(RuntimeUnavailable):
        await (await transfers.start(BEGUN, asyncio.Event()))
    go.set()
    await unpacking
