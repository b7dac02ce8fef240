"""One caller's view of a pull: steps as they come, the image last.

The pull itself may be shared with others; leaving it in the middle leaves them at it.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Protocol

from agent.aio.tasks import spawn, stop
from agent.control.node import ImageStep
from agent.core.pull_progress import PullProgress
from agent.errors import AgentError

if TYPE_CHECKING:
    from agent.containerd.images import Image
    from agent.containerd.registry import Resolved
    from agent.containerd.silence import Progress

MAX_STEPS = 1000  # steps that their reader has not taken yet

# How containerd names the blobs of a pull, and what it calls those that are here.
_BLOB = re.compile(r"(?:manifest|config|layer)-(sha256:[0-9a-f]{64})")
_COMPLETE = frozenset({"complete", "extracted", "already exists"})


class Pull(Protocol):
    """What pulls: it tells what it found before it fetches, then how far it is."""

    def __call__(
        self, *, accept: Callable[[Resolved], None], progress: Callable[[Progress], None]
    ) -> Awaitable[Image]:
        """Pull; raises AgentError."""


class PullFollower:
    """Steps of one pull; `image` is set when they have ended."""

    def __init__(self, name: str, pull: Pull) -> None:
        self._name = name
        self._pull = pull
        # One place more than steps may take: the end must always find room.
        self._steps: asyncio.Queue[ImageStep | None] = asyncio.Queue(MAX_STEPS + 1)
        self._progress: PullProgress | None = None
        self.image: Image | None = None

    async def steps(self) -> AsyncIterator[ImageStep]:
        """Yield steps until the pull has ended; raises as it does."""
        yield ImageStep("resolving")
        work = spawn(f"pull {self._name}", self._work())
        work.add_done_callback(lambda _: self._steps.put_nowait(None))
        try:
            while (step := await self._steps.get()) is not None:
                yield step
            if (error := work.result()) is not None:
                raise error
        finally:
            await stop(work)

    async def _work(self) -> AgentError | None:
        try:
            self.image = await self._pull(accept=self._found, progress=self._told)
        except AgentError as error:  # the reader's to hear, not the log's
            return error
        return None

    def _found(self, found: Resolved) -> None:
        manifest = found.manifest
        blobs = (manifest.config, *manifest.layers)
        layers = {layer.digest for layer in manifest.layers}
        sizes = {blob.digest: blob.size_bytes for blob in blobs}
        self._progress = PullProgress(sizes, len(layers), time.monotonic())
        self._say("")

    def _told(self, step: Progress) -> None:
        blob = _BLOB.fullmatch(step.name)
        if blob is None or self._progress is None:
            return
        complete = step.event in _COMPLETE
        if self._progress.blob(blob[1], step.done_bytes, complete=complete):
            self._say(blob[1], step.done_bytes, step.total_bytes)

    def _say(self, blob: str, done_bytes: int = 0, total_bytes: int = 0) -> None:
        if self._progress is not None and self._steps.qsize() < MAX_STEPS:
            state = self._progress.state(time.monotonic())
            step = ImageStep(state.phase, blob, done_bytes, total_bytes, whole=state)
            self._steps.put_nowait(step)
