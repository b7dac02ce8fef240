"""Image references: short names made full, and split into registry, repository, tag and digest.

The grammar is the distribution project's (`reference` in its documentation); a name without a
registry means docker.io, as everywhere. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address

from agent.errors import InvalidSpec, Problem

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"
MAX_NAME = 255

_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HOST = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?"
)


@dataclass(frozen=True, slots=True)
class Reference:
    """A full reference; at least one of `tag` and `digest` is set."""

    registry: str
    repository: str
    tag: str = ""
    digest: str = ""

    @property
    def locator(self) -> str:
        """Registry and repository."""
        return f"{self.registry}/{self.repository}"

    def __str__(self) -> str:
        """Return the name under which an image record is kept."""
        text = self.locator
        if self.tag:
            text += f":{self.tag}"
        if self.digest:
            text += f"@{self.digest}"
        return text

    @property
    def version(self) -> str:
        """What a registry is asked for: the digest, else the tag."""
        return self.digest or self.tag

    @property
    def plain_http(self) -> bool:
        """Whether the registry is spoken to without TLS: loopback with a port, and nothing else."""
        host, _, port = self.registry.rpartition(":")
        return bool(host) and port.isdigit() and port != "443" and _is_loopback(host.strip("[]"))


def parse(text: str) -> Reference:
    """Return the full reference for what a person wrote. Raises InvalidSpec naming the mistake."""
    rest, at, digest = text.strip().partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise _wrong(text, "the part after @ must be sha256: and 64 hex digits")
    first, slash, remainder = rest.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        registry, path = first, remainder
    else:
        registry, path = DEFAULT_REGISTRY, rest
    path, colon, tag = path.partition(":")
    if registry in (DEFAULT_REGISTRY, "index.docker.io"):
        registry = DEFAULT_REGISTRY
        path = path if "/" in path else f"library/{path}"
    if not _HOST.fullmatch(registry):
        raise _wrong(text, f"{registry!r} is no host name with an optional port")
    if len(path) > MAX_NAME or not _REPOSITORY.fullmatch(path):
        raise _wrong(text, "a repository is lower-case letters, digits and . _ - between slashes")
    if colon and not _TAG.fullmatch(tag):
        raise _wrong(text, "a tag is up to 128 letters, digits and . _ -")
    if not tag and not digest:
        tag = DEFAULT_TAG
    return Reference(registry, path, tag, digest)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _wrong(text: str, why: str) -> InvalidSpec:
    return InvalidSpec([Problem("image", f"{text[:300]!r} is not an image reference: {why}")])
