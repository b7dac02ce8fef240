"""Files of an image as a container would see them, read from its layers without mounting them.

A path is walked as the kernel walks it inside the container's root (path_resolution(7)): links
lead to places inside, ".." stops at the root, forty links are the most. What a name stands for in
several layers is what overlay makes of it (fs/overlayfs/namei.c): whiteouts hide, opaque
directories end the search below them, directories of one name are one. Redirects and metacopies
are refused as our mounts refuse them (`userxattr`). Errors are the kernel's, as OSError; only what
would take too long is an InvalidSpec, for an image can have a walk go round for hours.

Layers must be at rest: whoever may change one during a walk could lead it outside.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agent.errors import InvalidSpec, Problem

MAX_LINKS = 40
MAX_LOOKS = 100_000
"""How many places of layers are looked at for one image: seconds at worst. Images take hundreds;
forty links of two thousand names over hundreds of layers take forty million."""
LONG_PATH = 100  # characters; a look below a path of so many more counts once more
MAX_PATH_BYTES = 4095  # PATH_MAX without the byte that ends it
# A disk that fails, or mounts whose server is gone: never to be taken for what an image lacks.
UNREACHABLE = frozenset({errno.EIO, errno.ENOTCONN, errno.ESTALE})
_XATTR = "user.overlay."
_NONE = {errno.ENODATA, errno.EOPNOTSUPP}


@dataclass(frozen=True, slots=True)
class ImageFile:
    """What a path stands for: its place in the image without links, and what is there.

    `places` are those on the host, topmost first; only directories have more than one. `above` is
    the directory it is in, None for the root.
    """

    path: str
    places: tuple[Path, ...]
    stat: os.stat_result
    above: ImageFile | None = field(default=None, repr=False)

    @property
    def is_directory(self) -> bool:
        """Whether names can be looked up in it."""
        return stat.S_ISDIR(self.stat.st_mode)


class ImageFiles:
    """The files of layer directories, topmost first. Calls block for a few system calls each.

    All calls together look at MAX_LOOKS places; then each raises InvalidSpec.
    """

    def __init__(self, layers: Sequence[Path]) -> None:
        self._layers = tuple(layers)
        self._looks = 0

    def find(self, path: str, *, follow: bool = True, start: ImageFile | None = None) -> ImageFile:
        """Walk `path` from the root; a last link is followed unless told otherwise.

        A relative one is walked from `start` where that is given. Raises FileNotFoundError,
        NotADirectoryError, or OSError with ELOOP, ENAMETOOLONG, or EPERM for a layer that says it
        wants to redirect.
        """
        todo = _pieces(path)[::-1]
        here = self._root() if start is None or path.startswith("/") else start
        links = 0
        while todo:
            if not here.is_directory:
                raise _error(errno.ENOTDIR, path)
            name = todo.pop()
            if name == ".":
                continue
            if name == "..":
                here = here.above or here
                continue
            found = self._child(here, name)
            if not stat.S_ISLNK(found.stat.st_mode) or not (follow or todo):
                here = found
                continue
            links += 1
            if links > MAX_LINKS:
                raise _error(errno.ELOOP, path)
            target = os.readlink(found.places[0])  # a Path would lose a slash at its end
            if target.startswith("/"):
                here = self._root()
            todo += _pieces(target)[::-1]
        return here

    def resolve(self, path: str, *, follow: bool = True) -> str:
        """Return where in the image `path` leads, without links. Raises as `find` does."""
        return self.find(path, follow=follow).path

    def lstat(self, path: str) -> os.stat_result:
        """Return what lstat(2) would say: a last link is not followed. Raises as `find` does."""
        return self.find(path, follow=False).stat

    def readlink(self, path: str) -> str:
        """Return the text of a link. Raises as `find` does, and EINVAL for what is none."""
        found = self.find(path, follow=False)
        if not stat.S_ISLNK(found.stat.st_mode):
            raise _error(errno.EINVAL, path)
        return os.readlink(found.places[0])

    def read(self, path: str, max_bytes: int) -> bytes:
        """Return the first `max_bytes` of a regular file, links followed.

        Raises as `find` does, IsADirectoryError, and EINVAL for a fifo, socket or device, which is
        never opened.
        """
        found = self.find(path)
        if found.is_directory:
            raise _error(errno.EISDIR, path)
        if not stat.S_ISREG(found.stat.st_mode):
            raise _error(errno.EINVAL, path)
        fd = os.open(found.places[0], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            return file.read(max_bytes)

    def _root(self) -> ImageFile:
        return ImageFile("/", self._layers, self._layers[0].lstat())

    def _child(self, parent: ImageFile, name: str) -> ImageFile:
        """Return what `name` is in the merged directory `parent`."""
        self._looks += len(parent.places) * (1 + len(parent.path) // LONG_PATH)
        if self._looks > MAX_LOOKS:
            problem = f"its files take more than {MAX_LOOKS} looks at its layers to find"
            way_out = "shorten WORKDIR, VOLUME, PATH and links, or squash the image"
            raise InvalidSpec([Problem("image", f"{problem}: {way_out}")])
        path = f"{parent.path.rstrip('/')}/{name}"
        places: list[Path] = []
        top: os.stat_result | None = None
        for directory in parent.places:
            place = directory / name
            try:
                status = place.lstat()
            except FileNotFoundError:
                continue
            last = directory == parent.places[-1]
            if _is_whiteout(place, status):
                break
            if not stat.S_ISDIR(status.st_mode):
                if top is None:
                    _refuse(place, status, "metacopy", path)
                    top, places = status, [place]
                break
            top = top or status
            places.append(place)
            if last or _xattr(place, "opaque") == b"y":
                break
            _refuse(place, status, "redirect", path)
        if top is None:
            raise _error(errno.ENOENT, path)
        return ImageFile(path, tuple(places), top, parent)


def _pieces(path: str) -> list[str]:
    """Split a path into names; a slash at its end is a ".", for it asks for a directory."""
    try:
        size_bytes = len(os.fsencode(path))
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can say and no file be called
        size_bytes = 0
    if size_bytes == 0 or "\0" in path:
        raise _error(errno.ENOENT, path)
    if size_bytes > MAX_PATH_BYTES:
        raise _error(errno.ENAMETOOLONG, path[:64])
    return [name for name in path.split("/") if name] + (["."] if path.endswith("/") else [])


def _is_whiteout(place: Path, status: os.stat_result) -> bool:
    if stat.S_ISCHR(status.st_mode):
        return status.st_rdev == 0
    # Linux 6.7 has these besides, for layers that cannot hold devices.
    return (
        stat.S_ISREG(status.st_mode)
        and status.st_size == 0
        and _xattr(place, "whiteout") is not None
    )


def _refuse(place: Path, status: os.stat_result, attribute: str, path: str) -> None:
    if stat.S_IFMT(status.st_mode) in (stat.S_IFREG, stat.S_IFDIR) and (
        _xattr(place, attribute) is not None
    ):
        raise _error(errno.EPERM, path)


def _xattr(place: Path, name: str) -> bytes | None:
    try:
        return os.getxattr(place, _XATTR + name, follow_symlinks=False)
    except OSError as error:
        if error.errno in _NONE:
            return None
        raise


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)
