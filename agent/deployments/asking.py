"""Who an image is fetched for: a function's spec, or a request to have it here before any deploy.

Credentials are kept under the asker's name, in memory only. An image that was asked for ahead is no
function's: nothing runs on it, so what is done for it in the background is given up at some time,
and taken up again by whoever deploys it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Protocol

from agent.core.acceleration import Acceleration
from agent.model.records import ImageFacts
from agent.model.spec import FunctionSpec, RegistrySpec, nothing_given, without_credentials

MB = 1 << 20


class Asking(Protocol):
    """What a pull needs to know of who asks; a function's spec has it."""

    @property
    def name(self) -> str:
        """Whose credentials these are."""

    @property
    def registry(self) -> RegistrySpec:
        """What opens the registry."""

    @property
    def acceleration(self) -> Acceleration:
        """Which way was asked for."""


@dataclass(frozen=True, slots=True)
class Ahead:
    """A request for one image by its full name."""

    image: str
    registry: RegistrySpec
    acceleration: Acceleration = "lazy"

    @property
    def name(self) -> str:
        """No function can be called so."""
        return f"image {self.image}"


def bare(asking: Asking) -> Asking:
    """Return who asks without what was brought along: from then on the keyring's counts."""
    if isinstance(asking, Ahead):
        return replace(asking, registry=nothing_given(asking.registry))
    assert isinstance(asking, FunctionSpec)
    return without_credentials(asking)


@dataclass(slots=True)
class Completion:
    """One image on its way from mounted to unpacked; `askers` are those it is for, by name."""

    facts: ImageFacts
    askers: dict[str, Asking]
    done_bytes: int = 0
    total_bytes: int = 0
    task: asyncio.Task[None] | None = None

    @property
    def asker(self) -> Asking:
        """Whose credentials count: those of who asked last, a function's before all others."""
        askers = list(reversed(self.askers.values()))
        return next((one for one in askers if not isinstance(one, Ahead)), askers[0])

    def __str__(self) -> str:
        of = f"{self.done_bytes // MB} of {self.total_bytes // MB} MB"
        return f"{self.facts.ref}: {of}"
