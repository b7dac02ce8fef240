"""Compares `ImageFiles` with the kernel: the same random layers, mounted as an overlay and asked.

`python -m tests.inside.overlay_probe DIRECTORY FIRST COUNT` makes COUNT trees from the seeds on,
prints how many answers were no error, and ends with 77 where this user may have no namespaces.
"""

from __future__ import annotations

import json
import os
import random
import stat
import sys
from collections.abc import Callable
from pathlib import Path

from agent.linux import mount
from agent.sandbox.image_files import MAX_LINKS, ImageFiles
from agent.storage.mounts import overlay
from tests.inside.kernel_probe import NO_NAMESPACES, live_apart

NAMES = ("a", "b", "etc")
QUESTIONS = 120
# What a path can be made of; what asks for too long a name is among it.
PIECES = (*NAMES, *NAMES, "..", ".", "", "l1", "l2", "n" * 256)
XWHITEOUTS = tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 8)

Answer = tuple[object, ...]


def make_layer(dice: random.Random, top: Path) -> None:
    """Fill one layer: everything an image, or a file system below it, may hold at a name."""
    top.mkdir()
    os.chmod(top, 0o755)
    folders = [top]
    for _ in range(dice.randint(1, 14)):
        place = dice.choice(folders) / dice.choice((*NAMES, "l1", "l2"))
        if os.path.lexists(place):
            continue
        kind = dice.choices(tuple(KINDS), weights=[weight for weight, _ in KINDS.values()])[0]
        KINDS[kind][1](place, dice)
        if stat.S_ISDIR(place.lstat().st_mode):
            folders.append(place)


def make_chain(top: Path) -> None:
    """Make links of which /chain1 leads over forty to a file, and /chain0 over one more."""
    for n in range(MAX_LINKS + 1):
        (top / f"chain{n}").symlink_to(f"chain{n + 1}")
    _file(top / f"chain{MAX_LINKS + 1}", random.Random())


def _folder(place: Path, _: random.Random) -> None:
    place.mkdir()


def _attribute(name: str, value: bytes) -> Callable[[Path, random.Random], None]:
    def make(place: Path, dice: random.Random) -> None:
        if dice.random() < 0.7 and name != "whiteout":
            place.mkdir()
        else:
            place.write_bytes(b"" if name == "whiteout" else str(place).encode())
        os.setxattr(place, f"user.overlay.{name}", value)

    return make


def _file(place: Path, _: random.Random) -> None:
    place.write_bytes(str(place).encode())


def _link(place: Path, dice: random.Random) -> None:
    target = "/".join(dice.choice(PIECES) for _ in range(dice.randint(1, 4)))
    place.symlink_to(dice.choice(("", "/", "../")) + target or ".")


def _whiteout(place: Path, _: random.Random) -> None:
    os.mknod(place, stat.S_IFCHR, os.makedev(0, 0))


def _fifo(place: Path, _: random.Random) -> None:
    os.mkfifo(place)


KINDS: dict[str, tuple[int, Callable[[Path, random.Random], None]]] = {
    "folder": (40, _folder),
    "file": (15, _file),
    "link": (25, _link),
    "whiteout": (12, _whiteout),
    "fifo": (2, _fifo),
    "opaque": (10, _attribute("opaque", b"y")),
    "opaque by another word": (5, _attribute("opaque", b"yes")),
    "redirect": (1, _attribute("redirect", b"/a")),
    "metacopy": (1, _attribute("metacopy", b"")),
    **({"whiteout by attribute": (3, _attribute("whiteout", b"y"))} if XWHITEOUTS else {}),
}


def questions(dice: random.Random) -> list[tuple[str, bool]]:
    """Return paths and whether their last link is followed."""
    asked = [
        ("/" + "/".join(dice.choice(PIECES) for _ in range(dice.randint(1, 5))), follow)
        for _ in range(QUESTIONS)
        for follow in (True, False)
    ]
    always = ("/chain0", "/chain1", "/" + "a/" * 2047, "/" + "a/" * 2048)
    return [*asked, *((path, True) for path in always)]


def told(path: str, mode: int, content: Callable[[], object]) -> Answer:
    """Return an answer that both sides can give."""
    if stat.S_ISREG(mode) or stat.S_ISLNK(mode):
        return (path, mode, content())
    return (path, mode)


def by_files(files: ImageFiles, path: str, *, follow: bool) -> Answer:
    """Ask the class under test."""
    try:
        found = files.find(path, follow=follow)
        mode = found.stat.st_mode
        link = stat.S_ISLNK(mode)
        return told(
            found.path,
            mode,
            lambda: files.readlink(path) if link else files.read(path, 4096).decode(),
        )
    except OSError as error:
        return (error.errno,)


def by_kernel(descriptors: int, path: str, *, follow: bool) -> Answer:
    """Ask the kernel, from inside the mounted root."""
    try:
        fd = os.open(path, os.O_PATH | (0 if follow else os.O_NOFOLLOW))
    except OSError as error:
        return (error.errno,)
    try:
        mode = os.fstat(fd).st_mode
        where = os.readlink(str(fd), dir_fd=descriptors)
        if stat.S_ISLNK(mode):
            return told(where, mode, lambda: os.readlink("", dir_fd=fd))
        return told(where, mode, lambda: Path(path).read_text())
    except OSError as error:
        return (error.errno,)
    finally:
        os.close(fd)


def ask_inside(root: Path, asked: list[tuple[str, bool]]) -> list[Answer]:
    """Return the kernel's answers, given by a child whose root is `root`."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        descriptors = os.open(f"/proc/{os.getpid()}/fd", os.O_RDONLY)
        os.chroot(root)
        os.chdir("/")
        answers = [by_kernel(descriptors, path, follow=follow) for path, follow in asked]
        with os.fdopen(writing, "w") as out:
            json.dump(answers, out)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answers_of_child:
        found = [tuple(answer) for answer in json.load(answers_of_child)]
    os.waitpid(child, 0)
    return found


def compare(place: Path, seed: int) -> int:
    """Make one tree and compare every answer; returns how many were no error."""
    dice = random.Random(seed)
    layers = [place / f"layer{n}" for n in range(dice.randint(1, 4))]
    for layer in layers:
        make_layer(dice, layer)
    make_chain(layers[-1])
    root, upper, work = place / "root", place / "upper", place / "work"
    for folder in (root, upper, work):
        folder.mkdir()
    overlay(root, layers, upper, work)
    asked = questions(dice)
    kernel = ask_inside(root, asked)
    mount.unmount(root)
    files = ImageFiles(layers)
    for (path, follow), wanted in zip(asked, kernel, strict=True):
        got = by_files(files, path, follow=follow)
        assert got == wanted, f"seed {seed}, {path!r}, follow={follow}: {got}, kernel {wanted}"
    return sum(len(answer) > 1 for answer in kernel)


def main() -> int:
    """Run as the module's docstring says."""
    place, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    try:
        live_apart()
    except OSError as error:
        sys.stderr.write(f"no namespaces: {error}\n")
        return NO_NAMESPACES
    compared = 0
    for seed in range(first, first + count):
        (place / str(seed)).mkdir()
        compared += compare(place / str(seed), seed)
    sys.stdout.write(f"{compared}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
