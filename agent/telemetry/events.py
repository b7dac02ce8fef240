"""What happens on the node, in the past tense, for whoever watches: a bounded ring in memory.

Each event has a number; `token` names the worker's run and the number, so that a watcher can go on
where it stopped, as long as the events after it are still kept and the worker is the same.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from agent.errors import FailedPrecondition

KEPT = 4096
MAX_DIGITS = 18  # of the number in a token


@dataclass(frozen=True, slots=True)
class Subject:
    """What an event is about; all empty means the node itself."""

    function: str = ""
    version: int = 0
    instance: str = ""
    call: str = ""


NODE = Subject()


@dataclass(frozen=True, slots=True)
class NodeEvent:
    """One thing that happened. `token` resumes a watch after it."""

    token: str
    at_ns: int
    type: str
    subject: Subject = NODE
    message: str = ""
    details: dict[str, str] = field(default_factory=dict)


class Events:
    """The ring, and the watchers that wait for its next entry."""

    def __init__(self) -> None:
        self._run = secrets.token_hex(4)
        self._next = 1
        self._ring: deque[NodeEvent] = deque(maxlen=KEPT)
        self._more = asyncio.Event()

    def add(
        self,
        type: str,
        subject: Subject = NODE,
        message: str = "",
        details: dict[str, str] | None = None,
    ) -> None:
        """Note that something happened now."""
        token = f"{self._run}-{self._next}"
        self._next += 1
        now_ns = time.time_ns()
        self._ring.append(NodeEvent(token, now_ns, type, subject, message, details or {}))
        self._more.set()
        self._more = asyncio.Event()

    def watch(self, token: str, functions: frozenset[str]) -> AsyncGenerator[NodeEvent, None]:
        """Return the events after `token`, or from this moment on when it is empty, for ever.

        Raises FailedPrecondition when events after the token are no longer kept, now or later.
        """
        return self._watch(self._number(token), functions)

    async def _watch(
        self, number: int, functions: frozenset[str]
    ) -> AsyncGenerator[NodeEvent, None]:
        while True:
            more = self._more
            for event in self._after(number):
                number = int(event.token.rpartition("-")[2])
                if not functions or event.subject.function in functions:
                    yield event
            await more.wait()

    def _after(self, number: int) -> list[NodeEvent]:
        first = self._next - len(self._ring)
        if number + 1 < first:
            raise FailedPrecondition("the watcher is too slow: list again, then watch from now on")
        return list(self._ring)[number + 1 - first :]

    def _number(self, token: str) -> int:
        if not token:
            return self._next - 1
        run, _, number = token.rpartition("-")
        first = self._next - len(self._ring)
        ours = run == self._run and number.isdecimal() and len(number) <= MAX_DIGITS
        if not ours or not first <= int(number) + 1 <= self._next:
            raise FailedPrecondition(
                "events after this token are no longer kept: list again, then watch from now on"
            )
        return int(number)
