"""What comes from one caller, cut into requests: head by head, body by body.

A head is cut out of the stream before anything reads it (`plain.py`, `head.py`), so that no parser
ever sees more than one request; what a caller sends ahead (pipelining) stays untouched. Bodies are
counted or dechunked. When to read on is `client.py`'s.
"""

from __future__ import annotations

from agent.gateway.wire.dechunk import Dechunker
from agent.gateway.wire.head import HeadReader, RequestHead
from agent.gateway.wire.http1 import HEAD_END
from agent.gateway.wire.plain import PlainHeads


class RequestStream:
    """The bytes of one connection, read from their beginning."""

    __slots__ = ("_at", "_chunks", "_left", "_plain", "_reader", "ahead", "tail")

    def __init__(self, plain: PlainHeads) -> None:
        self._plain = plain
        self._reader = HeadReader()
        self.ahead = b""
        """What has come; empty once all of it is read."""
        self._at = 0
        """Where in `ahead` to go on."""
        self.tail = b""
        """The last bytes of a head that has begun and not ended yet; empty between heads."""
        self._left = 0
        """Bytes of a counted body still to come."""
        self._chunks: Dechunker | None = None
        """Reads the present body, if it comes in chunks."""

    @property
    def chunks(self) -> Dechunker | None:
        """What reads the present body; None when it is counted."""
        return self._chunks

    def add(self, data: bytes) -> None:
        """Take what has come."""
        self.ahead = self.ahead[self._at :] + data if self.ahead else data
        self._at = 0

    def take(self) -> bytes:
        """Return all that is not read yet, as it came."""
        data = self.ahead[self._at :]
        self._read_to(len(self.ahead))
        return data

    def _read_to(self, at: int) -> None:
        if at < len(self.ahead):
            self._at = at
        else:
            self.ahead, self._at = b"", 0

    def read_head(self) -> RequestHead | None:
        """Return the next head, or None when there is more of it to come. Raises BadHead."""
        data, at, tail = self.ahead, self._at, self.tail
        stop = _split_end(tail, data, at) if tail else -1
        if stop < 0:
            while not tail and data.startswith(b"\r\n", at):  # RFC 9112, 2.2: left over from a body
                at += 2
            end = data.find(HEAD_END, at)
            stop = end + 4 if end >= 0 else -1
        ended = stop >= 0
        if not ended:
            stop = len(data)
        if stop < len(data):
            piece = data[at:stop]
            self._at = stop
        else:
            piece = data[at:] if at else data
            self.ahead, self._at = b"", 0
            if not piece:
                return None
        head = self._plain.read(piece) if ended and not tail else None
        if head is None:
            head = self._reader.feed(piece)
            if head is None:
                self.tail = (tail + piece[-3:])[-3:]
                return None
        self.tail = b""
        return head

    def begin_body(self, length: int | None) -> tuple[bytes, bool]:
        """Return what is here of the body behind a head, and whether that is all. Raises BadChunk.

        `length` is what the head says, None for chunks.
        """
        if length is None:
            self._chunks = Dechunker()
            return self.read_body()
        self._chunks = None
        data, at = self.ahead, self._at
        stop = at + length
        if stop < len(data):
            self._at = stop
            self._left = 0
            return data[at:stop], True
        self.ahead, self._at = b"", 0
        self._left = stop - len(data)
        return data[at:], not self._left

    def read_body(self) -> tuple[bytes, bool]:
        """Return what is here of the body now, and whether that ends it. Raises BadChunk."""
        data, at = self.ahead, self._at
        if self._chunks is not None:
            piece, stop = self._chunks.feed(data, at)
            self._read_to(stop)
            return piece, self._chunks.done
        piece = data[at : at + self._left] if at or len(data) > self._left else data
        self._left -= len(piece)
        self._read_to(at + len(piece))
        return piece, not self._left


def _split_end(tail: bytes, data: bytes, at: int) -> int:
    """Return where in `data` a head ends whose end began in `tail`; -1 when it does not."""
    split = (tail + data[at : at + 3]).find(HEAD_END)
    return at + split + 4 - len(tail) if split >= 0 else -1
