"""What containerd's unpacker says of a layer it cannot unpack, in words that help.

It gives no code for these, only Go's wrapped texts (containerd 2.1, pkg/archive/tar.go), with the
temporary directory it unpacks in. Here they become a file of the image, what is wrong with it, and
the way out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from agent.core.users import MAX_ID

# How the unpacker begins when the layers themselves are wrong.
BAD_LAYER = "failed to extract layer"
_BAD_LAYERS = (BAD_LAYER, "wrong diff id", "layers and diffIDs don't match")

# A text holds names of the image's choice, each up to a megabyte: how it begins and ends is enough.
HEAD_CHARS, TAIL_CHARS = 2000, 6000

_PLACE = re.compile(r"\S*/containerd-mount\d+/?")
_FRAME = re.compile(
    r'failed to extract layer \(\S+ (?P<layer>\S+)\) to \S+ as ".*?": '
    r"(?:mount callback failed on \S+: )?"
)
_OWNER = re.compile(
    r'failed to Lchown "(?P<file>.+?)" for UID (?P<uid>-?\d+), GID (?P<gid>-?\d+)', re.DOTALL
)
_ATTRIBUTE = re.compile(r'failed to setxattr "(?P<file>.+?)" for key "(?P<key>[^"]+)": (?P<why>.+)')
_CALL = re.compile(
    r"(?:open|mkdir|mkparent|mknod|symlink|link|lstat|chmod|chtimes|write|unlinkat|copy_file_range)"
    r" (?P<file>/.+?): (?P<why>[a-z ]+)$",
    re.DOTALL,
)
_FULL = ("no space left on device", "disk quota exceeded")
_BROKEN = (
    "unexpected EOF",
    "invalid tar header",
    "gzip: invalid",
    "igzip: Error",
    "invalid checksum",
    "zstd",
    "magic number mismatch",
)


@dataclass(frozen=True, slots=True)
class UnpackError:
    """Why a layer cannot be unpacked. `full` says it is the disk, `owner` that it is a file's."""

    text: str
    full: bool = False
    owner: bool = False


def unpack_error(text: str) -> UnpackError | None:
    """Return what an unpacker's text means, None for one that is not about layers."""
    if len(text) > HEAD_CHARS + TAIL_CHARS:
        text = f"{text[:HEAD_CHARS]}…{text[-TAIL_CHARS:]}"
    if any(words in text for words in _FULL):
        why = f"the disk of the image store is full{_at(text)}"
        return UnpackError(f"{why}; remove images (kindling image rm) or give it space", full=True)
    if not any(words in text for words in _BAD_LAYERS):
        return None
    if owner := _OWNER.search(text):
        file, uid, gid = _inside(owner["file"]), owner["uid"], owner["gid"]
        return UnpackError(
            f"{file} belongs to user {uid} and group {gid}, and a node has ids 0-{MAX_ID} only; "
            f"build the image with owners in that range (chown in the RUN that makes the file, "
            f"COPY --chown, npm with --unsafe-perm)",
            owner=True,
        )
    if attribute := _ATTRIBUTE.search(text):
        return UnpackError(
            f"{_inside(attribute['file'])} has the attribute {attribute['key']}, which cannot be "
            f"set here ({attribute['why']}); build the image without it"
        )
    if call := _CALL.search(text):
        return UnpackError(f"{_inside(call['file'])}: {call['why']}")
    rest = _FRAME.sub(r"layer \g<layer>: ", text).rstrip().replace(" (null)", "")
    rest = _printable(_PLACE.sub("/", rest))
    if any(words in text for words in _BROKEN):
        return UnpackError(f"a layer is damaged ({rest}); build or save it again")
    return UnpackError(rest)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _inside(path: str) -> str:
    """Return a file's path in the image, on one line and not longer than one."""
    printable = _printable(_PLACE.sub("/", path))
    return printable if len(printable) <= 200 else f"{printable[:120]}…{printable[-60:]}"


def _at(text: str) -> str:
    call = _CALL.search(text)
    return f" (at {_inside(call['file'])})" if call else ""
