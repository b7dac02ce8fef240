"""Asks a registry until it answers: what may pass by itself is asked again, within the deadline.

Too many requests, servers that are not well, connections that break or fall silent: a few tries
with growing pauses, or after as long as Retry-After says. When is `agent/core/registry_patience`'s
to say; a certificate that is not believed and a refused connection are no such thing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

import aiohttp

from agent.core.registry_patience import PASSING, in_words, pause_s
from agent.errors import RuntimeUnavailable

# What is waited for a registry's first word, however long the pull may take: five tries, and what
# its Retry-After asks for.
PATIENCE_S = 600.0

Ask = Callable[[], AbstractAsyncContextManager[aiohttp.ClientResponse]]

# The connection was made and broke, or nothing more came over it.
_BROKEN = (
    aiohttp.ServerDisconnectedError,
    aiohttp.ClientPayloadError,
    aiohttp.SocketTimeoutError,
    aiohttp.ClientOSError,
)


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole reply. Of a body longer than allowed there is one byte more than that."""

    status: int
    content_type: str
    challenges: tuple[str, ...] = ()
    body: bytes = field(default=b"", repr=False)


class Patience:
    """Tries within one deadline, the loop's time; `whose` begins its errors.

    A mirror is asked once: there is another place to ask.
    """

    def __init__(self, whose: str, deadline: float, *, once: bool = False) -> None:
        self.whose = whose
        self._deadline = deadline
        self._once = once

    async def ask(self, ask: Ask, max_bytes: int) -> Answer:
        """Return an answer; one that may pass only when it did not.

        Raises aiohttp.ClientError or OSError as the last try does, and RuntimeUnavailable when the
        registry wants to be left alone for longer than there is time.
        """
        tries = 0
        while True:
            tries += 1
            try:
                answer, retry_after = await _asked(ask, max_bytes)
            except _BROKEN as error:
                wait_s = self._pause_s(tries, "")
                if isinstance(error, aiohttp.ClientConnectorError) or wait_s is None:
                    raise
            else:
                wait_s = self._pause_s(tries, retry_after)
                if answer.status not in PASSING or wait_s is None:
                    return answer
                self._check(answer, wait_s)
            await asyncio.sleep(wait_s)

    def _pause_s(self, tries: int, retry_after: str) -> float | None:
        return None if self._once else pause_s(tries, retry_after, time.time())

    def _check(self, answer: Answer, wait_s: float) -> None:
        left_s = self._deadline - asyncio.get_running_loop().time()
        if wait_s > left_s:
            raise RuntimeUnavailable(
                f"{self.whose} answers {in_words(answer.status)} and wants to be left alone "
                f"for {wait_s:.0f} s, longer than a pull waits for that: try again then"
            )


async def _asked(ask: Ask, max_bytes: int) -> tuple[Answer, str]:
    async with ask() as reply:
        body = await _body(reply, max_bytes)
        answer = Answer(
            reply.status,
            reply.content_type,
            tuple(reply.headers.getall("WWW-Authenticate", ())),
            body,
        )
        return answer, reply.headers.get("Retry-After", "")


async def _body(reply: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """Return a reply's body, of one that is longer the first `max_bytes` + 1."""
    body = b""
    while len(body) <= max_bytes:
        more = await reply.content.read(max_bytes + 1 - len(body))
        if not more:
            break
        body += more
    return body
