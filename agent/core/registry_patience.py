"""When a registry that cannot answer now is asked again, and when not any more.

Pure: statuses and the words of Retry-After in, seconds out. `agent/containerd/patience.py` waits.
"""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

# As often as containerd's own client; with the pauses below about six seconds.
MAX_TRIES = 5
FIRST_PAUSE_S = 0.4
# What may pass by itself: too many requests, and servers or their proxies that are not well.
PASSING = frozenset({408, 429, 500, 502, 503, 504})
MAX_DIGITS = 9


def in_words(status: int) -> str:
    """Return a status with its own words: a server's might be anything."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def pause_s(tries: int, retry_after: str, now_s: float) -> float | None:
    """Return how long to wait after `tries` failures, None when it is not worth another.

    A registry that says how long is waited for as long as it says; `now_s` is wall time.
    """
    if tries >= MAX_TRIES:
        return None
    wanted_s = asked_pause_s(retry_after, now_s)
    return max(wanted_s, 0.0) if wanted_s is not None else FIRST_PAUSE_S * 2 ** (tries - 1)


def asked_pause_s(retry_after: str, now_s: float) -> float | None:
    """Return the seconds that Retry-After asks for (RFC 9110, 10.2.3), None when it does not."""
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return float(text[:MAX_DIGITS])
    try:
        at = parsedate_to_datetime(text)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return (at - datetime.fromtimestamp(now_s, UTC)).total_seconds()
