"""Whether a command is an init: a program that is, or insists on being, the first process.

`is_init` looks at the command line alone, the way the image and the spec give it; where a link
leads, and what a script says, is found out by `agent/sandbox`, which asks again with that. A
supervisor that works as any process (supervisord, pm2) is none. A shell line counts where it is one
plain command, which shells execute in their own place: that is what `CMD /init` in a Dockerfile is.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence

# By name, wherever they lie. Release files carry version and machine: tini-static-amd64.
_NAMES = re.compile(
    r"s6-svscan|s6-linux-init|s6-overlay-.+|"
    r"(tini|dumb-init)([-_].+)?|docker-init|podman-init|catatonit|"
    r"runit|runit-init|runsvdir|runsvdir-start|my_init|"
    r"systemd|openrc-init|sinit|dinit|finit",
    re.ASCII,
)
# `init` is everybody's word for a script: only where distributions and s6-overlay have theirs.
_INIT_PLACES = {"/", "/bin", "/sbin", "/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"}
_PATHS = re.compile(r"/package/admin/.+|/command/s6-.+|/etc/runit/[123]|/linuxrc", re.ASCII)
_ENV_WITH_VALUE = {"-u", "--unset", "-C", "--chdir"}
_ASSIGNMENT = re.compile(r"[^=/]+=.*", re.DOTALL)
_SHELLS = {"sh", "ash", "bash", "dash", "ksh", "zsh"}
_LINE_OPTION = re.compile(r"-[a-z]*c", re.ASCII)
_PLAIN = re.compile(r"[\w@%+=:,./ \t-]+", re.ASCII)  # nothing in it is a shell's


def is_init(argv: Sequence[str], workdir: str = "/") -> bool:
    """Say whether a command line runs an init; relative paths begin at `workdir`."""
    words = command_of(argv)
    if not words or not words[0]:
        return False
    program = words[0]
    name = posixpath.basename(program)
    if name == "busybox" and words[1:]:
        return posixpath.basename(words[1]) == "init"
    if _NAMES.fullmatch(name):
        return True
    if "/" not in program:
        return program == "init"
    path = "/" + posixpath.normpath(posixpath.join("/", workdir, program)).lstrip("/")
    if _PATHS.fullmatch(path):
        return True
    return name == "init" and posixpath.dirname(path) in _INIT_PLACES


def program_of(argv: Sequence[str]) -> str:
    """Return the program a command line runs in the end: behind env(1), in a plain shell line."""
    words = command_of(argv)
    return words[0] if words else ""


def command_of(argv: Sequence[str]) -> list[str]:
    """Return the command that is executed in the end, as far as words alone can say."""
    words = _behind_env(list(argv))
    line = _shell_line(words)
    return words if line is None else _behind_env(line)


def handed_over(script: str, argv: Sequence[str]) -> list[str]:
    """Return the command that a script, called as `argv`, executes in its own place at its end.

    Empty when its last line shows none. Images prepare things in such a script before their init.
    """
    lines = [line.strip() for line in script.splitlines()]
    last = next((line for line in reversed(lines) if line and not line.startswith("#")), "")
    command: list[str] = []
    for word in last.split()[1:] if last.startswith("exec ") else ():
        plain = word.strip("\"'")
        command += argv[1:] if plain in ("$@", "${@}") else [plain]
    return command


def _shell_line(words: list[str]) -> list[str] | None:
    """Return the one plain command that a shell is given as its line, None when it is another."""
    if [posixpath.basename(word) for word in words[:2]] == ["busybox", "sh"]:
        words = words[1:]
    if not words or posixpath.basename(words[0]) not in _SHELLS:
        return None
    for at, word in enumerate(words[1:], 1):
        if not word.startswith("-"):
            return None
        if _LINE_OPTION.fullmatch(word):
            line = words[at + 1] if words[at + 1 :] else ""
            found = line.split() if _PLAIN.fullmatch(line) else []
            while found and _ASSIGNMENT.fullmatch(found[0]):
                found = found[1:]
            return (found[1:] if found[:1] == ["exec"] else found) or None
    return None


def _behind_env(words: list[str]) -> list[str]:
    """Return the command that env(1) would execute, the words themselves when it is another."""
    while words and posixpath.basename(words[0]) == "env":
        words = words[1:]
        while words and (words[0].startswith("-") or _ASSIGNMENT.fullmatch(words[0])):
            option = words[0]
            if option in ("-S", "--split-string"):
                words = [*" ".join(words[1:2]).split(), *words[2:]]
            elif option.startswith("-S") or option.startswith("--split-string="):
                given = option.removeprefix("--split-string=").removeprefix("-S")
                words = [*given.split(), *words[1:]]
            elif option == "--":
                words = words[1:]
                break
            else:
                words = words[2 if option in _ENV_WITH_VALUE else 1 :]
    return words
