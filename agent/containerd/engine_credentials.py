"""Keeps a lazy engine's file of credentials right for as long as something is mounted from there.

The engine asks registries long after a deploy, so what it reads must be renewed before it expires:
the file is written anew when credentials were set and, for commands, in good time. The engine keeps
using what it began a connection with, so after a renewal it is made to look again (`reconnect`). A
worker that begins takes up what is in the file for what is still mounted. Who mounts says so by
`use`, `release` and `drop`. The file is by host: of functions with different credentials for one
host those that came last are in it. Nothing here knows an engine by name.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping

from agent.containerd.credentials import Credentials
from agent.containerd.docker_config import DockerConfig, HostCredentials
from agent.containerd.keyring import Entry, Keyring
from agent.errors import AgentError, RuntimeUnavailable
from agent.model.spec import RegistrySpec, nothing_given

log = logging.getLogger(__name__)

# Well below the keyring's FRESH_S: a command is asked before what it printed expires.
LOOK_EVERY_S = 30.0
AT_ONCE = 8  # commands that are run for it, each of which may hang for a while
# The same once something was renewed: a token got with what was there before may end at any time.
RECONNECT_EVERY_S = 5.0
LEAST_PAUSE_S = 0.1


User = tuple[str, str, str]
"""A function, a host, and the digest of an image that is mounted for it from there."""


async def _nothing() -> None:
    """There is nobody to look again."""


class EngineCredentials:
    """One engine's file, and the functions whose images it has mounted.

    `tell` is called with a function, a host and why it has nothing to show there, once for each
    reason.
    """

    def __init__(
        self,
        keyring: Keyring,
        file: DockerConfig,
        reconnect: Callable[[], Awaitable[None]] = _nothing,
    ) -> None:
        self._keyring = keyring
        self._file = file
        self._reconnect = reconnect
        self._users: dict[User, RegistrySpec] = {}
        self._found: dict[User, Entry | None] = {}
        self._failing: dict[tuple[str, str], str] = {}
        self._written: dict[str, HostCredentials] = {}
        self._hosts: set[str] = set()
        self._renewed = False
        self._turn = asyncio.Lock()
        self._due = asyncio.Event()
        self.tell: Callable[[str, str, str], None] = lambda function, host, why: None
        keyring.tell(self._due.set)

    def use(self, function: str, host: str, image: str, registry: RegistrySpec) -> None:
        """Note that an image (its digest) of a function is mounted; `refresh` writes the file."""
        self._users.pop((function, host, image), None)  # who comes last is last
        self._users[function, host, image] = registry

    def deploy_ended(self, function: str) -> None:
        """Show nothing any more that a deploy brought itself: what the keyring keeps counts now."""
        for key, registry in self._users.items():
            if key[0] == function:
                self._users[key] = nothing_given(registry)
        self._due.set()

    def drop(self, function: str) -> None:
        """Note that nothing of a function is mounted any more."""
        self._forget(lambda user: user[0] == function)

    def release(self, image: str) -> None:
        """Note that an image is not mounted any more."""
        self._forget(lambda user: user[2] == image)

    def _forget(self, goes: Callable[[User], bool]) -> None:
        for user in [user for user in self._users if goes(user)]:
            del self._users[user]
            self._found.pop(user, None)
            self._failing.pop(user[:2], None)
        self._due.set()

    async def take_up(self) -> None:
        """Have the keyring know what the worker before gave the engine for what is mounted."""
        functions = {function for function, _, _ in self._users}
        self._hosts = {host for _, host, _ in self._users}
        self._written = await asyncio.to_thread(self._file.read)
        for host, known in self._written.items():
            for function in known.functions & functions:
                self._keyring.restore(function, host, Entry(known.credentials, 0.0, known.until))

    async def refresh(self, function: str = "") -> None:
        """Write what holds now; for one function only what is its own is asked for.

        Who has none for a host is told once in the log, by name. Raises RuntimeUnavailable when
        the file cannot be written.
        """
        # Outside of the turn: a command of another function may hang.
        users = self._users.items()
        asked = [user for user in users if not function or user[0][0] == function]
        turns = asyncio.Semaphore(AT_ONCE)
        await asyncio.gather(*(self._ask(*user, turns) for user in asked))
        async with self._turn:
            known = self._known()
            hosts = {host for _, host, _ in self._users}
            changed = any(
                _shown(self._written, host) != _shown(known, host) for host in hosts & self._hosts
            )
            self._renewed = bool(hosts) and (self._renewed or changed)
            self._hosts, self._written = hosts, known
            try:
                await asyncio.to_thread(self._file.write, known)
            except OSError as error:
                why = f"{error.filename} cannot be written: {error.strerror}"
                raise RuntimeUnavailable(f"credentials for lazy images: {why}") from error

    def _known(self) -> dict[str, HostCredentials]:
        """Return by host what holds now, and for whom; of what differs what came last."""
        newest: dict[str, Entry] = {}
        users: dict[str, dict[str, Entry]] = {}
        for function, host, image in self._users:
            entry = self._found.get((function, host, image))
            if entry is not None and entry.holds(self._keyring.now()):
                users.setdefault(host, {})[function] = entry
                newest[host] = max(entry, newest.get(host, entry), key=lambda each: each.since)
        return {
            host: HostCredentials(
                entry.credentials,
                entry.until,
                frozenset(f for f, e in users[host].items() if e.credentials == entry.credentials),
            )
            for host, entry in newest.items()
        }

    async def _ask(self, user: User, registry: RegistrySpec, turns: asyncio.Semaphore) -> None:
        function, host, _ = user
        found, failed = None, ""
        async with turns:
            try:
                found = await self._keyring.entry(host, registry, function)
            except AgentError as error:
                failed = error.message
        if self._users.get(user) is not registry:  # dropped or given anew meanwhile
            return
        self._found[user] = found
        if not failed:
            self._failing.pop((function, host), None)
        elif self._failing.get((function, host)) != failed:
            self._failing[function, host] = failed
            log.warning("credentials for lazy images of %s from %s: %s", function, host, failed)
            self.tell(function, host, failed)

    async def run(self) -> None:
        """Refresh for ever: whenever credentials were set or dropped, and every now and then."""
        while True:
            self._due.clear()
            try:
                await self.refresh()
            except AgentError as error:
                log.warning("%s", error)
            if self._renewed:
                await self._reconnect()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause_s()):
                    await self._due.wait()

    def _pause_s(self) -> float:
        """Return for how long the file is right at most, and what is mounted not looked after."""
        pause_s = RECONNECT_EVERY_S if self._renewed else LOOK_EVERY_S
        ends = (known.until for known in self._written.values() if known.until is not None)
        return max(min((pause_s, *(end - self._keyring.now() for end in ends))), LEAST_PAUSE_S)


def _shown(known: Mapping[str, HostCredentials], host: str) -> Credentials | None:
    return known[host].credentials if host in known else None
