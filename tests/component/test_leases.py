"""Leases that are let go: all of them, also by a caller who is cancelled meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agent.aio.tasks import spawn, stop
from agent.containerd.leases import Leases
from agent.errors import (
    CredentialsRefused,
    FailedPrecondition,
    Overloaded,
    RuntimeUnavailable,
)
from tests.component.function_house import until


class Store:
    """What of containerd's leases is called; a removal takes until `go`."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        channel: Any = type("Channel", (), {"grpc": _Grpc()})()
        self.leases = Leases(channel)
        self.here: list[str] = []
        self.asked = 0
        self.go = asyncio.Event()
        patch.setattr(self.leases, "_create", self._create)
        patch.setattr(self.leases, "delete", self._delete)

    async def _create(self, purpose: str, within_s: float) -> str:
        id = f"{purpose}-{len(self.here)}"
        self.here.append(id)
        return id

    async def _delete(self, id: str, *, sync: bool = False) -> bool:
        self.asked += 1
        await self.go.wait()
        self.here.remove(id)
        return True

    async def interrupted(self) -> None:
        """Work that leaves its lease to who goes on."""
        with pytest.raises(RuntimeUnavailable):
            async with self.leases.hold("pull", 60, resumed_by="image"):
                raise RuntimeUnavailable("the registry broke off")

    async def whole(self) -> None:
        async with self.leases.hold("pull", 60, resumed_by="image"):
            pass


class _Grpc:
    def unary_unary(self, *_: object, **__: object) -> None:
        """Nothing is called over it."""


@pytest.fixture
def store(monkeypatch):
    return Store(monkeypatch)


@pytest.mark.parametrize("what", ["whole", "give_up"])
async def test_a_caller_who_is_cancelled_leaves_no_lease(store, what):
    await store.interrupted()
    await store.interrupted()
    work = store.whole if what == "whole" else store.leases.give_up
    releasing = spawn("release", work())
    await until(lambda: store.asked == 1)
    stopping = spawn("stop", stop(releasing))
    await until(lambda: releasing.cancelling())
    store.go.set()
    await stopping
    assert store.here == []


@pytest.mark.parametrize(
    ("error", "left"),
    [
        (RuntimeUnavailable("away"), True),
        (CredentialsRefused("401"), True),
        (FailedPrecondition("other bytes"), False),
        (Overloaded("disk full", reason="disk"), False),
    ],
)
async def test_what_others_may_mend_leaves_its_lease_to_who_goes_on(store, error, left):
    store.go.set()
    with pytest.raises(type(error)):
        async with store.leases.hold("pull", 60.0, resumed_by="digest"):
            raise error
    assert bool(store.here) is left
