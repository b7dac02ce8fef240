"""Versions that were deployed before their image was here: Preparing, then Ready or Failed.

One background task each: it fetches the image as a deploy that waits does, checks the version, and
lets it run. Calls wait meanwhile, in their target's queue, or are refused (`wait_for_image`). A
version that follows one that serves becomes LATEST only now, so that nothing is cut off by an image
that is slow or does not come. A worker that ends leaves them to the next one, which begins again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from dataclasses import replace

from agent.aio.tasks import finish, spawn, stop
from agent.calls.target import FunctionTarget
from agent.deployments.catalog import Catalog
from agent.deployments.image import ImageSource
from agent.errors import AgentError, FailedPrecondition
from agent.model.image_ref import parse_image_ref
from agent.model.records import FunctionVersion
from agent.sandbox.builder import Builder
from agent.telemetry.events import Events, Subject

log = logging.getLogger(__name__)

STORE_S = 60.0
STORE_AGAIN_S = 5.0

Settle = Callable[[FunctionTarget, FunctionVersion], Coroutine[None, None, bool]]
"""Stores what became of a version and lets calls know; False when it was removed meanwhile."""


class Preparing:
    """All versions whose image is on its way."""

    def __init__(
        self,
        images: ImageSource,
        catalog: Catalog,
        builder: Builder,
        events: Events,
        settle: Settle,
    ) -> None:
        self._images = images
        self._catalog = catalog
        self._builder = builder
        self._events = events
        self._settle = settle
        self._running: dict[FunctionTarget, asyncio.Task[None]] = {}

    def begin(self, target: FunctionTarget) -> None:
        """Fetch a version's image, unless that is under way."""
        if target in self._running:
            return
        version = target.version
        held = contextlib.ExitStack()
        # From now until it is settled: nobody removes the name, or what was found under it.
        name = parse_image_ref(version.spec.image).full
        held.enter_context(self._catalog.image_use.deploying(name))
        task = spawn(f"prepare {version.name} {version.version}", self._prepare(target))
        self._running[target] = task
        task.add_done_callback(lambda _: self._ended(target, held))

    def _ended(self, target: FunctionTarget, held: contextlib.ExitStack) -> None:
        del self._running[target]
        held.close()

    async def end(self, target: FunctionTarget) -> None:
        """Fetch a version's image no more."""
        await stop(self._running.get(target))

    async def close(self) -> None:
        """Leave what is under way to the next worker."""
        await stop(*self._running.values())

    async def _prepare(self, target: FunctionTarget) -> None:
        version = target.version
        warnings: tuple[str, ...] = ()
        try:
            fetched = await self._images.fetch(version.spec)
            warnings = fetched.warnings
            outcome = replace(version, image=fetched.facts, state="Ready", reason="")
            await self._builder.check(outcome)
        except Exception as error:  # whoever waits for it must hear of any
            known = isinstance(error, AgentError)
            reason = error.message if isinstance(error, AgentError) else f"a bug: {error!r}"
            outcome = replace(version, state="Failed", reason=reason)
            text = f"{version.name} version {version.version}: {reason}"
            log.warning("%s", text, exc_info=not known)
        if await self._settled(target, outcome):
            self._tell(outcome, warnings)

    async def _settled(self, target: FunctionTarget, outcome: FunctionVersion) -> bool:
        """Store what became of it, however often that fails; False when that is nobody's matter.

        On a full disk a version would else stay Preparing with nobody at work on it.
        """
        name = outcome.name
        while True:
            try:
                settle = self._settle(target, outcome)
                settled = await finish(f"settle {name}", settle, within_s=STORE_S)
            except FailedPrecondition:  # this worker ends: the next one begins again
                return False
            except Exception as error:
                trace = not isinstance(error, AgentError)
                log.warning("%s is %s, not stored: %s", name, outcome.state, error, exc_info=trace)
                settled = None
            if settled is not None:
                return settled
            await asyncio.sleep(STORE_AGAIN_S)  # sleeps: what failed is not tried at once

    def _tell(self, version: FunctionVersion, warnings: tuple[str, ...]) -> None:
        subject = Subject(version.name, version.version)
        if version.state == "Ready":
            text = f"the image of {version.name} version {version.version} is here"
            details = {"warnings": " ".join(warnings)} if warnings else {}
            self._events.add("ImageReady", subject, text, details)
        else:
            self._events.add("ImageFailed", subject, version.reason)
