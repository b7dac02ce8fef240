"""Asks an HTTP/2 client to open its next call on a new connection, amid a server's own bytes.

grpcio can only say so while it shuts down, and then it cancels the calls that cross its word on the
way. A GOAWAY that names the highest stream id refuses none: what is open and what is on its way is
still served, the next call comes on a new connection (RFC 9113, 6.8). `FrameWatch` finds where such
a frame may stand; `pump.py` puts it there.
"""

from __future__ import annotations

HEAD_BYTES = 9  # length 3, type 1, flags 1, stream 4 (RFC 9113, 4.1)
HEADERS, PUSH_PROMISE, CONTINUATION = 0x1, 0x5, 0x9
END_HEADERS = 0x4

# 8 bytes of GOAWAY on stream 0: last stream 2^31-1, NO_ERROR.
GOAWAY = bytes.fromhex("000008 07 00 00000000 7fffffff 00000000")


class FrameWatch:
    """Where a server's frames end; before its first, which is SETTINGS, there is no place."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._left = 0
        self._in_block = False
        self._begun = False

    @property
    def between_frames(self) -> bool:
        """Whether all bytes so far are whole frames, and no header block is unfinished."""
        return self._begun and not (self._head or self._left or self._in_block)

    def feed(self, data: bytes) -> int | None:
        """Take the server's next bytes; return the last offset in them where a frame may come in.

        A header block must not be interrupted (RFC 9113, 4.3), so its frames count as one.
        """
        position, place = 0, None
        while position < len(data):
            if self._left:
                step = min(self._left, len(data) - position)
                self._left -= step
                position += step
            else:
                part = data[position : position + HEAD_BYTES - len(self._head)]
                self._head += part
                position += len(part)
                if len(self._head) < HEAD_BYTES:
                    break
                self._begin_frame()
            if not self._left:
                self._begun = True
                place = place if self._in_block else position
        return place

    def _begin_frame(self) -> None:
        self._left = int.from_bytes(self._head[:3], "big")
        kind, flags = self._head[3], self._head[4]
        if kind in (HEADERS, PUSH_PROMISE, CONTINUATION):
            self._in_block = not flags & END_HEADERS
        self._head.clear()
