"""Why a program could not be executed: the file, interpreter, loader or right that is missing.

Asked after a start has failed, never before one: the kernel decides what runs, and a node may be
taught to run more (binfmt_misc). So a claim is made only where something is found wrong in the
image, following execve(2); what lies on volumes or below /dev, /proc and /sys is not judged, for it
may be another by now. What programs and ELF files look like is `agent/core/executables.py`.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from dataclasses import dataclass

from agent.core import executables, file_rights
from agent.core.executables import HEADER_BYTES, Script
from agent.core.init import program_of
from agent.core.oci import CAPABILITIES
from agent.errors import InvalidSpec
from agent.model.failure import Failure, FailureKind
from agent.sandbox.image_files import ImageFile, ImageFiles

MAX_SCRIPTS = 5  # how many interpreters may themselves be scripts (fs/exec.c)
MAX_LINKS = 40
MAX_WORDS = 1000  # characters of what is told
_ACCESS_LIST = "system.posix_acl_access"
KERNEL_PLACES = ("/dev", "/proc", "/sys")


@dataclass(frozen=True, slots=True)
class Program:
    """What is executed and by whom: `search` is PATH, `volumes` are mount points in it."""

    argv: tuple[str, ...]
    search: str
    workdir: str
    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    volumes: tuple[str, ...] = ()


class _Wrong(Exception):
    """What is wrong: the words, and whether something is missing or may not be used."""

    def __init__(self, words: str, *, missing: bool = False) -> None:
        super().__init__(words)
        self.words = words
        self.missing = missing


class _NotOurs(Exception):
    """It lies where the image does not tell."""


def why_not(layers: ImageFiles, program: Program) -> Failure | None:
    """Say why `program` cannot be executed; None when nothing is seen that is wrong. Blocks."""
    look = _Look(layers, program)
    try:
        look.at_command(program.argv[0])
    except _Wrong as wrong:
        kind = FailureKind.FILE_NOT_FOUND if wrong.missing else FailureKind.FILE_PERMISSION
        return Failure(kind, _shown(wrong.words))
    except (_NotOurs, OSError, InvalidSpec):  # the last for an image that takes too long to look at
        return None
    return None


class _Look:
    """One look at one program."""

    def __init__(self, files: ImageFiles, program: Program) -> None:
        self._files = files
        self._program = program

    def at_command(self, name: str) -> None:
        """Look for what is executed as `name`; raises _Wrong, _NotOurs or OSError."""
        if not name:
            raise _Wrong("the command's first word is empty", missing=True)
        if "/" in name:
            self._at_file(name)
            return
        denied: _Wrong | None = None
        for folder in self._program.search.split(":"):
            path = posixpath.join(folder or ".", name)
            try:
                found = self._find(path)
            except _Wrong:
                continue
            try:
                self._may_execute(path, found)
            except _Wrong as wrong:
                denied = denied or wrong
                continue
            self._at_file(path)
            return
        if denied is not None:
            raise denied
        words = f"{name} is not in the image: looked in PATH, which is {self._program.search}"
        if len(name.split()) > 1:
            words += "; a command is a list of words, and this is one word with blanks in it"
        raise _Wrong(words, missing=True)

    def _at_file(self, path: str, depth: int = 0) -> None:
        found = self._find(path)
        self._may_execute(path, found)
        head = self._files.read(found.path, HEADER_BYTES)
        script = executables.script(head)
        if script is not None:
            if depth < MAX_SCRIPTS:
                self._at_script(path, script, depth)
            return
        words = executables.foreign(head)
        if words:
            raise _Wrong(f"{path} {words}")
        loader = executables.loader(head)
        if loader:
            self._at_loader(path, loader)

    def _at_script(self, path: str, script: Script, depth: int) -> None:
        begin = f"{path} starts with #!{script.line}"
        if script.fault:
            raise _Wrong(f"{begin}: {script.fault}")
        windows = ""
        if script.windows:
            windows = ": its lines end with CR LF, as on Windows; save it with LF alone"
        try:
            self._at_file(script.interpreter, depth + 1)
        except _Wrong as wrong:
            if windows or wrong.missing:
                words = f"{begin}, and {wrong.words}"
                raise _Wrong(words + windows, missing=wrong.missing) from None
            raise _Wrong(f"{begin}: {wrong.words}") from None
        if posixpath.basename(script.interpreter) != "env" or not script.argument:
            return
        wanted = program_of(["env", script.argument])
        if not wanted:
            return
        try:
            self.at_command(wanted)
        except _Wrong as wrong:
            words = f"{begin}, and {wrong.words}"
            if " " in wanted and not windows:
                words = f"{begin}, which asks for one program called {wanted!r}: write env -S"
            raise _Wrong(words + windows, missing=wrong.missing) from None

    def _at_loader(self, path: str, loader: str) -> None:
        try:
            found = self._find(loader)
            self._may_execute(loader, found)
        except _Wrong as wrong:
            libc = executables.libc_of(loader)
            built = f" (it was built for {libc})" if libc else ""
            raise _Wrong(
                f"{path} needs the loader {loader}{built}, and {wrong.words}",
                missing=wrong.missing,
            ) from None

    # -- files

    def _find(self, path: str) -> ImageFile:
        """Return what `path` leads to. Raises _Wrong when it leads nowhere."""
        full = posixpath.join("/", self._program.workdir, path)
        self._must_be_ours(posixpath.normpath(full))
        try:
            found = self._files.find(full)
        except OSError as error:
            raise self._lost(path, full, error) from None
        self._must_be_ours(found.path)
        return found

    def _must_be_ours(self, path: str) -> None:
        for place in (*KERNEL_PLACES, *self._program.volumes):
            if path == place or path.startswith(f"{place}/"):
                raise _NotOurs

    def _lost(self, path: str, full: str, error: OSError) -> _Wrong:
        """Return the words for a path that leads nowhere."""
        if error.errno == errno.ELOOP:
            return _Wrong(f"{path} is a link that leads to itself", missing=True)
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise error
        lost = self._lost_at(full)
        self._must_be_ours(lost)
        if error.errno == errno.ENOTDIR:
            above = posixpath.dirname(lost)
            while above != "/" and not self._is_file(above):
                above = posixpath.dirname(above)
            words = f"{path} is not in the image: {above} is no directory"
            return _Wrong(words, missing=True)
        if self._is_link(full):
            return _Wrong(f"{path} leads to {lost}, which is not in the image", missing=True)
        return _Wrong(f"{path} is not in the image", missing=True)

    def _lost_at(self, path: str) -> str:
        """Return what the path leads to that is not there, links followed."""
        rest = ""
        for _ in range(MAX_LINKS):
            parent, name = posixpath.split(path.rstrip("/") or "/")
            try:
                parent = self._files.resolve(parent)
            except OSError:
                path, rest = parent, posixpath.join(name, rest)
                continue
            path = posixpath.join(parent, name)
            try:
                target = self._files.readlink(path)
            except OSError:
                break
            path, rest = posixpath.join(parent, target, rest), ""
        return posixpath.normpath(posixpath.join(path, rest))

    def _is_link(self, path: str) -> bool:
        try:
            return stat.S_ISLNK(self._files.lstat(path).st_mode)
        except OSError:
            return False

    def _is_file(self, path: str) -> bool:
        try:
            return not self._files.find(path).is_directory
        except OSError:
            return False

    # -- rights

    def _may_execute(self, path: str, found: ImageFile) -> None:
        if found.is_directory:
            raise _Wrong(f"{path} is a directory")
        if not stat.S_ISREG(found.stat.st_mode):
            raise _Wrong(f"{path} is no regular file")
        mode = stat.S_IMODE(found.stat.st_mode)
        if not mode & 0o111:
            raise _Wrong(f"{path} is not executable: its mode is {mode:04o}; chmod +x mends it")
        way = [found]
        while (above := way[-1].above) is not None:
            way.append(above)
        for each in reversed(way):
            self._may_pass(path, each)
        lacks = file_rights.out_of_reach(_attribute(found, file_rights.ATTRIBUTE), CAPABILITIES)
        if lacks:
            raise _Wrong(
                f"{path} carries {', '.join(lacks)}, which no function can have: "
                "take it from the file (setcap -r)"
            )

    def _may_pass(self, path: str, place: ImageFile) -> None:
        """Raise _Wrong when the bits keep the user from executing or searching `place`."""
        who, status = self._program, place.stat
        if who.uid == 0:  # it has CAP_DAC_OVERRIDE, which asks for any of the bits only
            return
        mode = stat.S_IMODE(status.st_mode)
        if status.st_uid == who.uid:
            allowed = mode & 0o100
        elif status.st_gid in (who.gid, *who.groups):
            allowed = mode & 0o010
        else:
            allowed = mode & 0o001
        if allowed or _attribute(place, _ACCESS_LIST):  # which may give more than the bits do
            return
        where = "" if stat.S_ISREG(status.st_mode) else f", for {place.path} may not be entered"
        owner = f"{status.st_uid}:{status.st_gid}"
        raise _Wrong(
            f"{path} may not be executed by user {who.uid}:{who.gid}{where}: "
            f"its mode is {mode:04o}, its owner {owner}"
        )


def _shown(words: str) -> str:
    """Return words of an image as a line to print: what shows nothing is written out."""
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in words)
    return text[:MAX_WORDS]


def _attribute(place: ImageFile, name: str) -> bytes:
    """Return an extended attribute, empty where there is none."""
    try:
        return os.getxattr(place.places[0], name, follow_symlinks=False)
    except OSError:
        return b""
