"""Which images' names are in use for the moment: by deploys under way, and by removals.

Names only; which digests versions run is the catalog's to know.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

from agent.errors import FailedPrecondition


class ImageUse:
    """Which images' names deploys under way rely on, and which are being removed."""

    def __init__(self) -> None:
        self._deploys: Counter[str] = Counter()
        self._removals: set[str] = set()

    def __repr__(self) -> str:
        return f"<ImageUse deploys={dict(self._deploys)} removals={sorted(self._removals)}>"

    @contextlib.contextmanager
    def deploying(self, name: str) -> Iterator[None]:
        """Keep a name while a deploy relies on it; raises FailedPrecondition if it is removed."""
        if name in self._removals:
            raise FailedPrecondition(f"image {name} is being removed; try again")
        self._deploys[name] += 1
        try:
            yield
        finally:
            self._deploys[name] -= 1
            if not self._deploys[name]:
                del self._deploys[name]

    @contextlib.contextmanager
    def removing(self, name: str, *, deploys: int = 0) -> Iterator[None]:
        """Keep deploys away while a name is removed.

        Raises FailedPrecondition when it is removed already, or more than `deploys` rely on it.
        """
        if name in self._removals:
            raise FailedPrecondition(f"image {name} is being removed already")
        if self._deploys[name] > deploys:
            raise FailedPrecondition(f"image {name} is being deployed; try again")
        self._removals.add(name)
        try:
            yield
        finally:
            self._removals.discard(name)
