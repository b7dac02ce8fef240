"""What a pull took, and how much of it those who waited for it are told.

A start that waited counts its own wait: from the pull's begin, or from when it was asked for if
that was later, until the image could be mounted. What the registry sent is told by the first of
them only, so that sums over starts are true; a blob that several pulls under way want is told by
the one that ends first. Times are seconds of one steady clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from weakref import WeakSet


@dataclass(slots=True)
class ImagePull:
    """One pull of an image: when, and which bytes of its blobs came or were here before."""

    began: float
    ended: float
    fetched_bytes: int
    cached_bytes: int
    told: bool = False
    """Whether some start has said what was fetched."""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return max(0.0, self.ended - self.began)

    def waited_s(self, asked_at: float) -> float:
        """Return how long somebody waited for it who asked then; 0 when it was over by then."""
        return max(0.0, self.ended - max(self.began, asked_at))

    def fetched_for(self, waited_s: float) -> int:
        """Return what was fetched, once, to the first who waited."""
        if waited_s <= 0 or self.told:
            return 0
        self.told = True
        return self.fetched_bytes


def pull_of(
    blobs: Iterable[str],
    before: Mapping[str, int],
    after: Mapping[str, int],
    began: float,
    ended: float,
) -> ImagePull:
    """Return what a pull of these blobs took; `before` and `after` are the store's, in bytes.

    What is not there afterwards either is a layer that a lazy mount reads as it is used.
    """
    digests = set(blobs)
    cached = sum(before.get(digest, 0) for digest in digests)
    fetched = sum(after.get(digest, 0) for digest in digests - before.keys())
    return ImagePull(began, ended, fetched, cached)


class PullBegun:
    """What was here when a pull began, and what others have fetched since."""

    def __init__(self, before: Mapping[str, int], at: float) -> None:
        self.before = before
        self.at = at
        self.others: set[str] = set()


class PullsUnderWay:
    """The pulls that may fetch the same; one that fails is forgotten with its beginning."""

    def __init__(self) -> None:
        self._begun: WeakSet[PullBegun] = WeakSet()

    def __len__(self) -> int:
        return len(self._begun)

    def begin(self, before: Mapping[str, int], at: float) -> PullBegun:
        """Note that a pull begins; `before` are the store's blobs in bytes."""
        begun = PullBegun(before, at)
        self._begun.add(begun)
        return begun

    def end(
        self, begun: PullBegun, blobs: Iterable[str], after: Mapping[str, int], ended: float
    ) -> ImagePull | None:
        """Return what a pull took, None when all of it was here; what others fetched is here."""
        self._begun.discard(begun)
        came = {digest for digest in blobs if digest in after} - begun.before.keys()
        if not came:
            return None
        for other in self._begun:
            other.others |= came
        here = {digest: after[digest] for digest in came & begun.others}
        return pull_of(blobs, {**begun.before, **here}, after, begun.at, ended)
