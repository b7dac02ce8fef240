"""What an instance's reply head must be to pass, and what one of its fields says.

Pure; `upstream.py` reads the bytes and asks.
"""

from __future__ import annotations

import re
from typing import Final

from agent.gateway.wire.head import ReplyHead
from agent.gateway.wire.http1 import MAX_HEADERS, MAX_REPLY_HEAD_BYTES

MIN_STATUS: Final = 100
MAX_STATUS: Final = 599
"""RFC 9110, section 15: another status is invalid, and who gets one takes it for a 5xx."""
QUOTED_BYTES: Final = 64
"""How much of what an instance sent is repeated in a failure's words."""

_TIMEOUT: Final = re.compile(rb'(?:^|[,;\s])timeout\s*=\s*"?(\d{1,6})', re.IGNORECASE)


def unfinished(head: ReplyHead, bytes_came: int) -> str:
    """Return what is wrong with a head that is not whole yet; empty if more of it may come."""
    if bytes_came > MAX_REPLY_HEAD_BYTES or len(head.headers) > MAX_HEADERS:
        return "the answer's head does not end"
    return ""


def wrong(head: ReplyHead) -> str:
    """Return what makes a whole head of HTTP one that cannot pass; empty if it can."""
    if not MIN_STATUS <= head.status <= MAX_STATUS:
        return f"the answer's status is {head.status:03}; HTTP has {MIN_STATUS} to {MAX_STATUS}"
    if head.status == 101:  # a whole one is told by the parser as an upgrade
        return "it answered 101 and names no protocol"
    if head.coding not in (b"", b"chunked"):
        return f"the answer's transfer coding is {_quoted(head.coding)}, not chunked"
    return ""


def keeps_s(keep_alive: bytes) -> float:
    """Return for how long a Keep-Alive field says connections are kept (RFC 2068, 19.7.1.1)."""
    found = _TIMEOUT.search(keep_alive)
    return float(found[1]) if found else 0.0


def _quoted(value: bytes) -> str:
    """Return a value as words repeat it: those go into logs and answers."""
    cut = "..." if len(value) > QUOTED_BYTES else ""
    return value[:QUOTED_BYTES].decode("latin-1") + cut
