"""The functions' logs: the last lines of each function in memory, and whoever follows them.

A log keeps at most `max_bytes` per function and drops the oldest lines first; all logs together
keep to one budget, for which the largest logs give first. A follower that is too slow loses lines
and is told how many, the function is never slowed down for it. Nothing here reads from the
container (`agent/sandbox/output.py`) or frames bytes (`agent/core/logtail.py`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal

from agent.aio.slices import Slices

if TYPE_CHECKING:
    from agent.telemetry.metrics import AgentMetrics

log = logging.getLogger(__name__)

Stream = Literal["stdout", "stderr", "platform"]

FOLLOWER_LINES: Final = 4096  # what a follower may lag behind before it loses lines
FOLLOWER_BYTES: Final = 4 << 20
LINE_OVERHEAD: Final = 192  # bytes per line beside its text: record, time, a string's own fields
WIDEST: Final = 4  # bytes a character takes at most, as soon as one of the line's is not ASCII
TRIMMED_SHARE: Final = 32  # of what is full that goes at once
UNWORDED_BYTES: Final = 288  # counted for lines that nobody has read: what is kept to word them


@dataclass(slots=True)
class LogLine:
    """One line of a function's output. `more` marks a line that was split at 32 KB."""

    at_ns: int
    stream: Stream
    instance: str
    version: int
    text: str
    more: bool = False

    def stamped(self) -> str:
        """Return the line as start errors quote it: RFC 3339 time in nanoseconds, then the text."""
        return f"{rfc3339_ns(self.at_ns)} {self.text}"


Words = Callable[..., Sequence[str]]
Unworded = tuple[int, str, int, Words, tuple[Any, ...]]
"""Lines of the platform's nobody has read yet: time, instance, version, and what words them."""

Entry = LogLine | Unworded


def _size(entry: Entry) -> int:
    if isinstance(entry, tuple):
        return UNWORDED_BYTES
    text = entry.text
    return LINE_OVERHEAD + (len(text) if text.isascii() else WIDEST * len(text))


def _lines(entry: Entry) -> Sequence[LogLine]:
    if isinstance(entry, LogLine):
        return (entry,)
    at_ns, instance, version, words, given = entry
    return [LogLine(at_ns, "platform", instance, version, text) for text in words(*given)]


def rfc3339_ns(at_ns: int) -> str:
    """Return wall time in nanoseconds since the epoch as RFC 3339 with nine decimals."""
    seconds, nanos = divmod(at_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanos:09d}Z"


async def read(
    entries: Sequence[Entry], wanted: Callable[[LogLine], bool], tail: int | None
) -> AsyncIterator[LogLine]:
    """Yield the wanted lines of a log, oldest first; the last `tail` of them unless that is None.

    Lines are worded on the way, and others come in between.
    """
    slices = Slices()
    if tail is None:
        for entry in entries:
            for line in filter(wanted, _lines(entry)):
                yield line
            await slices.pause()
        return
    found: list[LogLine] = []
    for entry in reversed(entries):
        if len(found) >= tail:
            break
        found += filter(wanted, reversed(_lines(entry)))
        await slices.pause()
    for line in reversed(found[:tail]):
        yield line


class Follower:
    """One reader of a log as it grows."""

    def __init__(self, backlog: Iterable[LogLine] = ()) -> None:
        self.lines: deque[LogLine] = deque(backlog)
        self.lost = 0
        self._bytes = sum(map(_size, self.lines))
        # The backlog was asked for: it does not count as lagging behind.
        self._most_lines = FOLLOWER_LINES + len(self.lines)
        self._most_bytes = FOLLOWER_BYTES + self._bytes
        self._more = asyncio.Event()
        self._ended = False

    def push(self, line: LogLine) -> None:
        """Hand a line over; the oldest is dropped when the reader lags too far behind."""
        self.lines.append(line)
        self._bytes += _size(line)
        while len(self.lines) > self._most_lines or self._bytes > self._most_bytes:
            self._bytes -= _size(self.lines.popleft())
            self.lost += 1
        self._more.set()

    def end(self) -> None:
        """Let the reader finish after what it already has."""
        self._ended = True
        self._more.set()

    def __aiter__(self) -> Follower:
        return self

    async def __anext__(self) -> LogLine:
        while not self.lines:
            if self._ended:
                raise StopAsyncIteration
            self._more.clear()
            await self._more.wait()
        line = self.lines.popleft()
        self._bytes -= _size(line)
        return line


class Budget:
    """What all logs of a node hold together, and the lines that were dropped to keep to it.

    Over the limit all logs are cut to one common size, the largest that fits: the small keep all
    they have. Some room more than needed is made, so that not every line looks at every log.
    """

    __slots__ = ("dropped", "held", "logs", "max_bytes")

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held = 0
        self.dropped = 0
        self.logs: set[FunctionLog] = set()

    def trim(self) -> None:
        """Make room."""
        level = _level(
            [log.size_bytes for log in self.logs],
            self.max_bytes - self.max_bytes // TRIMMED_SHARE,
        )
        for log in self.logs:
            if log.size_bytes > level:
                self.dropped += log.cut_to(level)


def _level(sizes: list[int], total: int) -> int:
    """Return the largest size to which all may be cut so that they fit into `total` together."""
    sizes.sort()
    left = total
    for count, size in zip(range(len(sizes), 0, -1), sizes, strict=True):
        if size * count > left:
            return left // count
        left -= size
    return total


class FunctionLog:
    """The last lines of one function, all versions and instances together."""

    def __init__(self, max_bytes: int, budget: Budget) -> None:
        self.max_bytes = max_bytes
        self.size_bytes = 0
        self.dropped = 0
        """Lines that went for the function's own limit."""
        self._budget = budget
        budget.logs.add(self)
        self._lines: deque[Entry] = deque()
        self._followers: set[Follower] = set()

    def append(self, line: LogLine) -> None:
        """Add a line, drop the oldest over the limits, wake the followers."""
        self._lines.append(line)
        size = _size(line)
        self.size_bytes += size
        self._budget.held += size
        self._trim()
        for follower in self._followers:
            follower.push(line)

    def append_unworded(
        self, at_ns: int, instance: str, version: int, words: Words, given: tuple[Any, ...]
    ) -> None:
        """Add lines of the platform's that are worded when somebody reads them: `words(*given)`.

        For what is said of every call, and read of few. Whatever is `given` counts the same, so
        nothing that may be long.
        """
        entry = (at_ns, instance, version, words, given)
        self._lines.append(entry)
        self.size_bytes += UNWORDED_BYTES
        budget = self._budget
        budget.held += UNWORDED_BYTES
        if self.size_bytes > self.max_bytes or budget.held > budget.max_bytes:
            self._trim()
        if self._followers:
            self._tell(entry)

    def _tell(self, entry: Unworded) -> None:
        try:
            for line in _lines(entry):
                for follower in self._followers:
                    follower.push(line)
        except Exception:  # in the middle of a call, which must not break on its words
            log.exception("words of %r", entry)

    def _trim(self) -> None:
        """Drop the oldest over the limits."""
        if self.size_bytes > self.max_bytes:  # some more than needed, so that not every line has to
            self.dropped += self.cut_to(self.max_bytes - self.max_bytes // TRIMMED_SHARE, keep=1)
        if self._budget.held > self._budget.max_bytes:
            self._budget.trim()

    def cut_to(self, most_bytes: int, *, keep: int = 0) -> int:
        """Drop the oldest lines, but for the last `keep`, until the rest fits; return how many."""
        lines, held, before = self._lines, self.size_bytes, len(self._lines)
        if most_bytes <= 0 and not keep:
            lines.clear()
            held = 0
        while held > most_bytes and len(lines) > keep:
            held -= _size(lines.popleft())
        self._budget.held -= self.size_bytes - held
        self.size_bytes = held
        return before - len(lines)

    def entries(self) -> list[Entry]:
        """Return what is kept as it is, oldest first, for `read`."""
        return list(self._lines)

    def tail(self, lines: int) -> list[LogLine]:
        """Return the last `lines` lines, oldest first; 0 means all that is kept."""
        found: list[LogLine] = []
        for entry in reversed(self._lines):
            found += reversed(_lines(entry))
            if 0 < lines <= len(found):
                del found[lines:]
                break
        found.reverse()
        return found

    def last_text(self, instance: str, most_bytes: int) -> bytes:
        """Return the end of what an instance and the platform about it said, lines joined."""
        found: list[str] = []
        size = 0
        for entry in reversed(self._lines):
            if (entry[1] if isinstance(entry, tuple) else entry.instance) == instance:
                for line in reversed(_lines(entry)):
                    found.append(line.text)
                    size += len(line.text) + 1
                if size > most_bytes:
                    break
        return "\n".join(reversed(found)).encode()[-most_bytes:]

    def of_instance(self, instance: str, lines: int) -> tuple[str, ...]:
        """Return the last lines the instance's own processes wrote, stamped, oldest first."""
        found: list[str] = []
        for line in reversed(self._lines):
            if isinstance(line, tuple) or line.stream == "platform" or line.instance != instance:
                continue
            found.append(line.stamped())
            if len(found) >= lines:
                break
        return tuple(reversed(found))

    def follow(self, backlog: Iterable[LogLine] = ()) -> Follower:
        """Return a new follower that starts with `backlog`; end it with `unfollow`."""
        follower = Follower(backlog)
        self._followers.add(follower)
        return follower

    def unfollow(self, follower: Follower) -> None:
        """Forget a follower."""
        self._followers.discard(follower)

    def close(self) -> None:
        """End all followers and give the memory back: the function is gone."""
        self.cut_to(0)
        self._budget.logs.discard(self)
        self._budget = Budget(self.max_bytes)  # what somebody still has to say counts nowhere
        for follower in self._followers:
            follower.end()
        self._followers.clear()


class Logs:
    """The logs of all functions on this node: `max_bytes` each, `total_bytes` together."""

    def __init__(self, max_bytes: int, total_bytes: int) -> None:
        self.budget = Budget(total_bytes)
        self._max_bytes = max_bytes
        self._logs: dict[str, FunctionLog] = {}
        self._dropped_before = 0  # by functions that are gone

    def of(self, function: str) -> FunctionLog:
        """Return the function's log, made on first use."""
        log = self._logs.get(function)
        if log is None:
            log = self._logs[function] = FunctionLog(self._max_bytes, self.budget)
        return log

    def drop(self, function: str) -> None:
        """Forget a removed function's log and end its followers."""
        log = self._logs.pop(function, None)
        if log is not None:
            self._dropped_before += log.dropped
            log.close()

    def dropped(self) -> Mapping[tuple[str, ...], float]:
        """Return how many lines were dropped for which limit."""
        for_function = self._dropped_before + sum(log.dropped for log in self._logs.values())
        return {("log_bytes",): for_function, ("logs_bytes",): self.budget.dropped}

    def report_to(self, metrics: AgentMetrics) -> None:
        """Have the metrics read what is held and what was dropped."""
        metrics.gauge("kindling_log_bytes", "Held by all logs.", lambda: self.budget.held)
        metrics.counter(
            "kindling_log_lines_dropped", "Log lines dropped by limit.", self.dropped, ["limit"]
        )
