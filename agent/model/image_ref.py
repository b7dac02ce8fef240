"""Image references: `[host[:port]/]path[:tag][@sha256:digest]`, the only parser of them.

Grammar and completion are those of the reference implementation, distribution/reference. Stricter
in what that leaves to the connection (a port is 1 to 65535, brackets hold an IPv6 address); digests
are sha256, the one algorithm that is checked here. Text only; `agent/containerd` asks registries
and the content store.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv6Address

DEFAULT_HOST = "docker.io"
DEFAULT_TAG = "latest"
# What docker.io was called once; both are one registry.
OLD_DEFAULT_HOST = "index.docker.io"
MAX_PATH_CHARS = 255
# A host name of 255, its port, the longest path, tag and digest, and some.
MAX_REF_CHARS = 1024

_WORD = r"[a-z0-9]+"
_PATH = re.compile(rf"{_WORD}(?:(?:[/._]|__|-+){_WORD})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_HOST = re.compile(
    rf"(?:{_LABEL}(?:\.{_LABEL})*|\[(?P<ipv6>[0-9A-Fa-f:]+)\])(?::(?P<port>[0-9]{{1,5}}))?"
)
_HEX_64 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ImageRef:
    """A reference taken apart and completed; `tag` and `digest` are empty when not given."""

    host: str
    path: str
    tag: str
    digest: str

    @property
    def name(self) -> str:
        """Host and path."""
        return f"{self.host}/{self.path}"

    @property
    def full(self) -> str:
        """The reference as images are recorded: host always, `latest` when nothing is said."""
        tag = self.tag or ("" if self.digest else DEFAULT_TAG)
        return self.name + (f":{tag}" if tag else "") + (f"@{self.digest}" if self.digest else "")

    @property
    def version(self) -> str:
        """What a registry is asked for: the digest, else the tag."""
        return self.digest or self.tag or DEFAULT_TAG

    def __str__(self) -> str:
        return self.full


def parse_image_ref(text: str) -> ImageRef:
    """Take a reference apart; a name without a host is Docker Hub's, as everywhere.

    Raises ValueError naming the mistake.
    """
    why = _refused_whole(text)
    if why:
        raise _wrong(text, why)
    rest, at, digest = text.partition("@")
    host, path = _split_host(rest)
    path, colon, tag = path.partition(":")
    if host == DEFAULT_HOST and "/" not in path:
        path = f"library/{path}"
    if at and (why := _refused_digest(digest)):
        raise _wrong(text, why)
    if not _is_host(host):
        raise _wrong(text, f"{host[:80]!r} is no host with an optional port")
    if why := _refused_path(path):
        raise _wrong(text, why)
    if colon and not _TAG.fullmatch(tag):
        raise _wrong(text, "a tag is up to 128 letters, digits and . _ -")
    return ImageRef(host, path, tag, digest)


def _split_host(rest: str) -> tuple[str, str]:
    """Tell a host from the first part of a path: by a dot, colon or capital, or as localhost."""
    first, slash, remainder = rest.partition("/")
    marked = "." in first or ":" in first or first != first.lower() or first == "localhost"
    if not slash or not marked:
        return DEFAULT_HOST, rest
    return (DEFAULT_HOST if first == OLD_DEFAULT_HOST else first), remainder


def _is_host(host: str) -> bool:
    match = _HOST.fullmatch(host)
    if match is None:
        return False
    try:
        if match["ipv6"]:
            IPv6Address(match["ipv6"])
    except ValueError:
        return False
    return not match["port"] or 1 <= int(match["port"]) <= 65535


def _refused_whole(text: str) -> str:
    if not text:
        return "it is empty"
    if len(text) > MAX_REF_CHARS:
        return f"it has more than {MAX_REF_CHARS} characters"
    if _HEX_64.fullmatch(text):
        return "64 hex digits are an image's id; name its repository"
    return ""


def _refused_digest(digest: str) -> str:
    algorithm, _, value = digest.partition(":")
    if algorithm != "sha256":
        return "the part after @ must be sha256: and 64 hex digits"
    if not _HEX_64.fullmatch(value):
        return "a sha256 digest has 64 hex digits, in lower case"
    return ""


def _refused_path(path: str) -> str:
    if len(path) > MAX_PATH_CHARS:
        return f"a repository has at most {MAX_PATH_CHARS} characters"
    if not _PATH.fullmatch(path):
        return "a repository is in lower case: letters and digits, . _ __ or - between, slashes"
    return ""


def _wrong(text: str, why: str) -> ValueError:
    return ValueError(f"{text[:300]!r} is not an image reference: {why}")
