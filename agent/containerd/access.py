"""What one pull may show: whose credentials for which host, and whom to believe.

Made for one deploy or call (`keyring`) and thrown away with it. It remembers what it gave out, so
that no error can repeat it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator

from agent.containerd.credentials import Credentials, conceal
from agent.errors import AgentError

Find = Callable[[str], Awaitable[Credentials | None]]
"""Finds the credentials for a registry's host, as references name it; may raise AgentError."""
Renew = Callable[[str, Credentials], Awaitable[bool]]
"""Says whether there are others by now than those that a host has refused; may raise AgentError."""


class Access:
    """How one pull reaches registries; without anything it is anonymous."""

    def __init__(
        self, find: Find | None = None, ca_pem: str = "", renew: Renew | None = None
    ) -> None:
        self._find = find
        self._renew = renew
        self.ca_pem = ca_pem
        self._shown: list[Credentials] = []
        self._last: dict[str, Credentials] = {}

    async def credentials(self, host: str) -> Credentials | None:
        """Return what may be shown to a host, None for nothing."""
        found = await self._find(host) if self._find is not None else None
        if found is not None and found not in self._shown:
            self._shown.append(found)
        if found is not None:
            self._last[host] = found
        return found

    async def renewed(self, host: str) -> bool:
        """Say whether a host that has refused what it was shown may be shown something else.

        A command is run again for it. Raises as that does.
        """
        refused = self._last.get(host)
        if refused is None or self._renew is None:
            return False
        return await self._renew(host, refused)

    @property
    def may_have_credentials(self) -> bool:
        """Whether it is worth asking at all."""
        return self._find is not None

    @contextlib.contextmanager
    def concealing(self) -> Iterator[None]:
        """Let no error out with what was shown in it."""
        try:
            yield
        except AgentError as error:
            clean = conceal(error, self._shown)
            if clean is error:
                raise
            raise clean from None
