"""Callers who share one fetch: each has its own time, credentials and secrets."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from agent.aio.tasks import spawn
from agent.containerd.access import Access
from agent.containerd.client import Containerd
from agent.containerd.credentials import Credentials
from agent.errors import (
    AgentError,
    FailedPrecondition,
    InvalidSpec,
    Problem,
    RuntimeUnavailable,
)
from tests import misbehaving as m
from tests import oci
from tests.component.function_house import until

IMAGE = oci.image([oci.layer({"a": b"1"})])


class Fetches:
    """A transfer that resolves for real; what is fetched is told by `outcomes`: errors, images."""

    def __init__(self, place: Path, patch: pytest.MonkeyPatch) -> None:
        self.transfer = Containerd(place / "containerd.sock").transfer
        self.outcomes: list[Any] = []
        self.begun = 0
        self.go = asyncio.Event()
        patch.setattr(self.transfer, "present", self.present)
        patch.setattr(self.transfer, "_fetch", self._fetch)

    async def present(self, *_: object) -> None:
        """Nothing is here."""

    @property
    def joined(self) -> int:
        return sum(run.waiting for run in self.transfer._fetches._runs.values())

    async def _fetch(self, download: Any, *_: object) -> Any:
        outcome = self.outcomes[self.begun]
        self.begun += 1
        await download._access.credentials("somewhere")
        await self.go.wait()
        if isinstance(outcome, AgentError):
            raise outcome
        return outcome


@pytest.fixture
def server():
    with m.misbehaving(IMAGE) as made:
        yield made


@pytest.fixture
async def fetches(tmp_path, monkeypatch):
    made = Fetches(tmp_path, monkeypatch)
    yield made
    await made.transfer._channel.close()


def within(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


def known(password: str) -> Access:
    async def find(_: str) -> Credentials:
        return Credentials("me", password)

    return Access(find)


async def shared(fetches: Fetches, server: Any, first: Access | None = None) -> list[Any]:
    """Start a caller, and when it fetches two others, who join it."""
    name = f"{server.address}/me/app:1"
    callers = [spawn("first", fetches.transfer.pull(name, deadline=within(60), access=first))]
    await until(lambda: fetches.begun == 1)
    callers += [spawn("other", fetches.transfer.pull(name, deadline=within(60))) for _ in range(2)]
    await until(lambda: fetches.joined == 3)
    return callers


@pytest.mark.parametrize(
    "theirs",
    [
        RuntimeUnavailable("did not give out all of it within the time allowed"),
        FailedPrecondition("answers 401 Unauthorized"),
    ],
    ids=["time", "credentials"],
)
async def test_what_failed_with_the_time_or_credentials_of_another_is_tried_with_ones_own(
    fetches, server, theirs
):
    fetches.outcomes = [theirs, "image"]
    callers = await shared(fetches, server)
    fetches.go.set()
    first, *others = await asyncio.gather(*callers, return_exceptions=True)
    assert first is theirs
    assert others == ["image"] * 2
    assert fetches.begun == 2


@pytest.mark.parametrize(
    ("again", "count"),
    [(RuntimeUnavailable("down"), 2), (InvalidSpec([Problem("image", "damaged")]), 1)],
    ids=["down", "damaged"],
)
async def test_what_fails_for_all_is_not_fetched_once_for_each(fetches, server, again, count):
    fetches.outcomes = [again] * 3
    callers = await shared(fetches, server)
    fetches.go.set()
    assert await asyncio.gather(*callers, return_exceptions=True) == [again] * 3
    assert fetches.begun == count


async def test_who_has_the_right_credentials_gets_the_image_whoever_else_has_none(fetches, server):
    refused = FailedPrecondition("answers 401 Unauthorized")
    fetches.outcomes = [refused, refused, "image"]
    callers = await shared(fetches, server)
    fetches.go.set()
    told = await asyncio.gather(*callers, return_exceptions=True)
    assert (told[0], told.count(refused), told.count("image")) == (refused, 2, 1)


async def test_nobody_is_told_the_secrets_of_who_began(fetches, server):
    secret = "hunter2hunter2"
    fetches.outcomes = [InvalidSpec([Problem("image", f"{secret} is refused")])]
    callers = await shared(fetches, server, known(secret))
    fetches.go.set()
    for error in await asyncio.gather(*callers, return_exceptions=True):
        assert str(error) == "image: [hidden] is refused"


async def test_a_pull_that_takes_too_long_says_how_long_it_might(fetches, server):
    fetches.outcomes = ["image"]
    with pytest.raises(RuntimeUnavailable, match=r"within the 1 s .* images\.pull_timeout_s"):
        await fetches.transfer.pull(f"{server.address}/me/app:1", deadline=within(0.9))


async def test_a_registry_is_not_waited_for_as_long_as_a_pull_may_take(fetches, server):
    server.faults["manifest"] += [m.status(429, Retry_After="3600")]
    with pytest.raises(RuntimeUnavailable, match="left alone for 3600 s"):
        await fetches.transfer.pull(f"{server.address}/me/app:1", deadline=within(86_400))
