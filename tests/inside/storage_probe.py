"""Drives the real storage room inside rootlesskit: slots, overlays, wiping.

A probe for `rootless_session`: facts out, judged by tests/integration/test_storage.py.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from pathlib import Path
from typing import Any, Literal

from agent import config
from agent.storage import mounts
from agent.storage.rootfs import RootFilesystems
from agent.storage.slots import WritableLayer, WritableLayers
from tests.inside.rootless_session import serve

RUN = Path(os.environ["PROBE_RUN"])
SLOTS = RUN.parent / "slots"


class Probe:
    def __init__(self) -> None:
        self.roots = RootFilesystems(RUN)
        self.layers: WritableLayers | None = None
        self.held: dict[str, WritableLayer] = {}

    @property
    def room(self) -> WritableLayers:
        assert self.layers is not None
        return self.layers

    async def open(
        self, writable: Literal["slots", "tmpfs"] = "slots", ready: bool = True, where: str = ""
    ) -> str:
        settings = config.StorageSettings(writable=writable, inodes=1024)
        self.layers = WritableLayers(settings, Path(where) if where else SLOTS, RUN)
        await self.layers.open()
        if ready:
            await self.layers.ready()
        return repr(self.layers)

    async def ready(self) -> None:
        await self.room.ready()

    async def close(self) -> None:
        await self.room.close()
        self.held.clear()

    async def counts(self) -> dict[str, dict[str, int]]:
        return {
            kind: {name: getattr(counts, name) for name in counts.__slots__}
            for kind, counts in self.room.counts().items()
        }

    async def settled(self) -> dict[str, dict[str, int]]:
        until, counts = time.monotonic() + 5, await self.counts()
        while any(kind["dirty"] for kind in counts.values()) and time.monotonic() < until:
            await asyncio.sleep(0.01)
            counts = await self.counts()
        return counts

    async def lease(self, instance: str, disk_mb: int) -> dict[str, Any]:
        layer = await self.room.lease(instance, disk_mb)
        self.held[instance] = layer
        return {
            "kind": layer.kind,
            "number": layer.number,
            "upper": os.listdir(layer.upper),
            "work": os.listdir(layer.work),
            "attributes": os.listxattr(layer.upper),
            "mode": oct(layer.upper.stat().st_mode & 0o7777),
        }

    async def adopt(self, instance: str, kind: str, number: int) -> str:
        layer = self.room.adopt(instance, kind, number)
        self.held[instance] = layer
        return str(layer.upper)

    async def release(self, instance: str) -> None:
        await self.room.release(self.held.pop(instance))

    async def release_twice(self, instance: str) -> None:
        layer = self.held.pop(instance)
        await self.room.release(layer)
        await self.room.release(layer)

    async def usage(self, instance: str) -> list[int]:
        return list(await self.room.usage(self.held[instance]))

    async def prepare(self, instance: str, lower: list[str]) -> str:
        lowers = [self._image(name) for name in lower]
        return str(await self.roots.prepare(instance, lowers, self.held[instance]))

    async def prepare_missing(self, instance: str) -> None:
        await self.roots.prepare(instance, [RUN / "image" / "missing"], self.held[instance])

    def _image(self, name: str) -> Path:
        """An image layer: one file of its own name, one that every layer has."""
        place = RUN / "image" / name
        place.mkdir(parents=True, exist_ok=True)
        (place / f"only-{place.name}").write_text(name)
        (place / "top").write_text(name)
        return place

    async def teardown(self, instance: str) -> None:
        await self.roots.teardown(instance)

    async def sweep(self, keep: list[str]) -> None:
        await self.roots.sweep(keep)

    async def mounted(self) -> list[str]:
        """Mount points of ours in this namespace, but for the slots themselves."""
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        places = [line.split()[4].removeprefix(f"{RUN}/") for line in lines]
        return [place for place in places if place.startswith(("rootfs/", "layers/", "deep"))]

    async def options(self, instance: str) -> str:
        place = str(self.roots.path(instance))
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return next(line for line in lines if line.split()[4] == place)

    async def read(self, instance: str, name: str) -> str:
        return (self.roots.path(instance) / name).read_text()

    async def write(self, instance: str, name: str, text: str) -> None:
        (self.roots.path(instance) / name).write_text(text)

    async def fill(self, instance: str) -> list[Any]:
        """Write until the kernel says no; how many bytes, and which error."""
        written, block = 0, bytes(1 << 20)
        with (self.roots.path(instance) / "big").open("wb", buffering=0) as file:
            while True:
                try:
                    written += file.write(block)
                except OSError as error:
                    return [written, errno.errorcode[error.errno or 0]]

    async def many_files(self, instance: str, count: int) -> list[Any]:
        place = self.roots.path(instance)
        for number in range(count):
            try:
                (place / f"f{number}").touch()
            except OSError as error:
                return [number, errno.errorcode[error.errno or 0]]
        return [count, ""]

    async def many_directories(self, instance: str, count: int) -> list[Any]:
        place = self.roots.path(instance)
        (place / "d0").mkdir()
        (place / "d0" / "file").touch()
        for number in range(1, count):
            try:
                (place / f"d{number}").mkdir()
            except OSError as error:
                return [number, errno.errorcode[error.errno or 0]]
        return [count, ""]

    async def fill_first(self, instance: str) -> None:
        """Take the last blocks too, in a file that is there already."""
        with (self.roots.path(instance) / "d0" / "file").open("wb", buffering=0) as file:
            for block in (1 << 20, 4096):
                try:
                    while True:
                        file.write(bytes(block))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    async def mess(self, instance: str, depth: int) -> None:
        """Leave what is hard to remove: depth, odd names, modes, links out, whiteouts."""
        root = self.roots.path(instance)
        (root / "top").unlink()
        (root / "only-base").rename(root / "renamed")
        (root / "link").symlink_to("/")
        (root / "dangling").symlink_to("nowhere")
        (root / "new\nline \udcff").write_text("x")
        locked = root / "locked"
        locked.mkdir()
        (locked / "inner").write_text("x")
        locked.chmod(0)
        os.chown(root / "renamed", 1234, 1234)
        os.setxattr(root / "renamed", "user.mark", b"x")
        root.chmod(0o500)
        here = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        for _ in range(depth):
            os.mkdir("d", dir_fd=here)
            inner = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
            os.close(here)
            here = inner
        os.close(here)

    async def interrupted(self) -> list[str]:
        """Leave a slot as a wiping that was cut short does; not in use by anyone."""
        place = SLOTS / "64" / "0"
        (place / "upper").rmdir()
        (place / "stray").mkdir()
        (place / "stray" / "file").touch()
        return sorted(os.listdir(place))

    async def look(self, number: int) -> list[str]:
        return sorted(os.listdir(SLOTS / "64" / str(number)))

    async def deep(self, count: int, length: int, way: str) -> dict[str, Any]:
        """Mount an image of many layers with long names, by one of the three ways."""
        layer = self.held["deep"]
        names = [f"{'n' * length}{number:03}" for number in range(count)]
        lowers = [self._image(f"deep/{name}") for name in names]
        target = RUN / "deep"
        target.mkdir()
        before = os.getcwd()
        try:
            if way == "layers":
                mounts._overlay_by_layer(target, lowers, layer.upper, layer.work)
            elif way == "relative":
                mounts._overlay_relative(target, lowers, layer.upper, layer.work, "test")
            else:
                mounts.overlay(target, lowers, layer.upper, layer.work)
            facts = {
                "entries": len([name for name in os.listdir(target) if name.startswith("only-")]),
                "top": (target / "top").read_text()[-3:],
                "cwd": os.getcwd() == before,
            }
            (target / "made").write_text("x")
            facts["upper"] = (layer.upper / "made").read_text()
        finally:
            mounts.detach(target)
            target.rmdir()
        return facts

    async def odd_names(self) -> str:
        """Layers and places whose names the option parser would take for its own signs."""
        layer = self.held["odd"]
        upper, work = layer.upper / "a,b:c\\d", layer.upper / "w,x:y"
        upper.mkdir()
        work.mkdir()
        target = RUN / "t,a:r\\get"
        target.mkdir()
        mounts.overlay(target, [self._image("o,d:d\\1"), self._image("plain")], upper, work)
        try:
            (target / "made").write_text("x")
            return (target / "top").read_text() + str((upper / "made").exists())
        finally:
            mounts.detach(target)
            target.rmdir()

    async def cancelled_prepares(self, count: int) -> list[str]:
        """Cancel a prepare at another moment each time; what is mounted afterwards."""
        lowers = [self._image("base")]
        for number in range(count):
            coroutine = self.roots.prepare(f"c{number}", lowers, self.held["cancelled"])
            task = asyncio.get_running_loop().create_task(coroutine)
            for _ in range(number % 4):
                await asyncio.sleep(0)
            await asyncio.sleep(0.0001 * (number % 5))  # sleeps: another moment each time
            task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                continue
            await self.roots.teardown(f"c{number}")
        return [*await self.mounted(), *os.listdir(RUN / "rootfs")]

    async def cancelled_leases(self, count: int) -> dict[str, dict[str, int]]:
        for number in range(count):
            coroutine = self.room.lease(f"l{number}", 64)
            task = asyncio.get_running_loop().create_task(coroutine)
            await asyncio.sleep(0.0001 * (number % 5))  # sleeps: another moment each time
            task.cancel()
            try:
                layer = await task
            except asyncio.CancelledError:
                continue
            await self.room.release(layer)
        return await self.settled()

    async def waits_for_a_slot(self, first: str) -> str:
        """All slots are out; one lease waits while another is given back."""
        loop = asyncio.get_running_loop()
        await self.room.release(self.held.pop(first))
        waiting = loop.create_task(self.room.lease("late", 64))
        layer = await waiting
        self.held["late"] = layer
        return layer.kind

    async def measure(self, rounds: int, disk_mb: int) -> dict[str, float]:
        """Milliseconds of one prepare and one teardown, medians; noted, never judged."""
        up, down = [], []
        lowers = [self._image("base")]
        for _ in range(rounds):
            layer = await self.room.lease("m", disk_mb)
            begun = time.perf_counter()
            await self.roots.prepare("m", lowers, layer)
            up.append(time.perf_counter() - begun)
            begun = time.perf_counter()
            await self.roots.teardown("m")
            down.append(time.perf_counter() - begun)
            await self.room.release(layer)
            await self.settled()
        return {"up": sorted(up)[rounds // 2] * 1e3, "down": sorted(down)[rounds // 2] * 1e3}

    async def end(self) -> None:
        await self.roots.sweep(())
        if self.layers is not None:
            await self.layers.close()


if __name__ == "__main__":
    probe = Probe()
    steps = {n: getattr(probe, n) for n in dir(Probe) if not n.startswith("_") and n != "room"}
    serve(steps, probe.end)
