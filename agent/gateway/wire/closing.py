"""How a caller's connection ends so that what was written to it is read, or visibly is not whole.

One object per connection, which `client.py` asks. It closes nothing by itself.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Final

LINGER_S: Final = 5.0
"""How long a caller that was refused early may send nothing before it is cut off, as nginx has it
(lingering_timeout): it may not have read the answer yet."""
LINGER_MOST_S: Final = 30.0
"""How long it may go on sending (lingering_time)."""
LINGER_BYTES: Final = 256 << 20
"""How much: most clients read the refusal only after all of their body, and the largest contract
takes an eighth of this."""

_RESET: Final = struct.pack("ii", 1, 0)


class Closing:
    """The end of one connection."""

    __slots__ = ("_lingered_bytes", "_lingers_until", "_transport", "_unsent_bytes")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._lingered_bytes = 0
        self._lingers_until = 0.0
        self._unsent_bytes = 0

    def close_ours(self, now: float) -> None:
        """Close our side only: what the caller still sends must not destroy the reply (RST)."""
        self._lingers_until = now + LINGER_MOST_S
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def sends_too_much(self, size: int) -> bool:
        """Count what came since; say whether it is more than a refused caller may send."""
        self._lingered_bytes += size
        return self._lingered_bytes > LINGER_BYTES

    def lingers_too_long(self, now: float, silent_s: float) -> bool:
        """Say whether a refused caller, which last sent `silent_s` ago, has had its time."""
        return silent_s > LINGER_S or now > self._lingers_until

    def is_read(self) -> bool:
        """Say whether the caller has read some of what is written since the last look, not all."""
        unsent = self._transport.get_write_buffer_size()
        read = unsent > 0 and unsent != self._unsent_bytes
        if read:
            self._unsent_bytes = unsent
        return read

    def break_off(self, *, old: bool) -> None:
        """Close in the middle of a reply: chunks stay open, or a length is not reached.

        The reply to an `old` caller may have neither: its connection is reset.
        """
        if not old:
            self._transport.close()
            return
        sock = self._transport.get_extra_info("socket")
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()
