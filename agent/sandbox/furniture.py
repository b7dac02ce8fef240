"""What every container finds in its root, whatever its image has there: /etc/hosts, /tmp and more.

`furniture_of` looks once per version at what the image has, and says what must lie in the writable
layer; `Furniture.place` puts it there for one instance, before the root is mounted. So these files
are the instance's own, as real and as writable as any other, and count as what it writes. What the
image has in their place, be it a link, a directory or a device, is not seen.

It never writes outside the writable layer, and follows no link in it: it is empty.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from agent.errors import InvalidSpec, Problem
from agent.sandbox.image_files import UNREACHABLE, ImageFile, ImageFiles

HOSTS, HOSTNAME, RESOLV_CONF = "hosts", "hostname", "resolv.conf"
"""The files of /etc that are written per instance."""

TMP = "/tmp"  # the container's
TMP_MODE = 0o1777
DIRECTORY_MODE = 0o755
FILE_MODE = 0o644
MAX_DIRECTORIES = 1000  # milliseconds of a start
MAX_NAME_BYTES = 255  # NAME_MAX
MAX_PATH_BYTES = 3000  # PATH_MAX, 4096, less where the layer is on the host


@dataclass(frozen=True, slots=True)
class LaidDirectory:
    """A directory of the writable layer: its path below the root, and what it must look like."""

    path: str
    mode: int
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True, slots=True)
class Furniture:
    """What to lay into a writable layer: directories, parents first, and files into `etc`."""

    directories: tuple[LaidDirectory, ...]
    etc: str

    def place(self, upper: Path, files: Mapping[str, str]) -> None:
        """Write it into an empty `upper`; `files` are texts by their name in /etc.

        Raises OSError.
        """
        for each in self.directories:
            path = upper / each.path
            if each.path:
                path.mkdir()
            if each.uid or each.gid:
                os.chown(path, each.uid, each.gid)
            path.chmod(each.mode)  # whatever the umask, and after chown, which clears bits
        for name, text in files.items():
            path = upper / self.etc / name
            path.write_text(text)
            path.chmod(FILE_MODE)


def furniture_of(view: ImageFiles, wanted: Iterable[str]) -> Furniture:
    """Return what the image's containers need: /etc, a /tmp open to all, and what is `wanted`.

    Those are the working directory, and volumes, which elsewhere are mounted on directories made
    for them. Directories that the image has keep their owner, and their mode but for /tmp. Raises
    InvalidSpec for more or longer ones than can be made, OSError for layers that cannot be read.
    Blocks.
    """
    plan = _Plan(view)
    etc = plan.make("/etc")
    if not plan.has(TMP, TMP_MODE):
        plan.make(TMP, TMP_MODE)
    for path in wanted:
        if not plan.has(path) and not plan.blocked(path):
            plan.make(path)
    _check(plan.found)
    return Furniture(tuple(plan.found.values()), etc)


def _check(paths: Collection[str]) -> None:
    """Refuse what no start could lay down, or only slowly; raises InvalidSpec."""
    problems = []
    if len(paths) > MAX_DIRECTORIES:
        what = f"its WORKDIR and VOLUMEs need {len(paths)} directories made at every start"
        problems.append(f"{what}; {MAX_DIRECTORIES} are the most")
    for path in paths:
        size_bytes = len(os.fsencode(path))
        name_bytes = len(os.fsencode(posixpath.basename(path)))
        if size_bytes > MAX_PATH_BYTES or name_bytes > MAX_NAME_BYTES:
            what = f"its WORKDIR or a VOLUME, /{path[:64]}..., is longer than a path can be"
            problems.append(f"{what} ({MAX_PATH_BYTES} bytes, a name {MAX_NAME_BYTES})")
            break
    if problems:
        raise InvalidSpec([Problem("image", problem) for problem in problems])


class _Plan:
    """Directories that must lie in the writable layer, by path below the root."""

    def __init__(self, view: ImageFiles) -> None:
        self._view = view
        self.found = {"": _as_it_is(view.find("/"))}

    def has(self, path: str, mode: int = 0) -> bool:
        """Say whether the image has such a directory, with at least the bits of `mode`."""
        here, missing = self._walk(path)
        return not missing and here.stat.st_mode & mode == mode

    def blocked(self, path: str) -> bool:
        """Say whether something else stands where a directory is lacking: the program's to tell."""
        here, missing = self._walk(path)
        try:
            self._view.lstat(posixpath.join(here.path, missing[0]))
        except OSError:
            return False
        return True

    def make(self, path: str, mode: int = 0) -> str:
        """Have the directory that `path` leads to, with its parents; return where it is."""
        here, missing = self._walk(path)
        self._add(here)
        place = here.path[1:]
        for name in missing:
            place = posixpath.join(place, name)
            self.found.setdefault(place, LaidDirectory(place, DIRECTORY_MODE))
        made = self.found[place]
        self.found[place] = replace(made, mode=made.mode | mode)
        return place

    def _walk(self, path: str) -> tuple[ImageFile, list[str]]:
        """Return the last directory on the way that there is, and the names it lacks.

        A name that stands for something else, or leads nowhere, is lacking, too.
        """
        names = [name for name in posixpath.normpath(f"/{path}").split("/") if name]
        here = self._view.find("/")
        for count, name in enumerate(names):
            try:
                below = self._view.find(name, start=here)
            except OSError as error:
                if error.errno in UNREACHABLE:
                    raise
                return here, names[count:]
            if not below.is_directory:
                return here, names[count:]
            here = below
        return here, []

    def _add(self, found: ImageFile) -> None:
        """Have a directory of the image, after its parents, in the writable layer as it is."""
        way = [found]
        while (above := way[-1].above) is not None:
            way.append(above)
        for each in reversed(way):
            self.found.setdefault(each.path[1:], _as_it_is(each))


def _as_it_is(found: ImageFile) -> LaidDirectory:
    status = found.stat
    return LaidDirectory(found.path[1:], stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)
