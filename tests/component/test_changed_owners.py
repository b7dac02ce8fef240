"""Pulls of images with foreign owners: what is fetched a second time may fail like any other."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any

import pytest

from agent.containerd import silence
from agent.containerd.client import Containerd
from agent.containerd.errors import ForeignOwner
from agent.containerd.silence import Progress
from agent.errors import NotFound, Problem, RuntimeUnavailable

NAME = "registry.example/me/app:1"
BEGUN = Progress("downloading", "layer-sha256:1", 5, 10)


class Store:
    """A transfer that finds foreign owners, then does `second`; names stand in `records`."""

    def __init__(self, containerd: Containerd, patch: pytest.MonkeyPatch, second: str) -> None:
        self.transfer = containerd.transfer
        self.second = second
        self.records: dict[str, Any] = {}
        for name, fake in {"run": self._run, "_images": self, "_leases": self}.items():
            patch.setattr(self.transfer, name, fake)

    async def _run(self, source: Any, target: Any, what: str, *, told: Any, **_: Any) -> None:
        if target.unpacks:
            raise ForeignOwner([Problem("image", "lchown")])
        self.records[NAME] = SimpleNamespace(target="new", labels={})
        if self.second == "silent":
            told(BEGUN)
            await asyncio.Event().wait()

    @contextlib.asynccontextmanager
    async def hold(self, *_: Any, **__: Any) -> Any:
        yield "lease"

    async def get(self, name: str, **_: Any) -> Any:
        if name not in self.records:
            raise NotFound(name)
        return self.records[name]

    async def put(self, name: str, target: Any, labels: Any) -> None:
        self.records[name] = SimpleNamespace(target=target, labels=labels)

    async def delete(self, name: str) -> None:
        await self.get(name)
        del self.records[name]

    async def inspect(self, name: str, **_: Any) -> Any:
        raise RuntimeUnavailable("containerd does not answer")

    async def fetch(self) -> Any:
        async def run(found: Any, run: Any, deadline: float) -> None:
            await run("source")

        blank: Any = SimpleNamespace(digest="sha256:1")
        manifest = SimpleNamespace(config=blank, layers=())
        found: Any = SimpleNamespace(target=blank, manifest=manifest)
        download: Any = SimpleNamespace(run=run)
        deadline = asyncio.get_running_loop().time() + 60
        return await self.transfer._fetch(download, NAME, found, "", deadline, lambda _: None)


@pytest.mark.parametrize("before", [None, "old"])
@pytest.mark.parametrize(
    ("second", "words"), [("silent", "nothing came for"), ("whole", "does not answer")]
)
async def test_a_name_stands_for_what_it_did_when_the_second_fetch_fails(
    tmp_path, monkeypatch, second, words, before
):
    monkeypatch.setattr(silence, "SILENCE_S", 0.05)
    containerd = Containerd(tmp_path / "containerd.sock")
    store = Store(containerd, monkeypatch, second)
    monkeypatch.setattr(store.transfer, "snapshotter", "overlayfs")
    if before:
        await store.put(NAME, before, {})
    with pytest.raises(RuntimeUnavailable, match=words):
        async with asyncio.timeout(10):
            await store.fetch()
    assert [one.target for one in store.records.values()] == ([before] if before else [])
    await containerd.close()
