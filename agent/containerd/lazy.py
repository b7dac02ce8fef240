"""Engines that mount an image's layers while these are still at their registry, as snapshotters.

Which there are is the configuration's; that one runs, `agent/rootless/engines.py`'s. Here one is
asked to run, and told apart from the next one of that name: mounts die with the process that
serves them, so what was mounted keeps its `LazySource`. Pulls by them are `transfer`'s, whether an
image has an index for one is asked of `registry`.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from agent.aio.apart import Apart
from agent.config import EngineSettings
from agent.containerd.channel import Channel
from agent.containerd.docker_config import DockerConfig
from agent.containerd.engine_credentials import EngineCredentials
from agent.containerd.keyring import Keyring
from agent.containerd.snapshots import Snapshots, view_key
from agent.core.oci_image import Manifest
from agent.errors import AgentError, RuntimeUnavailable
from agent.linux.process import Identity
from agent.rootless.grpc_probe import serves
from agent.rootless.settings import (
    engine_authorities,
    engine_data,
    engine_directory,
    engine_program,
    engine_set_aside,
    engine_socket,
    engine_state,
    program,
)

LOOK_EVERY_S = 0.02
RECONNECT_S = 20.0
GIVEN_S = 10.0
LOOK_S = 2.0
END_S = 5.0
HANGING = 2  # reads of lazy files that may hang at once
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid (unix(7))


@dataclass(frozen=True, slots=True)
class LazyPlaces:
    """Which engines there may be, where they and their programs lie, and how one is asked for."""

    engines: tuple[EngineSettings, ...]
    run: Path
    data: Path
    lib: Path
    ask: Callable[..., None]


@dataclass(frozen=True, slots=True)
class LazySource:
    """The one process that serves some mounts, and its engine's name. Kept as its text."""

    engine: str
    process: Identity

    def __str__(self) -> str:
        return f"{self.engine}:{self.process.pid}:{self.process.start}"

    @staticmethod
    def parse(text: str) -> LazySource | None:
        """Read what `str` wrote; None for "", files that no process serves."""
        engine, _, rest = text.partition(":")
        pid, _, start = rest.partition(":")
        return LazySource(engine, Identity(int(pid), int(start))) if engine else None

    @property
    def alive(self) -> bool:
        """Whether these mounts still have files behind them."""
        return self.process.alive


def is_lost(source: str) -> bool:
    """Say whether what was mounted from a source (as text) has lost its files."""
    parsed = LazySource.parse(source)
    return parsed is not None and not parsed.alive


class LazyEngine:
    """One engine that is installed."""

    def __init__(
        self, settings: EngineSettings, places: LazyPlaces, channel: Channel, keyring: Keyring
    ) -> None:
        self.settings = settings
        self.name = settings.name
        self.snapshots = Snapshots(channel, settings.name)
        self.directory = engine_directory(places.run, settings.name)
        self.authorities = engine_authorities(places.run, settings.name)
        self.credentials = EngineCredentials(
            keyring, DockerConfig(self.directory / "config.json"), self.reconnect
        )
        self.indexer = program(places.lib, settings.indexer) if settings.indexer else None
        self.data = engine_data(places.data, settings.name)
        self.set_aside = engine_set_aside(places.data, settings.name)
        self.turn = asyncio.Lock()
        """Held while it is ended; who begins to use it waits for that."""
        self.users = 0
        """Pulls and others that rely on what it has, though it may have nothing mounted yet."""
        self._socket = engine_socket(places.run, settings.name)
        self._state = engine_state(places.data, settings.name)
        self._ask = places.ask

    @property
    def referrer_type(self) -> str:
        """The artifact type of its indexes; "" when an image carries its index itself."""
        return self.settings.mark if self.settings.found_by == "referrer" else ""

    def annotated(self, manifest: Manifest) -> bool:
        """Whether an image's own manifest says that it is indexed for this engine."""
        by_annotation = self.settings.found_by == "annotation"
        return by_annotation and any(
            self.settings.mark in layer.annotations for layer in manifest.layers
        )

    @property
    def has_run(self) -> bool:
        """Whether it may have mounted something."""
        return self._state.exists()

    async def up(self, deadline: float) -> LazySource:
        """Have it run and return the process; raises RuntimeUnavailable at the deadline."""
        self._ask(self.name)
        while not await self.answers():
            if asyncio.get_running_loop().time() + LOOK_EVERY_S >= deadline:
                raise RuntimeUnavailable(f"{self.name}, which mounts lazy images, does not answer")
            await asyncio.sleep(LOOK_EVERY_S)  # sleeps: between two looks at a socket
        source = self.source()
        if source is None:
            raise RuntimeUnavailable(f"{self.name}, which mounts lazy images, has just ended")
        return source

    async def answers(self) -> bool:
        """Say whether it serves; takes at most half a second."""
        return await asyncio.to_thread(serves, self._socket)

    async def reconnect(self) -> None:
        """Have it look whether it is still given all that it has mounted; see `given`."""
        if self.source() is None:
            return
        deadline = asyncio.get_running_loop().time() + RECONNECT_S
        with suppress(AgentError):
            found = await self.snapshots.list(deadline=deadline)
            views = [shot.key for shot in found if shot.kind == "view"]
            await asyncio.gather(*(self._given(key, deadline) for key in views))

    async def given(self, chain_id: str) -> bool:
        """Have it look whether it is still given what it lacks of an image, and say so.

        Where it is not, it begins anew with the credentials that hold now. True as well when it
        has not mounted that, or does not answer.
        """
        if self.source() is None:
            return True
        key, deadline = view_key(chain_id), asyncio.get_running_loop().time() + GIVEN_S
        if await self._given(key, deadline):
            return True
        try:
            return not await self.snapshots.exists(key, deadline=deadline + LOOK_S)
        except AgentError:
            return True  # containerd's fault, or its own

    async def _given(self, key: str, deadline: float) -> bool:
        with suppress(AgentError):
            await self.snapshots.mounts(key, deadline=deadline)
            return True
        return False

    @asynccontextmanager
    async def in_use(self) -> AsyncIterator[None]:
        """Keep it from being ended for having nothing mounted."""
        async with self.turn:
            self.users += 1
        try:
            yield
        finally:
            self.users -= 1

    async def end(self) -> None:
        """Have it ended, for nothing needs it, and what it kept set aside; waits for its end.

        Only under `turn`.
        """
        source = self.source()
        self._ask(self.name, rest=True)
        limit = asyncio.get_running_loop().time() + END_S
        while (source is not None and source.alive) or self.has_run:
            if asyncio.get_running_loop().time() >= limit:
                raise RuntimeUnavailable(f"{self.name}, which mounts lazy images, does not end")
            await asyncio.sleep(LOOK_EVERY_S)  # sleeps: between two looks at a process

    def stuck(self) -> None:
        """Have it ended and started anew."""
        self._ask(self.name, stuck=True)

    def source(self) -> LazySource | None:
        """Return the process that serves its socket now, None when there is none."""
        size = _CREDENTIALS.size
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client, suppress(OSError):
            client.setblocking(False)
            client.connect(str(self._socket))
            raw = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
            return LazySource(self.name, Identity.of(_CREDENTIALS.unpack(raw)[0]))
        return None


class LazyEngines:
    """Every installed engine, in the configuration's order."""

    def __init__(self, channel: Channel, places: LazyPlaces | None, keyring: Keyring) -> None:
        found = places.engines if places is not None else ()
        self._engines = {
            settings.name: LazyEngine(settings, places, channel, keyring)
            for settings in found
            if places is not None and engine_program(places.lib, settings.binary, settings.place)
        }
        self.files = Apart(HANGING)
        """For whoever reads files that may have to come from a registry first."""

    def __iter__(self) -> Iterator[LazyEngine]:
        return iter(self._engines.values())

    def __bool__(self) -> bool:
        return bool(self._engines)

    def get(self, name: str) -> LazyEngine | None:
        """Return an engine by name."""
        return self._engines.get(name)


async def unmount(engines: Iterable[LazyEngine], chain_id: str) -> None:
    """Have engines let an image's layers go, as far as nothing else refers to them.

    Raises RuntimeUnavailable when one does not answer: it mounts again what it had mounted.
    """
    for engine in engines:
        if not engine.has_run:
            continue
        if not await engine.answers():
            raise RuntimeUnavailable(f"{engine.name}, which mounts lazy images, does not answer")
        await engine.snapshots.remove(view_key(chain_id))
