"""What compressed members that follow each other hold: gzip, xz and bzip2 files are made of them.

Every member costs time, one that holds nothing as well, so there is a most. Standard library only:
`owner_filter`, a program of its own, reads layers by it, `decompress` whole archives.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Generator
from typing import Protocol

PIECE_BYTES = 512 << 10
FIRST_BYTES = 4 << 10  # what a member is tried with first: many are small
# From so many on there must be a tar's block in each. Tools that pack in parallel put a hundred
# times that into one.
MAX_EMPTY = 10_000
LEAST_BYTES = 512


class Decompressor(Protocol):
    """What takes one compressed member apart."""

    @property
    def eof(self) -> bool:
        """Whether it has ended."""

    @property
    def unused_data(self) -> bytes:
        """What of the bytes given last comes after its end."""

    def decompress(self, data: bytes, size: int, /) -> bytes:
        """Return at most so many bytes of what it holds."""


class Gunzip:
    """One member of gzip, with the interface of its younger siblings."""

    def __init__(self) -> None:
        # The format with a header and a checksum.
        self._inner = zlib.decompressobj(16 + zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        """See `Decompressor`."""
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        """See `Decompressor`."""
        return self._inner.unused_data

    def decompress(self, data: bytes, size: int) -> bytes:
        """See `Decompressor`."""
        return self._inner.decompress(self._inner.unconsumed_tail + data, size)


def contents(
    read: Callable[[int], bytes], begin: Callable[[], Decompressor], magic: bytes
) -> Generator[bytes, None, bytes]:
    """Yield what the members hold, and return the first bytes that are no member any more.

    Zeros may stand between and after them. Raises EOFError when one ends too early, ValueError for
    more of them than anything real has, and what `begin`'s do for damage.
    """
    source = _Source(read)
    members = size_bytes = 0
    while True:
        for piece in _one(source, begin()):
            size_bytes += len(piece)
            yield piece
        members += 1
        if members > MAX_EMPTY + size_bytes // LEAST_BYTES:
            raise ValueError(f"it has over {MAX_EMPTY} members of next to nothing")
        while zeros := source.take(FIRST_BYTES):
            if rest := zeros.lstrip(b"\0"):
                source.give_back(len(rest))
                break
        begins = source.peek(len(magic))
        if begins != magic:
            return begins


def _one(source: _Source, member: Decompressor) -> Generator[bytes, None, None]:
    """Yield what one member holds; what follows it stays in the source."""
    size, data = FIRST_BYTES, source.take(FIRST_BYTES)
    while not member.eof:
        piece = member.decompress(data, PIECE_BYTES)
        data = b""
        if piece:
            yield piece
        elif not member.eof:
            size = min(2 * size, PIECE_BYTES)
            data = source.take(size)
            if not data:
                raise EOFError("it ends too early")
    source.give_back(len(member.unused_data))


class _Source:
    """A stream that gives what was not used once more, without copying all that follows it."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._data, self._at = b"", 0

    def take(self, size: int) -> bytes:
        """Return at most so many bytes, b"" at the end."""
        piece = self.peek(1) and self._data[self._at : self._at + size]
        self._at += len(piece)
        return piece

    def give_back(self, size: int) -> None:
        """Have the last bytes of what was just taken come again."""
        self._at -= size

    def peek(self, size: int) -> bytes:
        """Return the next bytes without taking them."""
        while len(self._data) - self._at < size:
            more = self._read(PIECE_BYTES)
            if not more:
                break
            self._data, self._at = self._data[self._at :] + more, 0
        return self._data[self._at : self._at + size]
