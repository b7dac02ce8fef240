"""The probe with further files and another start, deployed: images as strangers make them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tests import strangers
from tests.integration.functions import HOST, Functions, archives
from tests.strangers import Base, Entry


@cache
def probe() -> Base:
    """The probe's image."""
    return Base.read(archives()[f"{HOST}/probe:1"])


@cache
def python() -> bytes:
    """The probe's Python interpreter, whatever its version is."""
    return probe().file(r"bin/python3\.\d+")


class Strangers:
    """Imports and deploys variants of the probe, or of another image."""

    def __init__(self, functions: Functions, place: Path) -> None:
        self._functions = functions
        self._place = place

    def deploy(
        self,
        name: str,
        entries: Sequence[Entry] = (),
        config: Mapping[str, Any] | None = None,
        base: Base | None = None,
        **spec: Any,
    ) -> str:
        """Deploy an image with these files and this configuration as `name`; return `name`."""
        ref = f"{HOST}/{name}:1"
        archive = self._place / f"{name}.tar"
        strangers.write(archive, ref, base or probe(), entries, config)
        self._functions.import_image(archive)
        self._functions.deploy(name, ref, **spec)
        return name
