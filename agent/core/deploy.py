"""Versions: what a deploy makes of what is there already, and what a qualifier means.

A spec whose canonical form equals that of LATEST changes nothing. Any other becomes the next
version and LATEST moves to it. A version that is named explicitly keeps its content for good.
`agent/deployments/deploy.py` acts on the decision; `agent/model/spec.py` makes the digests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agent.errors import AlreadyExists, FailedPrecondition, NotFound

LATEST = "LATEST"
MAX_VERSIONS = 1000
"""Versions kept of one function; the next deploy asks for a removal first."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The version a deploy leads to; `changed` False means that there is nothing to do."""

    version: int
    changed: bool


def decide(
    existing: Mapping[int, str], latest: int | None, digest: str, explicit: int | None = None
) -> Decision:
    """Decide what a deploy does.

    `existing` holds the digests of the versions there are, `latest` where LATEST points (None for
    a new function), `explicit` the version the spec names. Raises AlreadyExists when that one has
    other content, FailedPrecondition when it is older than LATEST or the function has too many.
    """
    if explicit is not None and explicit in existing:
        if existing[explicit] == digest:
            return Decision(explicit, changed=False)
        raise AlreadyExists(
            f"version {explicit} exists with other content; leave version out to make the next one"
        )
    if explicit is None and latest is not None and existing.get(latest) == digest:
        return Decision(latest, changed=False)
    newest = max(existing, default=0)
    if explicit is not None and explicit <= newest:
        raise FailedPrecondition(
            f"version {explicit} is older than version {newest}, which exists; "
            f"name a number above {newest}, or leave version out"
        )
    if len(existing) >= MAX_VERSIONS:
        raise FailedPrecondition(f"the function has {MAX_VERSIONS} versions; remove it first")
    return Decision(newest + 1 if explicit is None else explicit, changed=True)


def parse_qualifier(text: str) -> int | None:
    """Return the version a qualifier names, None for LATEST (also when empty).

    Raises NotFound for anything else: there are no aliases here.
    """
    if text in ("", LATEST):
        return None
    if text.isascii() and text.isdecimal() and 0 < len(text) <= 10 and int(text) > 0:
        return int(text)
    raise NotFound(f"qualifier {text[:64]!r} is neither LATEST nor a version number")


def pick(name: str, existing: Mapping[int, object], latest: int | None, qualifier: str) -> int:
    """Return the version that a call means; raises NotFound naming what is there instead."""
    wanted = parse_qualifier(qualifier)
    version = latest if wanted is None else wanted
    if version is None or version not in existing:
        there = ", ".join(str(number) for number in sorted(existing)) or "none"
        raise NotFound(f"function {name} has no version {qualifier or LATEST}; there is: {there}")
    return version
