"""Bytes of a function's output cut into lines, its last lines kept, and whose call a line is.

Framing is on bytes: a character split between two reads stays whole in its line. A line over 32 KB
is cut there and marked, so that no function can make the agent hold more than that per stream.
Reading and stamping are `agent/sandbox/output.py`'s, keeping `agent/telemetry/logs.py`'s.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

MAX_LINE_BYTES = 32 * 1024
TAIL_BYTES = 64 * 1024
LINE_OVERHEAD_BYTES = 64
"""Counted per line beside its text, so that a flood of empty lines is bounded too."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line without its newline; its time is when it was read.

    `split` says that it was cut here and goes on in the next line.
    """

    time_ns: int
    stream: str
    text: bytes
    split: bool = False


class Framer:
    """Cuts one stream into lines as its bytes come."""

    __slots__ = ("_rest", "stream")

    def __init__(self, stream: str) -> None:
        self.stream = stream
        self._rest = b""

    def feed(self, data: bytes, now_ns: int) -> list[Line]:
        """Return the lines that `data` completes; keeps at most 32 KB of an unfinished one.

        A carriage return before the newline belongs to the line's end.
        """
        *whole, rest = (self._rest + data).split(b"\n")
        lines: list[Line] = []
        for text in whole:
            last = self._cut(text.removesuffix(b"\r"), now_ns, lines)
            lines.append(Line(now_ns, self.stream, last))
        self._rest = self._cut(rest, now_ns, lines)
        return lines

    def flush(self, now_ns: int) -> list[Line]:
        """Return what is left when the stream ends without a newline."""
        rest, self._rest = self._rest, b""
        return [Line(now_ns, self.stream, rest)] if rest else []

    def _cut(self, text: bytes, now_ns: int, lines: list[Line]) -> bytes:
        """Append what is over the limit as split lines; return the part that is not."""
        while len(text) > MAX_LINE_BYTES:
            lines.append(Line(now_ns, self.stream, text[:MAX_LINE_BYTES], split=True))
            text = text[MAX_LINE_BYTES:]
        return text


class Tail:
    """The last lines of something, bounded in bytes; the oldest go first."""

    __slots__ = ("_bytes", "_lines", "_most")

    def __init__(self, max_bytes: int = TAIL_BYTES) -> None:
        self._lines: deque[Line] = deque()
        self._bytes = 0
        self._most = max_bytes

    def add(self, line: Line) -> None:
        """Keep a line, and drop old ones until everything fits; the newest always stays."""
        self._lines.append(line)
        self._bytes += _weight(line)
        while self._bytes > self._most and len(self._lines) > 1:
            self._bytes -= _weight(self._lines.popleft())

    def last_lines(self, most: int) -> list[Line]:
        """Return the newest lines, at most so many, oldest of them first."""
        return list(self._lines)[-most:] if most > 0 else []

    def last_bytes(self, most: int) -> bytes:
        """Return the end of the output, at most so many bytes, newlines where lines ended."""
        pieces: list[bytes] = []
        size = 0
        for line in reversed(self._lines):
            piece = line.text if line.split else line.text + b"\n"
            pieces.append(piece)
            size += len(piece)
            if size >= most:
                break
        whole = b"".join(reversed(pieces))
        return whole[max(0, len(whole) - most) :]

    def __len__(self) -> int:
        return len(self._lines)


def _weight(line: Line) -> int:
    return len(line.text) + LINE_OVERHEAD_BYTES


@dataclass(frozen=True, slots=True)
class Ownership:
    """Whose a line is. `shared` says that several calls were in flight and it named none."""

    calls: tuple[str, ...]
    shared: bool = False


def owners(text: bytes, inflight: Collection[str]) -> Ownership:
    """Say which of the calls in flight a line belongs to.

    The only call in flight owns every line. Among several, a line that carries a request id belongs
    to that call; any other belongs to all of them and is marked shared. With none in flight it
    belongs to the instance alone.
    """
    if len(inflight) <= 1:
        return Ownership(tuple(inflight))
    named = tuple(call_id for call_id in inflight if call_id.encode() in text)
    return Ownership(named) if named else Ownership(tuple(inflight), shared=True)
