"""For how long an instance keeps a connection that nobody uses, as far as that is known.

A request on a kept connection races with the server's idle timeout, and one that may be made only
once cannot be sent again when it loses. So such a request goes only where the server was seen to
keep one for longer than that, or says it does. Pure; times are seconds at rest.
"""

from __future__ import annotations

import math
from typing import Final

HOT_S: Final = 0.025
"""At rest for no longer than this a connection is used unasked: no server gives up so soon."""
CLOSE_S: Final = 0.01
"""By how much a server's clock and ours may differ."""
MARGIN_S: Final = 0.05
"""By how much a server may be late on a busy machine, so that it seems to keep one longer ..."""
MARGIN_SHARE: Final = 0.25
"""... and by what share of the time: servers look at their idle connections now and then."""
ANNOUNCED_MOST_S: Final = 3600.0
FORGIVEN_AFTER: Final = 100
"""Once so many connections in a row were found open, a close is not held against it any more ..."""
LONGER: Final = 10
"""... of which one that has rested for longer than that close counts for so many."""


class Keeping:
    """What is known of one instance."""

    __slots__ = (
        "_announced_s",
        "_closed_s",
        "_found_open",
        "_kept_s",
        "_longest_s",
        "hot_s",
        "thawed_at",
    )

    def __init__(self) -> None:
        self._announced_s = 0.0
        self._longest_s = 0.0
        self._kept_s = 0.0
        """The longest rest but one: on a busy machine even a closing server is late sometimes."""
        self._closed_s = math.inf
        """The shortest rest after which it closed one, unless that is forgiven."""
        self._found_open = 0
        """How many were found open since."""
        self.hot_s = HOT_S
        """Up to here nothing needs to be asked."""
        self.thawed_at = -math.inf
        """When it could close again what it would have closed while it was frozen; loop time."""

    def __repr__(self) -> str:
        return f"<Keeping {self._kept_s:.3f} s, closes after {self._closed_s:.3f} s>"

    def announced(self, timeout_s: float) -> None:
        """Note what it says in Keep-Alive."""
        self._announced_s = min(timeout_s, ANNOUNCED_MOST_S)

    def kept(self, rested_s: float) -> None:
        """Note that a connection is still open."""
        if rested_s > self._kept_s:
            self._kept_s = min(rested_s, self._longest_s)
            self._longest_s = max(rested_s, self._longest_s)
        self._found_open += LONGER if rested_s > self._closed_s + CLOSE_S else 1
        if self._found_open > FORGIVEN_AFTER:
            self._closed_s = math.inf
            self.hot_s = HOT_S

    def closed(self, rested_s: float) -> None:
        """Note that it has closed one, at the latest after so long a rest."""
        self._closed_s = min(self._closed_s, rested_s)
        self._longest_s = min(self._longest_s, rested_s)
        self._kept_s = min(self._kept_s, rested_s)
        self._found_open = 0
        if self._closed_s < HOT_S + CLOSE_S:
            self.hot_s = -1.0

    def trusts(self, rested_s: float) -> bool:
        """Say whether it surely keeps one for longer than this."""
        longer_s = rested_s + max(MARGIN_S, rested_s * MARGIN_SHARE)
        if longer_s > self._closed_s:
            return False
        return rested_s <= self.hot_s or longer_s <= max(self._kept_s, self._announced_s)
