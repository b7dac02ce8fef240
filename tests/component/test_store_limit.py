"""The store's limit while the store cannot be measured: nothing is lost, nothing goes unwatched."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.containerd import store_limit
from agent.containerd.store_limit import StoreBounds, StoreLimit
from agent.containerd.store_use import StoreContents
from agent.core.image_gc import Amount
from agent.errors import Overloaded, RuntimeUnavailable

MANY = Amount(1 << 40, 1)
MOST = Amount(1 << 20, 1 << 20)


class Use:
    """A store of `used`; each of `failing` is raised by one look."""

    def __init__(self, used: Amount, *failing: Exception) -> None:
        self.used = used
        self.failing = list(failing)
        self.looks = 0
        self.measured = asyncio.Event()
        """Set once a look has succeeded after those that failed."""

    async def look(self) -> StoreContents:
        self.looks += 1
        if self.looks > 1 and self.failing:
            raise self.failing.pop(0)
        if self.looks > 1:
            self.measured.set()
        return StoreContents({"layer x": self.used}, {}, (), Amount())

    async def brought(self, *_: Any) -> Amount:
        return self.used


def limit_of(use: Use, place: Path) -> StoreLimit:
    made = StoreLimit(use)  # type: ignore[arg-type]

    async def make_room(_: Amount) -> bool:
        return False

    made.hold_to(StoreBounds(MOST, place), make_room)
    return made


def failures() -> list[Callable[[], Exception]]:
    return [lambda: RuntimeUnavailable("containerd does not answer"), lambda: OSError(5, "I/O")]


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_limit, "LOOK_S", 0.001)


@pytest.mark.parametrize("failure", failures(), ids=["containerd", "disk"])
async def test_a_transfer_goes_on_when_the_first_measuring_fails(tmp_path, failure):
    use = Use(Amount(1, 1), failure(), failure())

    async def transfer() -> str:
        await use.measured.wait()
        return "whole"

    async with asyncio.timeout(10):
        assert await limit_of(use, tmp_path).within("pull x", "lease", transfer) == "whole"


@pytest.mark.parametrize("failure", failures(), ids=["containerd", "disk"])
async def test_the_limit_holds_after_measurings_that_failed(tmp_path, failure):
    use = Use(MANY, failure(), failure())
    async with asyncio.timeout(10):
        with pytest.raises(Overloaded, match="stopped"):
            await limit_of(use, tmp_path).within("pull x", "lease", asyncio.Event().wait)
    assert not use.failing
