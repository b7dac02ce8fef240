"""Downloads that fall silent, alone and beside others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agent.aio.tasks import spawn, stop
from agent.containerd import silence
from agent.containerd.client import Containerd
from agent.containerd.silence import LEAST_BYTES, Pace, Progress
from agent.errors import RuntimeUnavailable

WAITS = Progress("waiting", "layer-sha256:1", 0, 10)
GB = 1 << 30
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


OTHER = Progress("complete", "b", 5, 5)


def at(done_bytes: int, name: str = "a", event: str = "downloading") -> Progress:
    return Progress(event, name, done_bytes, GB)


@pytest.mark.parametrize(
    ("steps", "moves"),
    [
        ([at(LEAST_BYTES), at(2 * LEAST_BYTES), at(3 * LEAST_BYTES)], [True, True]),
        ([at(0), at(LEAST_BYTES // 2), at(LEAST_BYTES)], [False, True]),
        ([at(0), at(1), at(2), at(3)], [False] * 3),  # byte by byte
        ([at(7), at(7)], [False]),
        ([at(0), at(0, event="complete")], [True]),
        ([at(0), Progress("downloading", "a", GB, GB)], [True]),
        # What came of all blobs counts together, and one that is whole does not hide it.
        ([at(0), at(0, "b"), at(LEAST_BYTES // 2), at(LEAST_BYTES // 2, "b")], [True, False, True]),
        (
            [OTHER, at(0), at(LEAST_BYTES // 2), OTHER, at(LEAST_BYTES)],
            [True, False, False, True],
        ),
    ],
    ids=["fast", "slow", "drip", "still", "event", "whole", "together", "beside"],
)
def test_what_gets_nowhere_is_silent(steps, moves):
    pace = Pace()
    first, *others = steps
    assert pace.moved(first)
    assert [pace.moved(step) for step in others] == moves
