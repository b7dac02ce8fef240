"""Keeps a lazy engine's file of credentials right for as long as something is mounted from there.

The engine asks registries long after a deploy, so what it reads must be renewed before it expires:
the file is written anew when credentials were set and, for commands, in good time. Who mounts says
so by `use` and `drop`; a function's credentials stay until it is removed. The file is by host: of
two functions with different credentials for one host the last one's are in it. Nothing here knows
an engine by name.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from agent.containerd.credentials import Credentials
from agent.containerd.docker_config import DockerConfig
from agent.containerd.keyring import Keyring
from agent.errors import AgentError, RuntimeUnavailable
from agent.model.spec import RegistrySpec, nothing_given

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
        self._turn = asyncio.Lock()
        self._due = asyncio.Event()
        keyring.tell(self._due.set)

    def use(self, function: str, host: str, registry: RegistrySpec) -> None:
        """Note that an image of a function is mounted from a host; `refresh` writes the file."""
        self._users[function, host] = registry

    def deploy_ended(self, function: str) -> None:
        """Show nothing any more that a deploy brought itself: what the keyring keeps counts now."""
        for key, registry in self._users.items():
            if key[0] == function:
                self._users[key] = nothing_given(registry)
        self._due.set()

    def drop(self, function: str) -> None:
        """Note that nothing of a function is mounted any more."""
        for key in [key for key in self._users if key[0] == function]:
            del self._users[key]
        self._due.set()

    async def refresh(self) -> None:
        """Write what holds now. A host without any is told once in the log, by name.

        Raises RuntimeUnavailable when the file cannot be written.
        """
        async with self._turn:  # who asks last writes last
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
            try:
                await asyncio.to_thread(self._file.write, found)
            except OSError as error:
                why = f"{error.filename} cannot be written: {error.strerror}"
                raise RuntimeUnavailable(f"credentials for lazy images: {why}") from error

    async def run(self) -> None:
        """Refresh for ever: whenever credentials were set or dropped, and every now and then."""
        while True:
            self._due.clear()
            try:
                await self.refresh()
            except AgentError as error:
                log.warning("%s", error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._due.wait()
