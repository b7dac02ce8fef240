"""The words between `supervise` and a worker, and who says them when.

A worker says PREPARED once it has loaded all it needs without touching what runs. It takes over
when it hears GO, and says READY when it serves. The worker before it hears HAND_OVER, says
HANDED_OVER as soon as nothing of the node is its own any more but what it finishes, and ends by
itself. RELOAD asks for a reload, as HUP to `kindling run` does; FAILED tells why a worker cannot go
on. ENGINE names an engine for lazy images that is to run from now on, STUCK one that does not
answer any more, REST one that nothing needs. Each word is a line on a pipe of its own direction; a
reader that finds a pipe closed knows that the other end is gone.
"""

from __future__ import annotations

PREPARED = "PREPARED"
GO = "GO"
READY = "READY"
HAND_OVER = "HAND_OVER"
HANDED_OVER = "HANDED_OVER"
RELOAD = "RELOAD"
FAILED = "FAILED"
ENGINE = "ENGINE"
STUCK = "STUCK"
REST = "REST"

FDS_VARIABLE = "KINDLING_FDS"
CONFIG_VARIABLE = "KINDLING_CONFIG"
TELL_VARIABLE = "KINDLING_TELL_FD"
HEAR_VARIABLE = "KINDLING_HEAR_FD"
MAX_LINE_BYTES = 4096


def line(word: str, text: str = "") -> bytes:
    """Return a word, and what there is to say about it, as one line."""
    said = f"{word} {text}".strip().replace("\n", " ").encode()
    return said[: MAX_LINE_BYTES - 1] + b"\n"


class Lines:
    """Cuts what comes from a pipe into lines."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        """Return the lines that are whole now; one that does not end is cut."""
        *whole, rest = (self._rest + data).split(b"\n")
        self._rest = rest[-MAX_LINE_BYTES:]
        return [line.decode("utf-8", "replace") for line in whole if line]
