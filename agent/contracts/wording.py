"""How an exit, a time and the last log lines are put into words, the same for every dialect.

An exit is told by its real code and signal and by the kernel's out-of-memory flag, never by
strerror of the exit code. The dialects put these words into their own sentences.
"""

from __future__ import annotations

import math
import signal

from agent.model.failure import Failure
from agent.model.limits import LOG_TAIL_BYTES, MB


def number(value: float) -> str:
    """Return a number without a fraction it does not have: 120, 0.5."""
    return f"{value:.3f}".rstrip("0").rstrip(".")


def nanoseconds(seconds: float) -> int:
    """Return whole nanoseconds."""
    return round(seconds * 1e9)


def whole_ms(milliseconds: float) -> int:
    """Return milliseconds rounded up, as bills are."""
    return math.ceil(milliseconds)


def megabytes(size_bytes: int) -> str:
    """Return bytes as MB with two places: 52.32."""
    return f"{size_bytes / MB:.2f}"


def exit_words(failure: Failure) -> str:
    """Return how the process ended: `code 3`, `code 137, signal 9 SIGKILL, out of memory`."""
    words: list[str] = []
    if failure.exit_code is not None:
        words.append(f"code {failure.exit_code}")
    if failure.signal is not None:
        words.append(f"signal {failure.signal} {_signal_name(failure.signal)}".rstrip())
    if failure.out_of_memory:
        words.append("out of memory")
    return ", ".join(words) or "exit code unknown"


def log_words(failure: Failure) -> str:
    """Return the last log lines, stamped, at most 4 KB of them, the newest kept."""
    kept: list[str] = []
    left = LOG_TAIL_BYTES
    for line in reversed(failure.log_lines):
        left -= len(line.encode()) + 1
        if left < 0 and kept:
            break
        kept.append(line)
    return "\n".join(reversed(kept))


def _signal_name(value: int) -> str:
    try:
        return signal.Signals(value).name
    except ValueError:
        return ""
