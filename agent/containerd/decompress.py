"""Unpacks compressed archives, piece by piece: gzip, xz and bzip2 by Python, zstd by its program.

Members that follow each other are one file, as `gzip -d` has it; what comes after the last one
(padding, a signature) is no part of it. How much may come out is bounded by who takes the pieces.
"""

from __future__ import annotations

import bz2
import lzma
import os
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from agent.containerd.members import PIECE_BYTES, Decompressor, Gunzip, contents
from agent.errors import InvalidSpec, Problem

# What a compressor may ask of memory. xz -9 needs 65 MB to unpack, zstd -19 needs 8.
MAX_MEMORY_BYTES = 128 << 20
ZSTD = ("zstd", "-dcq", f"--memory={MAX_MEMORY_BYTES}")
WAIT_S = 10.0

_MAGIC = {"gzip": b"\x1f\x8b", "xz": b"\xfd7zXZ", "bzip2": b"BZh"}


def wrong(path: Path, why: str) -> InvalidSpec:
    """Return the refusal of a file: its path, and what is wrong with it."""
    return InvalidSpec([Problem(str(path), why)])


def decompressed(path: Path, stream: IO[bytes], kind: str) -> Iterator[bytes]:
    """Yield what a stream holds, uncompressed; `kind` is the one its first bytes show.

    Raises InvalidSpec naming `path` when it is damaged or cut short.
    """
    if kind == "zstd":
        return _by_program(path, stream)
    return _by_members(path, stream, kind)


def _lzma() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_MEMORY_BYTES)


_MEMBERS: dict[str, Callable[[], Decompressor]] = {
    "gzip": Gunzip,
    "xz": _lzma,
    "bzip2": bz2.BZ2Decompressor,
}


def _by_members(path: Path, stream: IO[bytes], kind: str) -> Iterator[bytes]:
    try:
        yield from contents(stream.read, _MEMBERS[kind], _MAGIC[kind])
    except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
        raise wrong(path, f"is not a whole {kind} file ({error})") from error


def _by_program(path: Path, stream: IO[bytes]) -> Iterator[bytes]:
    """Have `zstd` unpack it: Python has it from 3.14 on."""
    os.lseek(stream.fileno(), 0, os.SEEK_SET)  # the program shares the offset, not the buffer
    try:
        program = subprocess.Popen(
            ZSTD, stdin=stream, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    except FileNotFoundError as error:
        why = "is compressed with zstd, and the program zstd is not on this node"
        raise wrong(path, f"{why}: run 'apt-get install zstd', or decompress it first") from error
    with program:
        assert program.stdout is not None
        assert program.stderr is not None
        try:
            while piece := program.stdout.read(PIECE_BYTES):
                yield piece
            said = program.stderr.read(1000).decode(errors="replace").strip()
            if program.wait(WAIT_S):
                raise wrong(path, f"is not a whole zstd file ({said})")
        finally:
            program.kill()
