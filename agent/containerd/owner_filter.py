"""A layer's tar stream with every owner that a node cannot have given to the overflow id.

A program of its own, standard library only: containerd runs it as a stream processor between the
stored blob and its unpacker (`containerd_config`), for layers that `owners` asks it to. Layer on
stdin (gzip, zstd or plain), tar on stdout, on descriptor 3 what `owners` wants: where to write the
report. Everything but ids passes byte for byte, in bounded memory. Headers are read as Go's
archive/tar reads them; from the first one that it could not read the rest passes as it is, and the
unpacker says what is wrong.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import BinaryIO, Protocol

from agent.containerd.members import Gunzip, contents

MAX_ID = 65535  # the user namespace maps 0..65535
OVERFLOW_ID = 65534  # as the kernel shows what it cannot map (/proc/sys/kernel/overflowuid)
BLOCK = 512
PIECE_BYTES = 256 << 10
MAX_EXTENDED_BYTES = 1 << 20  # Go's limit for a PAX header or a long name
PAYLOAD_FD = 3
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"

_UID, _GID, _SIZE, _SUM = slice(108, 116), slice(116, 124), slice(124, 136), slice(148, 156)
_WITHOUT_DATA = frozenset((b"1", b"2", b"3", b"4", b"5", b"6"))
_RECORD = re.compile(rb"([0-9]{1,7}) ([^=\n]+)=")
_DIGITS = re.compile(rb"[0-9]+")


@dataclass(slots=True)
class Report:
    """Digests of the tar before and after; how many files were given away, and one of them."""

    diff_id: str = ""
    applied: str = ""
    files: int = 0
    example: str = ""
    id: int = 0


@dataclass(slots=True)
class _Pending:
    """What the headers before a file say of it."""

    name: bytes = b""
    size: int | None = None
    uid: int | None = None
    gid: int | None = None


class Readable(Protocol):
    """What bytes come from."""

    def read(self, size: int, /) -> bytes:
        """Return at most so many bytes, b"" at the end."""


class _PassOn(Exception):
    """From here on nothing is understood, or nothing follows: the rest passes as it is."""


class OwnerFilter:
    """One pass over one stream."""

    def __init__(self, source: Readable, write: Callable[[bytes], object]) -> None:
        self._source = source
        self._write = write
        self._read_hash, self._written_hash = hashlib.sha256(), hashlib.sha256()
        self._report = Report()

    def run(self) -> Report:
        """Pass everything on and return what was changed."""
        try:
            while True:
                self._member()
        except _PassOn:
            while self._emit(self._take(PIECE_BYTES)):
                pass
        self._report.diff_id = f"sha256:{self._read_hash.hexdigest()}"
        self._report.applied = f"sha256:{self._written_hash.hexdigest()}"
        return self._report

    def _member(self) -> None:
        """Pass on one file with the headers that belong to it."""
        pending = _Pending()
        while True:
            header = self._header()
            kind, size = header[156:157], _number(header[_SIZE])
            if size is None or size < 0:
                self._give_up(header)
                return
            if kind == b"x":
                self._emit(header)
                body = self._extended(size)
                pending = _Pending(pending.name)
                self._emit(_pax(body, size, pending))
            elif kind in (b"L", b"K"):
                self._emit(header)
                body = self._extended(size)
                if kind == b"L":
                    pending.name = body[:size].split(b"\0")[0]
                self._emit(body)
            elif kind == b"g":
                self._emit(header)
                self._emit(self._extended(size))
                return
            else:
                self._file(header, pending, size)
                return

    def _header(self) -> bytes:
        header = self._take(BLOCK)
        # A block of zeros ends the archive; so does a part of one, or the end of the stream.
        if len(header) < BLOCK or not any(header) or not _is_whole(header):
            self._give_up(header)
        return header

    def _file(self, header: bytes, pending: _Pending, size: int) -> None:
        uid, gid = _number(header[_UID]), _number(header[_GID])
        if uid is None or gid is None:
            self._give_up(header)
            return
        name = pending.name or _name(header)
        owners = (
            uid if pending.uid is None else pending.uid,
            gid if pending.gid is None else pending.gid,
        )
        self._count(name, [id for id in owners if not _fits(id)])
        self._emit(_with_ids(header, uid, gid))
        kind = header[156:157]
        if kind == b"S":
            self._sparse_map(header[482:483])
        if kind in _WITHOUT_DATA or (kind == b"\0" and name.endswith(b"/")):
            return
        self._pass(_padded(size if pending.size is None else pending.size))

    def _sparse_map(self, more: bytes) -> None:
        """Pass on an old GNU sparse map, which goes on in blocks that no size counts."""
        while more not in (b"\0", b""):
            block = self._take(BLOCK)
            self._emit(block)
            more = block[504:505]

    def _count(self, name: bytes, foreign: list[int]) -> None:
        if not foreign:
            return
        if not self._report.files:
            self._report.example, self._report.id = name.decode("utf-8", "replace"), foreign[0]
        self._report.files += 1

    def _extended(self, size: int) -> bytes:
        if size > MAX_EXTENDED_BYTES:
            raise _PassOn
        return self._take(_padded(size))

    def _pass(self, left: int) -> None:
        while left > 0:
            piece = self._take(min(left, PIECE_BYTES))
            if not piece:
                raise _PassOn
            self._emit(piece)
            left -= len(piece)

    def _give_up(self, header: bytes) -> None:
        self._emit(header)
        raise _PassOn

    def _take(self, size: int) -> bytes:
        """Read so much, less only at the end."""
        data = self._source.read(size)
        while len(data) < size and (more := self._source.read(size - len(data))):
            data += more
        self._read_hash.update(data)
        return data

    def _emit(self, data: bytes) -> bool:
        self._written_hash.update(data)
        self._write(data)
        return bool(data)


def _fits(id: int) -> bool:
    return 0 <= id <= MAX_ID


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _name(header: bytes) -> bytes:
    name = header[:100].split(b"\0")[0]
    prefix = header[345:500].split(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _number(field: bytes) -> int | None:
    """Read a numeric field as Go does: base 256 or octal, empty is 0; None when it is neither."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
        sign = 1 << (8 * len(field) - 2)
        value = value - 2 * sign if value & sign else value
        return value if -(1 << 63) <= value < 1 << 63 else None
    text = field.strip(b" \0").split(b"\0")[0]
    try:
        return int(text, 8) if text and _DIGITS.fullmatch(text) else (None if text else 0)
    except ValueError:  # an 8 or a 9
        return None


def _sum(header: bytes) -> int:
    return sum(header) - sum(header[_SUM]) + len(header[_SUM]) * 0x20


def _is_whole(header: bytes) -> bool:
    """Say whether the checksum is right, over the bytes as numbers without or with a sign."""
    said, found = _number(header[_SUM]), _sum(header)
    if said == found:
        return True
    rest = header[: _SUM.start] + header[_SUM.stop :]
    return said == found - 256 * sum(byte >= 0x80 for byte in rest)


def _with_ids(header: bytes, uid: int, gid: int) -> bytes:
    """Return a file's header with ids that a node has."""
    if _fits(uid) and _fits(gid):
        return header
    changed = bytearray(header)
    for place, id in ((_UID, uid), (_GID, gid)):
        if not _fits(id):
            changed[place] = b"%07o\0" % OVERFLOW_ID
    changed[_SUM] = b"%06o\0 " % _sum(bytes(changed))
    return bytes(changed)


def _pax(body: bytes, size: int, pending: _Pending) -> bytes:
    """Read a PAX header's records into `pending`; return it with ids that a node has.

    An id keeps its number of digits, so that no length changes.
    """
    changed = bytearray(body)
    at = 0
    while found := _RECORD.match(body, at, size):
        end = at + int(found[1])
        start = found.end()
        if not start < end <= size:
            break
        key, value = found[2], body[start : end - 1]
        if key == b"path":
            pending.name = value
        elif key in (b"uid", b"gid", b"size"):
            number = int(value[:20]) if _DIGITS.fullmatch(value) else None
            setattr(pending, key.decode(), number)
            if key != b"size" and number is not None and not _fits(number):
                changed[start : end - 1] = b"%0*d" % (len(value), OVERFLOW_ID)
        at = end
    return bytes(changed)


class _Pieces:
    """A stream out of pieces."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._piece, self._at = b"", 0

    def read(self, size: int) -> bytes:
        """Return at most so many bytes, b"" at the end."""
        if self._at == len(self._piece):
            self._piece, self._at = next(self._pieces, b""), 0
        data = self._piece[self._at : self._at + size]
        self._at += len(data)
        return data


def _gunzipped(source: BinaryIO) -> Iterator[bytes]:
    if (yield from contents(source.read, Gunzip, GZIP)):
        raise OSError("what follows the gzip data is none")


@contextlib.contextmanager
def _unpacked(source: io.BufferedReader[io.FileIO]) -> Iterator[Readable]:
    """Give the tar in a layer; raises OSError or EOFError for what is packed wrongly."""
    begins = source.peek(4)[:4]
    if begins[:2] == GZIP:
        yield _Pieces(_gunzipped(source))
    elif begins == ZSTD:
        # Python reads zstd from 3.14 on.
        with subprocess.Popen(["zstd", "-dcq"], stdin=-1, stdout=-1) as zstd:
            assert zstd.stdin is not None
            assert zstd.stdout is not None
            feeder = threading.Thread(target=_feed, args=(source, zstd.stdin), daemon=True)
            feeder.start()
            yield zstd.stdout
            feeder.join()
        if zstd.returncode:
            raise OSError("zstd cannot read the layer")
    else:
        yield source


def _feed(source: BinaryIO, into: BinaryIO) -> None:
    with contextlib.suppress(BrokenPipeError), into:
        shutil.copyfileobj(source, into, PIECE_BYTES)


def main() -> int:
    """Filter as the module's docstring says; what goes wrong is told on stderr, with status 1."""
    with os.fdopen(PAYLOAD_FD, "rb") as payload:
        told = payload.read()  # an Any of protobuf around JSON
    wanted = json.loads(told[told.index(b"{") :])
    source = io.BufferedReader(io.FileIO(sys.stdin.fileno(), closefd=False), PIECE_BYTES)
    try:
        with _unpacked(source) as stream:
            report = OwnerFilter(stream, sys.stdout.buffer.write).run()
        with open(wanted["report"], "w", encoding="utf-8") as file:
            json.dump(asdict(report), file)
        # Last: who sees the end of the stream finds the report.
        sys.stdout.buffer.flush()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        sys.stderr.write(f"owner filter: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
