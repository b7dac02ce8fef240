"""Which images are in use for the moment, by deploys, pulls and removals, and when each last was.

Names and layers only; which digests versions run is the catalog's to know. What was used when is
kept on disk by `agent/node/image_collector.py`, now and then: nothing is written here.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.core.pulling import ImagePull, PullsUnderWay
from agent.errors import FailedPrecondition

if TYPE_CHECKING:
    from agent.instances.instance import Instance
    from agent.model.failure import Failure


@dataclass(slots=True)
class PullTotals:
    """All pulls of this worker that have fetched something, together."""

    pulls: int = 0
    seconds: float = 0.0
    fetched_bytes: int = 0
    cached_bytes: int = 0

    def add(self, pull: ImagePull) -> None:
        """Count one, unless others fetched all of it."""
        if not pull.fetched_bytes:
            return
        self.pulls += 1
        self.seconds += pull.seconds
        self.fetched_bytes += pull.fetched_bytes
        self.cached_bytes += pull.cached_bytes


class ImageUse:
    """Which images' names deploys and pulls under way rely on, and which are being removed."""

    def __init__(self) -> None:
        self._deploys: Counter[str] = Counter()
        self._layers: dict[str, set[str]] = {}
        self._removals: set[str] = set()
        self._passing: set[str] = set()
        self.last_ns: dict[str, int] = {}
        """When each digest was last deployed, started or brought here, ns since the epoch."""
        self.changed = False
        """Whether `last_ns` says something new since who keeps it looked."""
        self.pulls: dict[str, ImagePull] = {}
        """How images came that a deploy has brought here just now, by digest; taken by it."""
        self._came: dict[str, str] = {}
        self.totals = PullTotals()
        self.under_way = PullsUnderWay()
        self.released = asyncio.Event()
        """Set when a function was removed: layers that only it needed may go."""

    def __repr__(self) -> str:
        return f"<ImageUse deploys={dict(self._deploys)} removals={sorted(self._removals)}>"

    @contextlib.contextmanager
    def deploying(self, name: str) -> Iterator[None]:
        """Keep a name while a deploy or pull relies on it.

        Raises FailedPrecondition if it is being removed.
        """
        if name in self._removals:
            raise FailedPrecondition(f"image {name} is being removed; try again")
        self._deploys[name] += 1
        self._passing.discard(name)
        try:
            yield
        finally:
            self._deploys[name] -= 1
            if not self._deploys[name]:
                del self._deploys[name]
                self._layers.pop(name, None)
                self._forget_pull(name)

    def hold(self, name: str, chain_id: str) -> None:
        """Keep layers as long as a deploy relies on their name, whatever that stands for then."""
        if name in self._deploys:
            self._layers.setdefault(name, set()).add(chain_id)

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

    @contextlib.contextmanager
    def passing(self, name: str) -> Iterator[Callable[[], bool]]:
        """Have a name for a while; what it gives says whether no deploy has relied on it since."""
        if name not in self._deploys:
            self._passing.add(name)
        try:
            yield lambda: name in self._passing
        finally:
            self._passing.discard(name)

    def relies_on(self, name: str) -> bool:
        """Say whether a deploy or pull under way relies on a name."""
        return name in self._deploys

    @property
    def layers(self) -> frozenset[str]:
        """The chain ids that deploys under way hold."""
        return frozenset().union(*self._layers.values())

    # -- how they came

    def came(self, name: str, digest: str, pull: ImagePull) -> None:
        """Note how an image came, for as long as a deploy relies on its name."""
        self.totals.add(pull)
        if name not in self._deploys:
            return
        self._came[name] = digest
        if pull.fetched_bytes or digest not in self.pulls:
            self.pulls[digest] = pull

    def _forget_pull(self, name: str) -> None:
        digest = self._came.pop(name, "")
        if digest not in self._came.values():
            self.pulls.pop(digest, None)

    # -- when each was last used

    def touch(self, digest: str) -> None:
        """Note that an image is used now."""
        self.last_ns[digest] = time.time_ns()
        self.changed = True

    def instance_ready(self, instance: Instance) -> None:
        """Note that an instance of an image serves."""
        if instance.version.image is not None:
            self.touch(instance.version.image.digest)

    def instance_ended(self, instance: Instance, failure: Failure | None) -> None:
        """Note that an image was in use until now."""
        self.instance_ready(instance)
