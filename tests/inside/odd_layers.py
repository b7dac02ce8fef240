"""Odd things a layer may hold: each row is an image, and what a container of it must see.

Run as a probe it imports every row with the real containerd, mounts it as an instance's root would
be and tells what is there; tests/integration/test_odd_layers.py compares. What Docker or podman do
with each is written beside the row.
"""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from agent.containerd.client import Containerd
from agent.containerd.snapshots import view_key
from agent.errors import AgentError
from agent.storage import mounts
from tests import oci
from tests.inside.containerd_base import Place, main, soon

DIR, LINK, HARD = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
CHAR, BLOCK, FIFO = tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE
CAPABILITY = bytes.fromhex("0100000200040000" + "00" * 12)  # cap_net_bind_service=+ep
BEFORE_1970, AFTER_2038 = -86400, 1 << 33
GNU: Literal[1] = tarfile.GNU_FORMAT
USTAR: Literal[0] = tarfile.USTAR_FORMAT


@dataclass(frozen=True)
class Item:
    """One member of a layer's tar."""

    name: str
    data: bytes = b""
    kind: bytes = tarfile.REGTYPE
    mode: int = 0o644
    to: str = ""
    owner: tuple[int, int] = (0, 0)
    device: tuple[int, int] = (0, 0)
    mtime: float = 0
    xattrs: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """Layers, lowest first, and what is seen of some paths; `refused`: words of the refusal."""

    layers: Sequence[Sequence[Item] | bytes]
    seen: Mapping[str, str] = field(default_factory=dict)
    refused: str = ""


def d(name: str, mode: int = 0o755, **more: Any) -> Item:
    return Item(name, kind=DIR, mode=mode, **more)


def f(name: str, data: bytes = b"x", **more: Any) -> Item:
    return Item(name, data, **more)


def ln(name: str, to: str) -> Item:
    return Item(name, kind=LINK, to=to, mode=0o777)


def hard(name: str, to: str) -> Item:
    return Item(name, kind=HARD, to=to)


def tar(items: Sequence[Item], form: Literal[0, 1, 2] = tarfile.PAX_FORMAT) -> bytes:
    """Write members in this order, whatever they are."""
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w", format=form, encoding="utf-8", errors="surrogateescape"
    ) as out:
        for item in items:
            info = tarfile.TarInfo(item.name)
            info.type, info.mode, info.linkname = item.kind, item.mode, item.to
            info.uid, info.gid = item.owner
            info.devmajor, info.devminor = item.device
            info.size, info.mtime = len(item.data), item.mtime
            info.pax_headers = {
                f"SCHILY.xattr.{name}": value.decode("utf-8", "surrogateescape")
                for name, value in item.xattrs.items()
            }
            out.addfile(info, io.BytesIO(item.data))
    return buffer.getvalue()


LONG = "d/" * 80 + "name"
HALF = "d/" * 60 + "name"
ACL = bytes.fromhex("0200000001000600ffffffff04000400ffffffff20000400ffffffff")


def sparse() -> bytes:
    """A file that is one hole, in the old form of GNU tar (type S)."""
    header = bytearray(tarfile.TarInfo("hole").tobuf(GNU))
    header[156:157] = b"S"
    header[386:398] = b"%011o\0" % (1 << 20)
    header[398:410] = b"%011o\0" % 0
    header[483:495] = b"%011o\0" % (1 << 20)
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(1024)


def header_of_all() -> bytes:
    """A header for all members that follow: a comment."""
    body = b"18 comment=commit\n"
    info = tarfile.TarInfo("pax_global_header")
    info.type, info.size = tarfile.XGLTYPE, len(body)
    return info.tobuf(GNU) + body.ljust(512, b"\0")


def pax_sparse() -> bytes:
    """Eight zeros as a hole and a word, in the form that GNU tar writes for PAX."""
    body = b"1\n8\n3\n".ljust(512, b"\0") + b"end"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as out:
        info = tarfile.TarInfo("GNUSparseFile.0/hole")
        info.size, info.mode = len(body), 0o644
        info.pax_headers = {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": "hole",
            "GNU.sparse.realsize": "11",
        }
        out.addfile(info, io.BytesIO(body))
    return buffer.getvalue()


ROWS: dict[str, Row] = {
    # -- how members are written
    "names with a leading ./": Row([[d("./"), d("./a"), f("./a/b")]], {"a/b": "f 644 0:0 x"}),
    "absolute names": Row([[d("/a"), f("/a/b")]], {"a/b": "f 644 0:0 x"}),
    "the root as a member, in every spelling": Row(
        [[d("/"), d("."), d("./"), f("a")]], {"a": "f 644 0:0 x"}
    ),
    "a global header, as git archive writes it": Row(
        [header_of_all() + tar([f("a")])], {"a": "f 644 0:0 x"}
    ),
    "files of the type before POSIX": Row(
        [[Item("a", b"x", kind=tarfile.AREGTYPE)]], {"a": "f 644 0:0 x"}
    ),
    "files of the type for contiguous ones": Row(
        [[Item("a", b"x", kind=tarfile.CONTTYPE)]], refused="unhandled tar header type 55"
    ),
    "a hard link before its file": Row([[hard("b", "a"), f("a")]], refused="no such file"),
    "names through ..": Row([[d("a"), f("a/../b")]], {"b": "f 644 0:0 x"}),
    "names that leave the root": Row([[f("../../../escaped")]], {"escaped": "f 644 0:0 x"}),
    "a directory that is missing before its file": Row(
        [[f("a/b/c")]], {"a": "d 755 0:0", "a/b/c": "f 644 0:0 x"}
    ),
    "a directory that comes after its file": Row(
        [[f("a/b"), d("a", 0o700)]], {"a": "d 700 0:0", "a/b": "f 644 0:0 x"}
    ),
    "a file twice in one layer": Row([[f("a", b"1"), f("a", b"2")]], {"a": "f 644 0:0 2"}),
    "a file, then a directory of its name": Row(
        [[f("a"), d("a"), f("a/b")]], {"a/b": "f 644 0:0 x"}
    ),
    "a directory, then a file of its name": Row(
        [[d("a"), f("a/b"), f("a", b"2")]], {"a": "f 644 0:0 2"}
    ),
    "a link, then a file of its name": Row(
        [[f("b", b"1"), ln("a", "b"), f("a", b"2")]],
        {"a": "f 644 0:0 2", "b": "f 644 0:0 1"},
    ),
    "names beyond 100 bytes, by PAX": Row([[f(LONG)]], {LONG: "f 644 0:0 x"}),
    "names beyond 100 bytes, by GNU": Row([tar([f(LONG)], GNU)], {LONG: "f 644 0:0 x"}),
    "names beyond 100 bytes, by prefix": Row([tar([f(HALF)], USTAR)], {HALF: "f 644 0:0 x"}),
    "names of 255 bytes": Row([[f("n" * 255)]], {"n" * 255: "f 644 0:0 x"}),
    "names of 256 bytes": Row([[f("n" * 256)]], refused="file name too long"),
    "names that are not UTF-8": Row([tar([f("a\udcff")], GNU)], {"a\udcff": "f 644 0:0 x"}),
    "names with a newline, a tab, a backslash": Row([[f("a\n\t\\b")]], {"a\n\t\\b": "f 644 0:0 x"}),
    "names with a colon and a comma": Row([[f("a:b,c")]], {"a:b,c": "f 644 0:0 x"}),
    "zeros and noise after the end": Row(
        [tar([f("a")]) + bytes(1 << 16) + b"noise"], {"a": "f 644 0:0 x"}
    ),
    "no end at all": Row([tar([f("a")])[:1024]], {"a": "f 644 0:0 x"}),
    "an empty layer": Row([[], [f("a")], []], {"a": "f 644 0:0 x"}),
    "a layer of no bytes": Row([b"", [f("a")]], {"a": "f 644 0:0 x"}),
    "the same layer twice": Row(
        [[f("a", b"1")], [f("a", b"2")], [f("a", b"1")]], {"a": "f 644 0:0 1"}
    ),
    # As with Docker, whose decoder knows the newer form only.
    "a sparse file, in GNU's old form": Row([sparse()], refused="unhandled tar header type 83"),
    "a sparse file, in the form of PAX": Row(
        [pax_sparse()], {"hole": "f 644 0:0 " + "\0" * 8 + "end"}
    ),
    # -- between layers
    "a whiteout": Row([[f("a"), f("b")], [f(".wh.a", b"")]], {"a": "-", "b": "f 644 0:0 x"}),
    "a whiteout of nothing": Row([[f("b")], [f(".wh.a", b"")]], {"a": "-", "b": "f 644 0:0 x"}),
    "a whiteout in a directory that is nowhere": Row(
        [[f("b")], [f("c/.wh.a", b"")]], {"c/a": "-", "b": "f 644 0:0 x"}
    ),
    "a whiteout of a directory": Row([[f("a/b")], [f(".wh.a", b"")]], {"a": "-"}),
    "a whiteout, and the name again in the layer": Row(
        [[f("a/b")], [f(".wh.a", b""), d("a"), f("a/c")]], {"a/b": "-", "a/c": "f 644 0:0 x"}
    ),
    # The specification asks for whiteouts first; containerd obeys what comes last.
    "the name again, and a whiteout after it": Row(
        [[f("a", b"1")], [f("a", b"2"), f(".wh.a", b"")]], {"a": "-"}
    ),
    "a whiteout in the lowest layer": Row([[f("b"), f(".wh.a", b"")]], {"a": "-", ".wh.a": "-"}),
    "an opaque directory": Row(
        [[f("a/b")], [d("a"), f("a/.wh..wh..opq", b""), f("a/c")]],
        {"a/b": "-", "a/c": "f 644 0:0 x", "a?list": "c"},
    ),
    "an opaque mark after the directory's files": Row(
        [[f("a/b")], [d("a"), f("a/c"), f("a/.wh..wh..opq", b"")]],
        {"a/b": "-", "a/c": "f 644 0:0 x"},
    ),
    "an opaque root": Row(
        [[f("a"), f("d/b")], [f(".wh..wh..opq", b""), f("c")]],
        {"a": "-", "d": "-", "c": "f 644 0:0 x"},
    ),
    "an opaque directory within an opaque one": Row(
        [
            [f("a/b/c"), f("a/d")],
            [f("a/.wh..wh..opq", b""), f("a/b/.wh..wh..opq", b""), f("a/b/e")],
        ],
        {"a/b/c": "-", "a/d": "-", "a/b/e": "f 644 0:0 x"},
    ),
    "marks of AUFS": Row([[f("a"), d(".wh..wh.plnk"), f(".wh..wh.aufs", b"")]], {"?list": "a"}),
    "a directory in place of a file": Row([[f("a")], [d("a"), f("a/b")]], {"a/b": "f 644 0:0 x"}),
    "a file in place of a directory": Row([[f("a/b")], [f("a")]], {"a": "f 644 0:0 x"}),
    "a link in place of a directory": Row(
        [[f("a/b"), f("c/d")], [ln("a", "c")]], {"a": "l c", "a/d": "f 644 0:0 x", "a/b": "-"}
    ),
    "a directory in place of a link": Row(
        [[d("c"), f("c/d"), ln("a", "c")], [d("a"), f("a/b")]],
        {"a": "d 755 0:0", "a/b": "f 644 0:0 x", "c/d": "f 644 0:0 x", "c/b": "-"},
    ),
    "files below a link of a lower layer": Row(
        [[d("usr"), d("usr/lib"), ln("lib", "usr/lib")], [f("lib/x")]],
        {"lib": "l usr/lib", "usr/lib/x": "f 644 0:0 x"},
    ),
    "130 layers": Row([[f("n", b"%d" % n)] for n in range(130)], {"n": "f 644 0:0 129"}),
    "a directory's other mode": Row(
        [[d("a"), f("a/b")], [d("a", 0o711)]], {"a": "d 711 0:0", "a/b": "f 644 0:0 x"}
    ),
    "a hard link in a layer": Row([[f("a"), hard("b", "a")]], {"b": "f 644 0:0 x", "a?links": "2"}),
    "a hard link by an absolute name": Row([[f("a"), hard("b", "/a")]], {"b": "f 644 0:0 x"}),
    "a hard link to a file of a lower layer": Row(
        [[f("a/b")], [hard("c", "a/b")]], {"c": "f 644 0:0 x", "a/b": "f 644 0:0 x"}
    ),
    "a hard link to a symbolic one": Row([[f("a"), ln("b", "a"), hard("c", "b")]], {"c": "l a"}),
    "a hard link to nothing": Row([[hard("b", "a")]], refused="no such file"),
    "a hard link out of the root": Row(
        [[hard("b", "../../../../etc/passwd")]], refused="no such file"
    ),
    # -- links
    "absolute links": Row([[f("a"), ln("b", "/a")]], {"b": "l /a"}),
    "links that lead out": Row([[ln("b", "../../../etc/passwd")]], {"b": "l ../../../etc/passwd"}),
    "links to nothing": Row([[ln("b", "nowhere")]], {"b": "l nowhere"}),
    "links to themselves": Row([[ln("b", "b")]], {"b": "l b"}),
    "a link of 4095 bytes": Row([[ln("b", "n/" * 2047)]], {"b": "l " + "n/" * 2047}),
    "files through an absolute link": Row(
        [[d("c"), ln("a", "/c"), f("a/b")]], {"c/b": "f 644 0:0 x"}
    ),
    "files through a link that leads out": Row(
        [[ln("a", "../../../../tmp"), f("a/b")]], {"a": "l ../../../../tmp", "tmp/b": "f 644 0:0 x"}
    ),
    # -- modes, owners, times
    "setuid, setgid and sticky": Row(
        [[f("u", mode=0o4755), f("g", mode=0o2755), d("t", 0o1777), d("s", 0o2775)]],
        {"u": "f 4755 0:0 x", "g": "f 2755 0:0 x", "t": "d 1777 0:0", "s": "d 2775 0:0"},
    ),
    "setuid of another owner": Row([[f("u", mode=0o4755, owner=(5, 6))]], {"u": "f 4755 5:6 x"}),
    "owners up to 65535": Row([[f("a", owner=(65535, 65534))]], {"a": "f 644 65535:65534 x"}),
    "an owner of a link": Row([[Item("a", kind=LINK, to="b", owner=(7, 7))]], {"a": "l b"}),
    "mode 0": Row([[f("a", mode=0), d("b", 0)]], {"a": "f 0 0:0 x", "b": "d 0 0:0"}),
    # The root is the writable layer's, as with Docker: always 0755 and root's.
    "a root directory of another mode and owner": Row(
        [[d("./", 0o711, owner=(9, 9)), f("a")]], {"": "d 755 0:0", "a": "f 644 0:0 x"}
    ),
    # Docker clamps times before 1970 as well.
    "times before 1970 and after 2038": Row(
        [[f("a", mtime=BEFORE_1970), f("b", mtime=AFTER_2038), f("c", mtime=1.5)]],
        {"a?mtime": "0", "b?mtime": str(AFTER_2038), "c?mtime": "1"},
    ),
    # Nobody makes devices in a user namespace: left out, as by rootless Docker and podman. What a
    # function needs of /dev the runtime gives it.
    # -- devices and pipes
    "devices": Row(
        [
            [
                d("dev"),
                Item("dev/null", kind=CHAR, device=(1, 3)),
                Item("loop", kind=BLOCK, device=(7, 0)),
                f("a"),
            ]
        ],
        {"dev/null": "-", "loop": "-", "a": "f 644 0:0 x"},
    ),
    "a device of 0:0": Row(
        [[Item("z", kind=CHAR, device=(0, 0)), f("a")]], {"z": "-", "a": "f 644 0:0 x"}
    ),
    "a device over a file of a lower layer": Row(
        [[f("a")], [Item("a", kind=CHAR, device=(1, 3))]], {"a": "f 644 0:0 x"}
    ),
    "a hard link to a device": Row(
        [[Item("n", kind=CHAR, device=(1, 3)), hard("m", "n"), f("a")]],
        refused="no such file or directory",
    ),
    "pipes": Row([[Item("p", kind=FIFO, mode=0o622)]], {"p": "p 622 0:0"}),
    # -- extended attributes
    "xattrs of users": Row([[f("a", xattrs={"user.k": b"v"})]], {"a?user.k": b"v".hex()}),
    "xattrs of users on a directory": Row(
        [[d("a", xattrs={"user.k": b"v"})]], {"a?user.k": b"v".hex()}
    ),
    "xattrs of users on a link": Row(
        [[Item("a", kind=LINK, to="b", xattrs={"user.k": b"v"})]], {"a": "l b"}
    ),
    "xattrs of users on a read-only file": Row(
        [[f("a", mode=0o444, owner=(5, 5), xattrs={"user.k": b"v"})]], {"a?user.k": b"v".hex()}
    ),
    "a capability of a file": Row(
        [[f("a", xattrs={"security.capability": CAPABILITY})]],
        {"a?security.capability": CAPABILITY.hex()},
    ),
    "a label of SELinux": Row(
        [[f("a", xattrs={"security.selinux": b"system_u:object_r:bin_t:s0\0"})]],
        {"a": "f 644 0:0 x"},
    ),
    "a signature of IMA": Row([[f("a", xattrs={"security.ima": b"\1\2"})]], refused="security.ima"),
    "trusted attributes": Row([[f("a", xattrs={"trusted.k": b"v"})]], {"a": "f 644 0:0 x"}),
    "opaque marks of overlay itself": Row(
        [[f("a/b")], [d("a", xattrs={"trusted.overlay.opaque": b"y"}), f("a/c")]],
        {"a/b": "f 644 0:0 x", "a/c": "f 644 0:0 x"},
    ),
    "marks of overlay in a user namespace": Row(
        [[f("a/b")], [d("a", xattrs={"user.overlay.opaque": b"y"}), f("a/c")]],
        {"a/c": "f 644 0:0 x"},
    ),
    "an access list": Row(
        [[f("a", xattrs={"system.posix_acl_access": ACL})]], {"a": "f 644 0:0 x"}
    ),
    "an attribute of no known kind": Row(
        [[f("a", xattrs={"weird.k": b"v"})]], {"a": "f 644 0:0 x"}
    ),
    "an attribute of 70 kB": Row(
        [[f("a", xattrs={"user.k": bytes(70000)})]], refused="argument list too long"
    ),
    # -- where the runtime mounts
    "files where the runtime mounts": Row(
        [[f("proc/x"), f("sys/x"), f("dev/x"), f("etc/hosts")]], {"etc/hosts": "f 644 0:0 x"}
    ),
    "a link in the place of /proc": Row([[ln("proc", "/etc"), d("etc")]], {"proc": "l /etc"}),
}


def told(root: Path, path: str) -> str:
    """Say what is at a path: kind, mode, owner and content, link or device."""
    at = os.path.join(os.fsencode(root), os.fsencode(path))
    try:
        found = os.lstat(at)
    except (FileNotFoundError, NotADirectoryError):
        return "-"
    mode = found.st_mode
    head = f"{stat.S_IMODE(mode):o} {found.st_uid}:{found.st_gid}"
    if stat.S_ISLNK(mode):
        return f"l {os.fsdecode(os.readlink(at))}"
    if stat.S_ISDIR(mode):
        return f"d {head}"
    if stat.S_ISREG(mode):
        with open(at, "rb") as file:
            return f"f {head} {file.read(64).decode('latin-1')}"
    kind = {stat.S_IFCHR: "c", stat.S_IFBLK: "b", stat.S_IFIFO: "p"}.get(stat.S_IFMT(mode), "?")
    return f"{kind} {head}"


async def rows(ct: Containerd, place: Place) -> Any:
    """Import, look, remove."""
    return {name: await one(ct, place, row) for name, row in ROWS.items()}


async def one(ct: Containerd, place: Place, row: Row) -> Any:
    work = place.dir / "odd"
    layers = [oci.Layer(each if isinstance(each, bytes) else tar(each)) for each in row.layers]
    for name in ("archives", "root", "top"):
        (work / name).mkdir(parents=True, exist_ok=True)
    path = work / "archives/a.tar"
    oci.write_archive(path, layers, name="odd:1")
    try:
        (image,) = await ct.importer.load(path, scratch=path.parent, deadline=soon())
    except AgentError as failure:
        return {"refused": f"{type(failure).__name__}: {failure.message}"}
    lowers = [Path(each) for each in await ct.snapshots.image_layers(image.chain_id)]
    mounts.tmpfs(work / "top", 1 << 20, 1000)
    try:
        for name in ("upper", "work"):
            (work / "top" / name).mkdir()
        mounts.overlay(work / "root", lowers, work / "top/upper", work / "top/work")
        seen = {path: look(work / "root", path) for path in row.seen}
    finally:
        mounts.detach(work / "root")
        mounts.detach(work / "top")
    await ct.snapshots.remove(view_key(image.chain_id))
    await ct.images.delete(image.name, sync=True)
    return {"seen": seen}


def look(root: Path, asked: str) -> str:
    """Say what is at a path; `path?mtime`, `?links`, `?list`, `?xattr` ask something else of it."""
    path, at, what = asked.partition("?")
    if not at:
        return told(root, path)
    full = root / path
    if what == "mtime":
        return str(int(full.lstat().st_mtime))
    if what == "links":
        return str(full.lstat().st_nlink)
    if what == "list":
        return " ".join(sorted(os.listdir(full)))
    try:
        return os.getxattr(full, what).hex()
    except OSError as error:
        return os.strerror(error.errno or 0)


if __name__ == "__main__":
    main(rows)
