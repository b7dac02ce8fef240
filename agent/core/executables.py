"""What the first bytes of a file say about executing it: script, program, or neither, and why.

Follows binfmt_script(5) and elf(5) as fs/binfmt_script.c and fs/binfmt_elf.c have them. Pure: the
bytes come in, words come out; the files are `agent/sandbox/diagnosis.py`'s.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

HEADER_BYTES = 1 << 20  # a loader's name stands near the start but where a tool has moved it
SCRIPT_BYTES = 256  # BINPRM_BUF_SIZE: all that the kernel reads of a first line
MAX_SEGMENTS = 128
FORMAT = "exec format error"
NOT_EXECUTED = (126, 127)
"""What the init ends with when there is nothing to execute, as shells do."""
FIRST_NOT_EXECUTED = (1, 126, 127, 255)
"""What runtimes end with, whose exec comes last; crun with 1."""

_MACHINES = {
    2: "sparc",
    8: "mips",
    20: "ppc",
    21: "ppc64le",
    22: "s390x",
    40: "arm",
    183: "arm64 (aarch64)",
    243: "riscv64",
    258: "loong64",
}
_X86_64, _X86 = 62, 3
_EXECUTABLE, _SHARED = 2, 3  # e_type
_INTERPRETER = 3  # p_type PT_INTERP
_OTHERS = (
    (b"MZ", "is a program for Windows"),
    (b"\xcf\xfa\xed\xfe", "is a program for macOS"),
    (b"\xca\xfe\xba\xbe", "is a Java class or a program for macOS"),
    (b"PK\x03\x04", "is a zip or jar file: run it with what reads it, such as java -jar"),
    (b"\x1f\x8b", "is compressed"),
    (b"\xef\xbb\xbf#!", "has a byte order mark before its #!: save it without one"),
    (b"\xff\xfe", "is text in UTF-16: save it as UTF-8 without a byte order mark"),
)
_TEXT = re.compile(rb"[\t\n\r\x0c\x1b -~\x80-\xff]*")


@dataclass(frozen=True, slots=True)
class Script:
    """A first line that names an interpreter.

    `windows` says that a carriage return ends it, which belongs to its last word then; `fault`
    is why the kernel takes no interpreter from it.
    """

    line: str
    interpreter: str = ""
    argument: str = ""
    windows: bool = False
    fault: str = ""


def script(head: bytes) -> Script | None:
    """Read a script's first line; None when the file does not begin with #!."""
    if not head.startswith(b"#!"):
        return None
    line, newline, _ = head[2:SCRIPT_BYTES].partition(b"\n")
    shown = line.decode("utf-8", "replace").strip()
    words = line.split(b"\0")[0].strip(b" \t")
    interpreter, argument = (*re.split(rb"[ \t]+", words, maxsplit=1), b"")[:2]
    if not words.strip():
        return Script(shown, fault=f"it names no interpreter ({FORMAT})")
    if not newline and len(head) > SCRIPT_BYTES and not argument:
        return Script(shown, fault=f"the line is longer than {SCRIPT_BYTES} bytes ({FORMAT})")
    return Script(
        shown,
        interpreter.decode("utf-8", "surrogateescape"),
        argument.decode("utf-8", "surrogateescape"),
        windows=words.endswith(b"\r"),
    )


def foreign(head: bytes) -> str:
    """Say why Linux on this machine cannot run the file; "" when nothing speaks against it."""
    if not head:
        return f"is empty ({FORMAT})"
    if head.startswith(b"\x7fELF"):
        return _foreign_elf(head)
    for magic, words in _OTHERS:
        if head.startswith(magic):
            return f"{words} ({FORMAT})"
    if _TEXT.fullmatch(head):
        return f"is text without a first line such as #!/bin/sh ({FORMAT})"
    return f"is no program that Linux knows ({FORMAT})"


def _foreign_elf(head: bytes) -> str:
    if len(head) < 52:
        return f"is a program cut short ({FORMAT})"
    order = ">" if head[5] == 2 else "<"
    kind, machine = struct.unpack_from(f"{order}HH", head, 16)
    if machine not in (_X86_64, _X86):
        name = _MACHINES.get(machine, f"machine {machine}")
        return f"is a program for {name}: this node needs linux/amd64 ({FORMAT})"
    if kind not in (_EXECUTABLE, _SHARED):
        return f"is an object file, not a linked program ({FORMAT})"
    return ""


def loader(head: bytes) -> str:
    """Return the loader an ELF program asks for (PT_INTERP); "" for none, or one not in `head`."""
    wide = head[4:5] == b"\x02"
    if len(head) < (64 if wide else 52) or not head.startswith(b"\x7fELF") or head[5] != 1:
        return ""
    table = struct.unpack_from("<Q", head, 32)[0] if wide else struct.unpack_from("<I", head, 28)[0]
    size, count = struct.unpack_from("<HH", head, 54 if wide else 42)
    for number in range(min(count, MAX_SEGMENTS)):
        at = table + number * size
        if at + (56 if wide else 32) > len(head):
            return ""
        if struct.unpack_from("<I", head, at)[0] != _INTERPRETER:
            continue
        if wide:
            offset, length = struct.unpack_from("<Q16xQ", head, at + 8)
        else:
            offset, length = struct.unpack_from("<I8xI", head, at + 4)
        name = head[offset : offset + length] if length <= 4096 else b""
        return name.rstrip(b"\0").decode("utf-8", "surrogateescape")
    return ""


def libc_of(name: str) -> str:
    """Return whose loader it is, in words that help to choose another base image."""
    if "ld-musl" in name:
        return "musl, as in Alpine"
    if "ld-linux" in name:
        return "glibc, as in Debian"
    return ""
