"""Notices that a download has fallen silent: bytes are still to come, and none or few do.

containerd waits for ever for a server that keeps its connection open and says nothing. Its
progress tells which blobs are still open; unpacking, which tells nothing, is no silence. While
other pulls go on, a blob that merely waits may wait for one of theirs: only what has begun counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from agent.errors import RuntimeUnavailable

SILENCE_S = 60.0
# What is less within that time is as good as none: 10 GB at this pace take four months.
LEAST_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one blob (or the whole pull, `name` "") has come; told every 0.3 s at most."""

    event: str
    name: str
    done_bytes: int
    total_bytes: int


class Pace:
    """What is heard of one transfer, and whether it gets anywhere."""

    def __init__(self) -> None:
        self.far: dict[str, Progress] = {}
        self._brought = 0

    def moved(self, step: Progress) -> bool:
        """Take in a step; say whether enough has come since that was last so."""
        before = self.far.get(step.name)
        if before == step:
            return False
        self.far[step.name] = step
        whole = step.done_bytes >= step.total_bytes
        if before is None or step.event != before.event or whole:
            self._brought = LEAST_BYTES
        else:
            self._brought += max(step.done_bytes - before.done_bytes, 0)
        if self._brought < LEAST_BYTES:
            return False
        self._brought = 0
        return True


class Listening:
    """The downloads under way, each with what looks at its silence again."""

    def __init__(self) -> None:
        self._looks: set[Callable[[], None]] = set()

    @property
    def is_alone(self) -> bool:
        """Whether there is only one."""
        return len(self._looks) == 1

    @contextmanager
    def one(self, look: Callable[[], None]) -> Iterator[None]:
        """Count a download; when it has ended, the others may wait for nothing any more."""
        self._looks.add(look)
        try:
            yield
        finally:
            self._looks.discard(look)
            for other in self._looks:
                other()


@asynccontextmanager
async def heard_from(what: str, listening: Listening) -> AsyncIterator[Callable[[Progress], None]]:
    """Give what is to hear all progress; raises RuntimeUnavailable when there is none for long."""
    loop = asyncio.get_running_loop()
    pace = Pace()
    limit = asyncio.timeout(None)
    try:
        async with limit:

            def listen() -> None:
                is_open = any(_is_open(each, listening.is_alone) for each in pace.far.values())
                limit.reschedule(loop.time() + SILENCE_S if is_open else None)

            def heard(step: Progress) -> None:
                if pace.moved(step) or limit.when() is None:
                    listen()

            def look() -> None:
                if limit.when() is None:
                    listen()

            with listening.one(look):
                yield heard
    except TimeoutError as error:
        if not limit.expired():
            raise
        text = f"{what}: timeout: next to nothing came for {SILENCE_S:g} s"
        raise RuntimeUnavailable(text) from error


def _is_open(step: Progress, is_alone: bool) -> bool:
    if step.done_bytes >= step.total_bytes:
        return False
    return is_alone or step.done_bytes > 0
