"""What every container finds in its root, whatever its image has there: /etc/hosts, /tmp and more.

`furniture_of` looks once per version at what the image has, and says what must lie in the writable
layer; `Furniture.place` puts it there for one instance, before the root is mounted. So these files
are the instance's own, as real and as writable as any other, and count as what it writes. What the
image has in their place, be it a link, a directory or a device, is not seen; nor does it count what
the image wants there as a volume or working directory.

It never writes outside the writable layer, and follows no link in it: it is empty.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from agent.errors import InvalidSpec, Problem
from agent.sandbox.image_files import MAX_LINKS, UNREACHABLE, ImageFile, ImageFiles

HOSTS, HOSTNAME, RESOLV_CONF = "hosts", "hostname", "resolv.conf"
"""The files of /etc that are written per instance."""
MTAB, MTAB_TARGET = "mtab", "/proc/mounts"
"""A link of /etc that Docker and podman make, too: Java looks for its file systems there."""

KERNEL_PLACES = ("proc", "sys", "dev")
"""Where the runtime mounts: directories of their own, and nothing below them is the image's."""
KERNELS_OWN = ("proc", "sys")

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
    """What to lay into a writable layer: directories, parents first, and files into `etc`.

    `mtab` says whether its link is to be laid there, too.
    """

    directories: tuple[LaidDirectory, ...]
    etc: str
    mtab: bool = False

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
        if self.mtab:
            (upper / self.etc / MTAB).symlink_to(MTAB_TARGET)


def furniture_of(
    view: ImageFiles, workdir: str, volumes: Iterable[str] = (), *, mounted: Collection[str] = ()
) -> Furniture:
    """Return what the image's containers need: /etc, a /tmp open to all, and what it asks for.

    That is the working directory, and volumes, which elsewhere are mounted on directories made for
    them. Directories that the image has keep their owner, and their mode but for /tmp. `mounted`
    are the targets of the function's own mounts. Raises InvalidSpec for a working directory or such
    a target that is a file, and for more or longer ones than can be made, OSError for layers that
    cannot be read. Blocks.
    """
    plan = _Plan(view)
    etc = plan.fixed("etc")
    plan.fixed("tmp", TMP_MODE)
    for place in KERNEL_PLACES:
        plan.clear(place)
    plan.files = {posixpath.join(etc, name) for name in (HOSTS, HOSTNAME, RESOLV_CONF)}
    for path in mounted:
        if (way := plan.walk(path)).blocked:
            words = f"{path} cannot be mounted on: /{way.place} is no directory"
            raise InvalidSpec([Problem("mounts", f"{words}; choose another target")])
    way = plan.make(workdir)
    why = _not_to_be_entered(way)
    if why and not any(f"{workdir}/".startswith(f"{place}/") for place in mounted):
        what = f"its WORKDIR {workdir[:64]} cannot be entered: {why}"
        raise InvalidSpec([Problem("image", f"{what}; choose another one when building it")])
    for path in volumes:
        plan.make(path)
    _check(plan.found)
    return Furniture(tuple(plan.found.values()), etc, mtab=plan.lacks(posixpath.join(etc, MTAB)))


def _not_to_be_entered(way: _Way) -> str:
    """Say why a way leads to no directory that a program could begin in; "" when it does."""
    if way.blocked:
        return f"/{way.place} is no directory"
    if way.missing[1:] and way.place in KERNELS_OWN:
        return f"/{way.place} is the kernel's, where nothing can be made"
    return ""


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


@dataclass(slots=True)
class _Way:
    """How far a path leads: the last directory that the image has, and the names it lacks.

    `blocked` says that the first of those is there and no directory.
    """

    here: ImageFile
    missing: list[str] = field(default_factory=list)
    links: int = 0
    blocked: bool = False

    @property
    def place(self) -> str:
        """Where the first name that lacks is, below the root; the directory's own place if none."""
        return posixpath.join(self.here.path, *self.missing[:1])[1:]

    @property
    def is_kernels(self) -> bool:
        """Whether it leads to what the runtime mounts, where nothing can be laid."""
        return self.place.partition("/")[0] in KERNEL_PLACES


class _Plan:
    """Directories that must lie in the writable layer, by path below the root.

    `files` are those of the runtime, `over` the directories laid over whatever the image has.
    """

    def __init__(self, view: ImageFiles) -> None:
        self._view = view
        self.found = {"": _as_it_is(view.find("/"))}
        self.files: set[str] = set()
        self._over: set[str] = set()

    def fixed(self, name: str, mode: int = 0) -> str:
        """Have a directory of the root, with at least the bits of `mode`; return where it is.

        A link of its name is followed where it leads to a directory.
        """
        way = self.walk(name)
        if way.missing:
            self._lay(name, mode)
            return name
        if mode == 0 or way.here.stat.st_mode & mode != mode:
            self._add(way.here)
            made = self.found[way.place]
            self.found[way.place] = replace(made, mode=made.mode | mode)
        return way.place

    def clear(self, name: str) -> None:
        """Have a directory of the root in the place of anything else."""
        try:
            found = self._view.find(name, follow=False)
        except OSError as error:
            if error.errno in UNREACHABLE:
                raise
            return  # the runtime makes it
        if not found.is_directory:
            self._lay(name, 0)

    def make(self, path: str) -> _Way:
        """Have the directory that `path` leads to, with its parents, unless it is blocked."""
        way = self.walk(path)
        if way.missing and not (way.blocked or way.is_kernels):
            self._add(way.here)
            place = way.here.path[1:]
            for name in way.missing:
                place = posixpath.join(place, name)
                self.found.setdefault(place, LaidDirectory(place, DIRECTORY_MODE))
        return way

    def lacks(self, place: str) -> bool:
        """Say whether nothing is, or will be, at a place below the root."""
        if place in self.found:
            return False
        try:
            self._view.find(place, follow=False)
        except OSError as error:
            if error.errno in UNREACHABLE:
                raise
            return True
        return posixpath.dirname(place) in self._over

    def _lay(self, name: str, mode: int) -> None:
        self.found[name] = LaidDirectory(name, DIRECTORY_MODE | mode)
        self._over.add(name)

    def walk(self, path: str) -> _Way:
        """Walk a path as runtimes do: links are followed also where they lead to nothing yet."""
        way = _Way(self._view.find("/"))
        todo = _names(posixpath.normpath(f"/{path}"))
        while todo and not way.blocked:
            name = todo.pop()
            if name == "..":
                if way.missing:
                    way.missing.pop()
                else:
                    way.here = way.here.above or way.here
                continue
            found = None if way.missing else self._look(way, name)
            if found is None:
                way.missing.append(name)
                if posixpath.join(way.here.path, *way.missing)[1:] in self.files:
                    way.missing, way.blocked = [posixpath.join(*way.missing)], True
            elif stat.S_ISLNK(found.stat.st_mode):
                way.links += 1
                target = os.readlink(found.places[0])
                if target.startswith("/"):
                    way.here = self._view.find("/")
                todo += _names(target)
                if way.links > MAX_LINKS:
                    way.missing, way.blocked = [name], True
            elif found.is_directory:
                way.here = found
            else:
                way.missing, way.blocked = [name], True
        return way

    def _look(self, way: _Way, name: str) -> ImageFile | None:
        """Return what the image has for a name, None for nothing and for what is not seen."""
        place = posixpath.join(way.here.path, name)[1:]
        if place in self._over or place in self.files or place in KERNEL_PLACES:
            return None
        try:
            return self._view.find(name, follow=False, start=way.here)
        except OSError as error:
            if error.errno in UNREACHABLE:
                raise
            return None

    def _add(self, found: ImageFile) -> None:
        """Have a directory of the image, after its parents, in the writable layer as it is."""
        way = [found]
        while (above := way[-1].above) is not None:
            way.append(above)
        for each in reversed(way):
            self.found.setdefault(each.path[1:], _as_it_is(each))


def _names(path: str) -> list[str]:
    """Return the names of a path, the last one first."""
    return [name for name in path.split("/") if name not in ("", ".")][::-1]


def _as_it_is(found: ImageFile) -> LaidDirectory:
    status = found.stat
    return LaidDirectory(found.path[1:], stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)
