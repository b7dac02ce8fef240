"""Keeps a lazy engine's file of credentials right for as long as something is mounted from there.

The engine asks registries long after a deploy, so what it reads must be renewed before it expires:
the file is written anew when credentials were set and, for commands, in good time. Who mounts says
so by `use` and `drop`; nothing here knows an engine by name.
"""

from __future__ import annotations

import asyncio
import logging

from agent.containerd.credentials import Credentials
from agent.containerd.docker_config import DockerConfig
from agent.containerd.keyring import Keyring
from agent.errors import AgentError
from agent.model.spec import RegistrySpec

log = logging.getLogger(__name__)

# Well below the keyring's FRESH_S: a command is asked before what it printed expires.
LOOK_EVERY_S = 30.0


class EngineCredentials:
    """One engine's file, and the functions whose images it has mounted."""

    def __init__(self, keyring: Keyring, file: DockerConfig) -> None:
        self._keyring = keyring
        self._file = file
        self._users: dict[tuple[str, str], RegistrySpec] = {}
        self._failing: set[str] = set()

    def use(self, function: str, host: str, registry: RegistrySpec) -> None:
        """Note that an image of a function is mounted from a host; `refresh` writes the file."""
        self._users[function, host] = registry

    def drop(self, function: str) -> None:
        """Note that nothing of a function is mounted any more."""
        for key in [key for key in self._users if key[0] == function]:
            del self._users[key]

    async def refresh(self) -> None:
        """Write what holds now. A host without any is told once in the log, by name."""
        found: dict[str, Credentials] = {}
        failing = set()
        for (function, host), registry in list(self._users.items()):
            try:
                known = await self._keyring.access(host, registry, function).credentials(host)
            except AgentError as error:
                failing.add(host)
                if host not in self._failing:
                    log.warning("credentials for lazy images of %s: %s", host, error)
                continue
            if known is not None:
                found[host] = known
        self._failing = failing
        await asyncio.to_thread(self._file.write, found)

    async def run(self) -> None:
        """Refresh for ever: whenever credentials were set, and every now and then."""
        while True:
            self._keyring.changed.clear()
            await self.refresh()
            try:
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._keyring.changed.wait()
            except TimeoutError:
                continue
