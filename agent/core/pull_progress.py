"""How far the pull of one image has come, out of what is heard of its blobs.

Pure: sizes of the blobs come from the manifest, steps from whoever fetches, the time from the
caller. A pull that shares blobs with what is here starts with those done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Phase = Literal["resolving", "downloading", "unpacking", "done"]

# What is not known after this share of a pull is guessed from too little.
MIN_ELAPSED_S = 0.5


@dataclass(frozen=True, slots=True)
class PullState:
    """Bytes are compressed ones; `eta_s` is None while it cannot be told."""

    phase: Phase
    done_bytes: int
    total_bytes: int
    layers_done: int
    layers: int
    eta_s: float | None = None


class PullProgress:
    """The blobs of one image, by digest, and how much of each is here."""

    def __init__(self, sizes: Mapping[str, int], layers: int, began_s: float) -> None:
        """`sizes` are all blobs in bytes; the last `layers` of them are the layers."""
        self._sizes = dict(sizes)
        self._layers = tuple(self._sizes)[-layers:] if layers else ()
        self._done = dict.fromkeys(self._sizes, 0)
        self._began_s = began_s
        self._found = 0  # bytes that were here before the first was fetched
        self._fetching = False

    def blob(self, digest: str, done_bytes: int, *, complete: bool) -> bool:
        """Take in a step of one blob; False for one that is not of this image."""
        size = self._sizes.get(digest)
        if size is None:
            return False
        done = size if complete else min(done_bytes, size)
        if complete and not self._fetching:
            self._found += done - self._done[digest]
        elif 0 < done < size:
            self._fetching = True
        self._done[digest] = max(done, self._done[digest])
        return True

    def state(self, now_s: float) -> PullState:
        """Return how far it is; the time left is that of the bytes left at the pace so far."""
        done, total = sum(self._done.values()), sum(self._sizes.values())
        complete = [d for d in self._layers if self._done[d] == self._sizes[d]]
        phase: Phase = "unpacking" if done >= total else "downloading"
        elapsed_s, fetched = now_s - self._began_s, done - self._found
        eta_s = None
        if fetched > 0 and elapsed_s >= MIN_ELAPSED_S and phase == "downloading":
            eta_s = (total - done) * elapsed_s / fetched
        return PullState(phase, done, total, len(complete), len(self._layers), eta_s)
