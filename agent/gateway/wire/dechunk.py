"""Takes the chunks off a request body, to the byte where the next request begins.

Stricter than RFC 9112 7.1 has to be: sizes are at most 16 hex digits, lines end in CRLF, extensions
are skipped, trailers are read and dropped. The request parser cannot be used here, because it does
not say where a body ended and would run on into the next pipelined request.
"""

from __future__ import annotations

from typing import Final

MAX_LINE_BYTES: Final = 256
"""A chunk's size line with its extensions, or one trailer field."""
MAX_TRAILER_BYTES: Final = 8192

_HEX: Final = frozenset(b"0123456789abcdefABCDEF")
_SIZE, _DATA, _DATA_END, _TRAILER, _DONE = range(5)


class BadChunk(Exception):
    """The body is not chunked as RFC 9112 has it; the text says where it broke."""


class Dechunker:
    """One chunked body. `done` is True once the last chunk and its trailers were read."""

    __slots__ = ("_left", "_line", "_state", "_trailer_bytes", "done")

    def __init__(self) -> None:
        self.done = False
        self._state = _SIZE
        self._left = 0
        self._line = b""
        self._trailer_bytes = 0

    def feed(self, data: bytes, start: int = 0) -> tuple[bytes, int]:
        """Read `data` from `start`; return the body bytes in it and where reading stopped.

        It stops at the end of the data, or behind the body. Raises BadChunk.
        """
        pieces: list[bytes] = []
        at = start
        end = len(data)
        while at < end and not self.done:
            if self._state == _DATA:
                piece = data[at : at + self._left]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._state = _DATA_END
            else:
                at = self._read_line(data, at)
        return (pieces[0] if len(pieces) == 1 else b"".join(pieces)), at

    def restored(self, data: bytes) -> bytes:
        """Return `data`, the whole body so far, framed so that the bytes to come fit behind it."""
        framed = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
        if self._state == _DATA:
            return framed + b"%x\r\n" % self._left
        if self._state == _DATA_END:  # the line's end behind the data is what comes next
            return framed[:-2] + self._line
        if self._state == _TRAILER:
            return framed + b"0\r\n" + self._line
        return framed + self._line

    def _read_line(self, data: bytes, at: int) -> int:
        newline = data.find(b"\n", at)
        stop = len(data) if newline < 0 else newline + 1
        self._line += data[at:stop]
        if len(self._line) > MAX_LINE_BYTES:
            raise BadChunk(f"a line of the chunked body is longer than {MAX_LINE_BYTES} bytes")
        if newline >= 0:
            line, self._line = self._line, b""
            if not line.endswith(b"\r\n") or b"\r" in line[:-2]:
                raise BadChunk("a line of the chunked body does not end in CRLF")
            self._end_line(line[:-2])
        return stop

    def _end_line(self, line: bytes) -> None:
        if self._state == _SIZE:
            self._left = _size(line)
            self._state = _DATA if self._left else _TRAILER
        elif self._state == _DATA_END:
            if line:
                raise BadChunk("a chunk is longer than its size says")
            self._state = _SIZE
        else:
            self._trailer_bytes += len(line)
            if self._trailer_bytes > MAX_TRAILER_BYTES:
                raise BadChunk(f"the trailers are longer than {MAX_TRAILER_BYTES} bytes")
            if not line:
                self._state = _DONE
                self.done = True


def _size(line: bytes) -> int:
    digits = line.partition(b";")[0].rstrip(b" \t")
    if not 0 < len(digits) <= 16 or not _HEX.issuperset(digits):
        raise BadChunk("a chunk's size is not a hexadecimal number")
    return int(digits, 16)
