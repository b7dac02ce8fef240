"""Opens an image on disk: a tar, compressed or not, or a directory, as named files of known size.

It looks at names and bytes only; what they mean is `layout`'s business. Everything blocks, so it
runs on a thread. A compressed archive is unpacked into an unnamed scratch file first, because blobs
are read in the order of the manifest, not of the archive.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Protocol, cast

from agent.containerd.decompress import decompressed, wrong
from agent.containerd.scratch import ScratchFile
from agent.core.oci_image import compression

# An image has a few blobs per layer; a tar with more members than this is something else.
MAX_FILES = 20_000
# The largest image any contract takes is 10 GB uncompressed.
MAX_BYTES = 24 << 30
PIECE_BYTES = 512 << 10
MAX_LINKS = 40  # as the kernel has it (path_resolution(7))
# A header of the extended kind holds a name or a few attributes; tarfile reads it whole.
MAX_HEADER_BYTES = 1 << 20


class Files(Protocol):
    """An opened image: file names without leading "./", and their bytes."""

    path: Path

    def size_bytes(self, name: str) -> int | None:
        """Return a file's size, or None when there is no such file."""

    def pieces(self, name: str) -> Iterator[bytes]:
        """Yield a file's bytes in pieces of PIECE_BYTES."""

    def close(self) -> None:
        """Give back what is open."""


def open_files(path: Path, scratch: Path) -> Files:
    """Open an image at `path`; compressed ones are unpacked below `scratch` for the while.

    Raises InvalidSpec naming the path and what is wrong with it, RuntimeUnavailable naming
    `scratch` when there is no room.
    """
    try:
        if path.is_dir():
            return Directory(path)
        return _open_tar(path, scratch)
    except OSError as error:
        raise wrong(path, f"cannot be read: {os.strerror(error.errno or 0)}") from error


class Directory:
    """An OCI layout as a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def size_bytes(self, name: str) -> int | None:
        """See `Files`."""
        file = self._file(name)
        return file.stat().st_size if file is not None else None

    def pieces(self, name: str) -> Iterator[bytes]:
        """See `Files`."""
        file = self._file(name)
        if file is None:
            raise wrong(self.path, f"has no file {name}")
        with file.open("rb") as stream:
            while piece := stream.read(PIECE_BYTES):
                yield piece

    def close(self) -> None:
        """See `Files`."""

    def _file(self, name: str) -> Path | None:
        """Return a file of the layout; None for what leads out of it, by its name or by a link."""
        parts = Path(name).parts
        if Path(name).is_absolute() or ".." in parts or "\0" in name:
            return None
        file = self.path
        for part in parts:
            file /= part
            if file.is_symlink():
                return None
        return file if file.is_file() else None


class Tar:
    """A plain tar, read where its members lie."""

    def __init__(self, path: Path, stream: IO[bytes]) -> None:
        self.path = path
        self._stream = stream
        self._members = _members(path, stream)

    def size_bytes(self, name: str) -> int | None:
        """See `Files`."""
        member = self._members.get(name)
        return member[1] if member is not None else None

    def pieces(self, name: str) -> Iterator[bytes]:
        """See `Files`."""
        if name not in self._members:
            raise wrong(self.path, f"has no file {name}")
        offset, left = self._members[name]
        while left > 0:
            piece = os.pread(self._stream.fileno(), min(left, PIECE_BYTES), offset)
            if not piece:
                raise wrong(self.path, f"ends in the middle of {name}: it was cut short")
            offset, left = offset + len(piece), left - len(piece)
            yield piece

    def close(self) -> None:
        """See `Files`."""
        self._stream.close()


def read_all(files: Files, name: str, max_bytes: int) -> bytes:
    """Return a small file whole. Raises InvalidSpec when it is missing or larger."""
    size = files.size_bytes(name)
    if size is None:
        raise wrong(files.path, f"has no file {name}")
    if size > max_bytes:
        raise wrong(files.path, f"its {name} is larger than {max_bytes} bytes")
    return b"".join(files.pieces(name))


def read_head(files: Files, name: str) -> bytes:
    """Return a file's first bytes: enough to see how it is compressed."""
    return next(files.pieces(name), b"")[:8]


def _open_tar(path: Path, scratch: Path) -> Tar:
    with contextlib.ExitStack() as unfinished:
        stream: IO[bytes] = unfinished.enter_context(path.open("rb"))
        head = stream.read(8)
        stream.seek(0)
        if kind := compression(head):
            plain = ScratchFile(scratch, str(path), MAX_BYTES, " when decompressed")
            unfinished.callback(plain.close)
            for piece in decompressed(path, stream, kind):
                plain.write(piece)
            plain.stream.seek(0)
            stream.close()
            stream = plain.stream
        opened = Tar(path, stream)
        # The tar keeps its stream.
        unfinished.pop_all()
        return opened


class _Headers:
    """A tar as `tarfile` walks through it: from header to header, none of them large."""

    def __init__(self, path: Path, stream: IO[bytes]) -> None:
        self._path = path
        self._stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise wrong(self._path, f"has a header of more than {MAX_HEADER_BYTES} bytes")
        return self._stream.read(size)


def _members(path: Path, stream: IO[bytes]) -> Mapping[str, tuple[int, int]]:
    """Return offset and size of every regular file; links stand for what they point at."""
    found: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    try:
        with tarfile.TarFile(fileobj=cast("IO[bytes]", _Headers(path, stream))) as tar:
            for count, member in enumerate(tar):
                if count >= MAX_FILES:
                    raise wrong(path, f"has more than {MAX_FILES} members: not an image")
                name = posixpath.normpath(member.name)
                if member.issym():
                    links[name] = posixpath.normpath(
                        posixpath.join(posixpath.dirname(name), member.linkname)
                    )
                elif member.islnk():
                    links[name] = posixpath.normpath(member.linkname)
                elif member.isreg() and not member.issparse():
                    found[name] = (member.offset_data, member.size)
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        # The last three are how tarfile takes nonsense in extended headers.
        raise wrong(path, f"is not a whole tar archive ({error})") from error
    found |= _followed(links, found)
    if not found:
        raise wrong(path, "is an archive without files: not an image")
    return found


def _followed(
    links: Mapping[str, str], found: Mapping[str, tuple[int, int]]
) -> dict[str, tuple[int, int]]:
    """Return the files that links lead to, through other links if need be."""
    files = {}
    for name, target in links.items():
        steps = 0
        while target in links and target not in found and steps < MAX_LINKS:
            target, steps = links[target], steps + 1
        if target in found:
            files[name] = found[target]
    return files
