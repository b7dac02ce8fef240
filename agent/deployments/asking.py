"""Who an image is fetched for: a function's spec, or a request to have it here before any deploy.

Credentials are kept under the asker's name, in memory only. An image that was asked for ahead is no
function's: nothing runs on it, so what is done for it in the background is given up at some time,
and taken up again by whoever deploys it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from agent.core.acceleration import Acceleration
from agent.model.spec import FunctionSpec, RegistrySpec, nothing_given, without_credentials


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
