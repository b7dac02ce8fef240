"""The registry credentials this worker knows, in memory and nowhere else.

They come with a deploy (kept for its function's later pulls), by SetCredentials (for every image of
a host) or from a deploy's command (run when needed, again before what it printed expires, and when
that is refused). A worker that starts knows none but what a lazy engine still mounts with
(`engine_credentials`): then a command is run, or the error says who has to give them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from weakref import WeakValueDictionary

from agent.containerd.access import Access
from agent.containerd.credential_command import run_command
from agent.containerd.credentials import Credentials
from agent.errors import AgentError, FailedPrecondition
from agent.model.image_ref import DEFAULT_HOST, OLD_DEFAULT_HOST
from agent.model.spec import RegistrySpec

MAX_HOSTS = 1000
# What a command printed is asked for anew so long before it expires; a pull takes a while.
FRESH_S = 120.0
# How long it is used when it does not say.
UNTOLD_S = 60.0

RunCommand = Callable[[Sequence[str], str], Awaitable[tuple[Credentials, float | None]]]
_HUB = (DEFAULT_HOST, OLD_DEFAULT_HOST, "registry-1.docker.io")


@dataclass(frozen=True, slots=True)
class Entry:
    """Credentials, when they came, and until when they hold; wall time."""

    credentials: Credentials = field(repr=False)
    since: float
    until: float | None = None

    def holds(self, now: float, for_s: float = 0.0) -> bool:
        """Return whether they hold for so long from now on."""
        return self.until is None or now + for_s < self.until


class Keyring:
    """All of them; `now` is wall time."""

    def __init__(self, now: Callable[[], float] = time.time, run: RunCommand = run_command) -> None:
        self.now = now
        self._run = run
        self._told: list[Callable[[], None]] = []
        self._by_host: dict[str, Entry] = {}
        self._by_function: dict[tuple[str, str], Entry] = {}
        self._printed: dict[tuple[str, tuple[str, ...]], Entry] = {}
        self._locks: WeakValueDictionary[tuple[str, tuple[str, ...]], asyncio.Lock] = (
            WeakValueDictionary()
        )

    def __repr__(self) -> str:
        return f"Keyring({len(self._by_host)} hosts, {len(self._by_function)} functions)"

    def tell(self, changed: Callable[[], None]) -> None:
        """Call `changed` after every change from outside, for as long as this lives."""
        self._told.append(changed)

    def _changed(self) -> None:
        for told in self._told:
            told()

    def set(self, host: str, credentials: Credentials | None, until: float | None = None) -> None:
        """Keep credentials for every image of a host, None to forget them.

        Raises FailedPrecondition when there are too many hosts.
        """
        if credentials is None:
            self._by_host.pop(_named(host), None)
        elif _named(host) not in self._by_host and len(self._by_host) >= MAX_HOSTS:
            raise FailedPrecondition(f"{MAX_HOSTS} registries have credentials; forget one first")
        else:
            self._by_host[_named(host)] = Entry(credentials, self.now(), until)
        self._changed()

    def keep(self, function: str, host: str, registry: RegistrySpec) -> None:
        """Keep what a deploy brought, for later pulls of the same function's image."""
        found = given(registry)
        if found is not None:
            self._by_function[function, _named(host)] = Entry(found, self.now())
            self._changed()

    def restore(self, function: str, host: str, entry: Entry) -> None:
        """Keep for a function what was known before this worker began, if nothing is by now."""
        self._by_function.setdefault((function, _named(host)), entry)

    def drop(self, function: str) -> None:
        """Forget what a function's deploys brought."""
        for key in [key for key in self._by_function if key[0] == function]:
            del self._by_function[key]

    def access(self, host: str, registry: RegistrySpec, function: str = "") -> Access:
        """Return what one pull from `host` may show, to the registry itself and to mirrors."""

        async def find(asked: str) -> Credentials | None:
            if _named(asked) != _named(host):
                # A mirror is another host: only what is meant for it.
                found = self._newest([self._by_host.get(_named(asked))], asked)
            else:
                found = await self.entry(host, registry, function)
            return found.credentials if found is not None else None

        async def renew(asked: str, refused: Credentials) -> bool:
            key = (_named(host), registry.credential_command)
            printed = self._printed.get(key)
            if printed is not None and printed.credentials == refused:
                del self._printed[key]
            found = await find(asked)
            if found is None or found == refused:
                return False
            self._changed()
            return True

        return Access(find, registry.ca_pem, renew)

    async def entry(self, host: str, registry: RegistrySpec, function: str = "") -> Entry | None:
        """Return what a function's pull from `host` shows there; raises as commands do."""
        brought = given(registry)
        if brought is not None:
            return Entry(brought, self.now())
        kept = [self._by_host.get(_named(host)), self._by_function.get((function, _named(host)))]
        if not registry.credential_command:
            return self._newest(kept, host)
        try:
            return await self._from_command(registry.credential_command, _named(host))
        except AgentError:
            known = [each for each in kept if each is not None and each.holds(self.now())]
            if not known:
                raise
            return self._newest(known, host)

    def _newest(self, entries: Sequence[Entry | None], host: str) -> Entry | None:
        """Return what came last and still holds; FailedPrecondition if none does any more."""
        known = [each for each in entries if each is not None]
        holding = [each for each in known if each.holds(self.now())]
        if holding:
            return max(holding, key=lambda each: each.since)
        if known:
            until = max(each.until or 0.0 for each in known)
            at = datetime.fromtimestamp(until, UTC).isoformat(timespec="seconds")
            raise FailedPrecondition(
                f"the credentials for the registry {host} expired at {at}: "
                "give new ones with SetCredentials, or with the deploy"
            )
        return None

    async def _from_command(self, words: tuple[str, ...], host: str) -> Entry:
        """Return what the command printed, run again when that does not hold for long any more."""
        key = (host, words)
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        async with lock:
            entry = self._printed.get(key)
            if entry is None or not entry.holds(self.now(), FRESH_S):
                self._printed.pop(key, None)
                credentials, until = await self._run(words, host)
                now = self.now()
                if until is not None and until <= now:
                    raise FailedPrecondition(
                        f"registry.credential_command: {words[0]} prints credentials that have "
                        "expired already"
                    )
                until = until if until is not None else now + UNTOLD_S + FRESH_S
                entry = Entry(credentials, now, until)
                self._printed = {k: e for k, e in self._printed.items() if e.holds(now)}
                self._printed[key] = entry
            return entry


def given(registry: RegistrySpec) -> Credentials | None:
    """Return what a table holds itself."""
    if registry.identity_token:
        return Credentials(identity_token=registry.identity_token)
    if registry.username and registry.password:
        return Credentials(registry.username, registry.password)
    return None


def _named(host: str) -> str:
    """Return a host as references name it."""
    return DEFAULT_HOST if host in _HUB else host.lower()
