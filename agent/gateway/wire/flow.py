"""Back-pressure: who asked a transport to stop reading, and doing it only once.

One object per connection. It decides nothing; `client.py` and `upstream.py` own one each.
"""

from __future__ import annotations

import asyncio


class ReadFlow:
    """Pauses and resumes reading of one transport; both are idempotent."""

    __slots__ = ("_transport", "paused")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.paused = False

    def pause(self) -> None:
        """Stop reading: the other side of the exchange has enough for now."""
        if not self.paused:
            self.paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on, unless the transport is closing anyway."""
        if self.paused:
            self.paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()
