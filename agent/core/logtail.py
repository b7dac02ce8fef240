"""Bytes of a function's output cut into lines.

Framing is on bytes: a character split between two reads stays whole in its line. A line over 32 KB
is cut there and marked, so that no function can make the agent hold more than that per stream.
Reading and stamping are `agent/sandbox/output.py`'s, keeping `agent/telemetry/logs.py`'s.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_LINE_BYTES = 32 * 1024


@dataclass(frozen=True, slots=True)
class OutputLine:
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

    def feed(self, data: bytes, now_ns: int) -> list[OutputLine]:
        """Return the lines that `data` completes; keeps at most 32 KB of an unfinished one.

        A carriage return before the newline belongs to the line's end.
        """
        *whole, rest = (self._rest + data).split(b"\n")
        lines: list[OutputLine] = []
        for text in whole:
            last = self._cut(text.removesuffix(b"\r"), now_ns, lines)
            lines.append(OutputLine(now_ns, self.stream, last))
        self._rest = self._cut(rest, now_ns, lines)
        return lines

    def flush(self, now_ns: int) -> list[OutputLine]:
        """Return what is left when the stream ends without a newline."""
        rest, self._rest = self._rest, b""
        return [OutputLine(now_ns, self.stream, rest)] if rest else []

    def _cut(self, text: bytes, now_ns: int, lines: list[OutputLine]) -> bytes:
        """Append what is over the limit as split lines; return the part that is not."""
        while len(text) > MAX_LINE_BYTES:
            lines.append(OutputLine(now_ns, self.stream, text[:MAX_LINE_BYTES], split=True))
            text = text[MAX_LINE_BYTES:]
        return text
