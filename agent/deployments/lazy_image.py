"""Lazy images: mounted at their deploy, then completed, so that they outlive engine and registry.

A lazy engine mounts an image whose layers are still at the registry. That is a bridge: an ordinary
pull of the same digest follows in the background, and from its end on starts use the unpacked
layers. One that fails is tried again until it succeeds or no version needs the image. What was
mounted is let go when no instance needs it any more. Which way an image takes is
`core/acceleration.py`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING

from agent.aio import tasks
from agent.config import LazySettings
from agent.containerd.lazy import unmount
from agent.core.acceleration import WHOLE, Acceleration, advice, worth_asking
from agent.deployments.asking import Ahead, Asking, bare
from agent.deployments.completion import Completing, Completion
from agent.errors import AgentError, InvalidSpec, NotFound, RuntimeUnavailable
from agent.linux import mountinfo
from agent.model.image_ref import parse_image_ref
from agent.model.records import FunctionVersion, ImageFacts
from agent.model.spec import RegistrySpec
from agent.telemetry.events import Events, Subject

if TYPE_CHECKING:
    from agent.containerd.access import Access
    from agent.containerd.client import Containerd
    from agent.containerd.images import Image
    from agent.containerd.lazy import LazyEngine
    from agent.containerd.registry import Resolved
    from agent.containerd.silence import Progress
    from agent.deployments.image_use import ImageUse
    from agent.sandbox.prepared_images import PreparedImages

log = logging.getLogger(__name__)

MB = 1 << 20
LOCAL_HOST = "kindling.local"
ENGINE_S = 20.0
RESUME_S = 5.0  # all others wait for it
INDEX_S = 10.0
FIRST_PAUSE_S = 5.0
LONGEST_PAUSE_S = 60.0
AHEAD_TRIES = 10  # about seven minutes; nothing runs on it

Accept = Callable[["Resolved"], None]


class LazyImages:
    """Pulls by lazy engines, and what follows them."""

    def __init__(
        self,
        settings: LazySettings,
        containerd: Containerd,
        prepared: PreparedImages,
        events: Events,
        use: ImageUse,
    ) -> None:
        self._settings = settings
        self._door = containerd
        self._prepared = prepared
        self._events = events
        self._completing = Completing(containerd, events, use)
        self._completions: dict[str, Completion] = {}
        self._mounted: dict[str, ImageFacts] = {}
        """Images that are completed, and whose mounts are still there."""
        self._reluctant: set[str] = set()
        """Those of them that could not be let go, for the log to say so once."""
        self._renewed = asyncio.Event()
        """Set with the next change of credentials."""
        containerd.keyring.tell(self._credentials_changed)
        for engine in containerd.lazy:
            engine.credentials.tell = self._tell_credentials

    def __repr__(self) -> str:
        return f"<LazyImages {[str(one) for one in self._completions.values()]}>"

    # -- pulling

    async def pull(
        self,
        spec: Asking,
        name: str,
        *,
        deadline: float,
        accept: Accept,
        access: Access,
        progress: Callable[[Progress], None] | None = None,
    ) -> tuple[Image, tuple[str, ...]]:
        """Make an image ready the way that was asked for; return it, and what to warn of.

        A lazy mount that fails costs a warning: the image is then unpacked. Raises as
        `transfer.pull` does.
        """
        async with contextlib.AsyncExitStack() as stack:
            for engine in self._door.lazy:  # one that nothing needs is ended at times
                await stack.enter_async_context(engine.in_use())
            return await self._pull(
                spec, name, deadline=deadline, accept=accept, access=access, progress=progress
            )

    async def _pull(
        self,
        spec: Asking,
        name: str,
        *,
        deadline: float,
        accept: Accept,
        access: Access,
        progress: Callable[[Progress], None] | None,
    ) -> tuple[Image, tuple[str, ...]]:
        chosen: LazyEngine | None = None
        warnings: list[str] = []

        async def choose(found: Resolved) -> str:
            nonlocal chosen
            chosen, warning = await self._engine_for(name, spec.acceleration, found, access)
            if warning:
                warnings.append(warning)
            if chosen is None:
                return ""
            # It asks the registry by itself, and long after this deploy.
            host, digest = parse_image_ref(name).host, found.target.digest
            chosen.credentials.use(spec.name, host, digest, spec.registry)
            await chosen.credentials.refresh(spec.name)
            return chosen.name

        transfer = partial(
            self._door.transfer.pull,
            name,
            deadline=deadline,
            accept=accept,
            access=access,
            progress=progress,
        )
        try:
            image = await transfer(choose=choose)
            if chosen is not None:
                await self._check_mounted(chosen, image, deadline)
                self.complete(image.facts(), spec)
        except AgentError as error:
            if chosen is None:
                raise
            text = f"image {name} cannot be mounted by {chosen.name}: {error.message}"
            log.warning("%s; unpacking it", text)
            self._events.add("LazyMountFailed", message=text, details={"image": name})
            warnings.append(f"{text}: it was fetched and unpacked whole")
            image = await transfer()
        return image, tuple(warnings)

    async def pull_ahead(
        self,
        ahead: Ahead,
        *,
        deadline: float,
        accept: Accept,
        progress: Callable[[Progress], None],
    ) -> tuple[Image, tuple[str, ...]]:
        """Do so before any deploy; credentials are kept for as long as it is mounted."""
        keyring, host = self._door.keyring, parse_image_ref(ahead.image).host
        access = keyring.access(host, ahead.registry, ahead.name)
        is_mounted = False
        try:
            image, warnings = await self.pull(
                ahead,
                ahead.image,
                deadline=deadline,
                accept=accept,
                access=access,
                progress=progress,
            )
            is_mounted = image.chain_id in self._completions
            if is_mounted:
                keyring.keep(ahead.name, host, ahead.registry)
                self.deploy_ended(ahead.name)
            return image, warnings
        finally:
            if not is_mounted:
                self._forget_ahead(ahead.image)

    async def _engine_for(
        self, name: str, asked: Acceleration, found: Resolved, access: Access
    ) -> tuple[LazyEngine | None, str]:
        """Return the engine to mount an image by, None to unpack it, and a warning or ""."""
        least_bytes = self._settings.least_mb * MB
        if not worth_asking(asked, found.manifest.compressed_bytes, least_bytes):
            return None, ""
        if access.ca_pem:
            why = "lazy engines believe no authority of a deploy's own (registry.ca_pem)"
            return None, f"image {name}: {why}: {WHOLE}" if asked == "lazy" else ""
        loop = asyncio.get_running_loop()
        for engine in self._door.lazy:
            indexed = engine.annotated(found.manifest)
            if engine.referrer_type:
                indexed = await self._door.transfer.has_referrer(
                    name,
                    found.target.digest,
                    engine.referrer_type,
                    deadline=loop.time() + INDEX_S,
                    access=access,
                )
            if not indexed:
                continue
            try:
                await engine.up(loop.time() + ENGINE_S)
            except RuntimeUnavailable as error:
                return None, f"{error.message}: image {name} is fetched and unpacked whole"
            return engine, ""
        return None, advice(asked, name, engines=bool(self._door.lazy), indexed=False)

    async def _check_mounted(self, engine: LazyEngine, image: Image, deadline: float) -> None:
        """Raise RuntimeUnavailable unless an engine has really mounted most of an image.

        A layer that it cannot mount it has unpacked, and says nothing. What there is of it is let
        go then.
        """
        directories = await engine.snapshots.image_layers(image.chain_id, deadline=deadline)
        points = {one.point for one in mountinfo.parse(mountinfo.text())}
        layers = zip(directories, reversed(image.manifest.layers), strict=True)
        mounted = sum(layer.size_bytes for at, layer in layers if at in points)
        whole = sum(layer.size_bytes for layer in image.manifest.layers)
        if 2 * mounted < whole:
            if image.chain_id not in self._completions:  # else another function runs on it
                await self._unmount(image.facts())
            raise RuntimeUnavailable(f"it has mounted {mounted} of {whole} bytes only")

    async def resume(
        self, unpacked: Collection[str], versions: Collection[FunctionVersion]
    ) -> set[str]:
        """Go on with what the worker before had mounted; return the chain ids it may still be.

        `unpacked` are the chain ids that need no mount. An engine that does not answer soon may
        have mounted whatever is not unpacked, but for images that no registry has: an ordinary
        pull then brings it, or fails.
        """
        found, unknown = await self._mounted_before()
        may_be: set[str] = set()
        for version in versions:
            facts = version.image
            if facts is None:
                continue
            host = parse_image_ref(facts.ref).host
            mounted = facts.chain_id in found
            if mounted or (unknown and host != LOCAL_HOST):
                for engine in self._door.lazy:
                    registry = version.spec.registry
                    engine.credentials.use(version.name, host, facts.digest, registry)
            if facts.chain_id in unpacked:
                if mounted:
                    self._mounted[facts.chain_id] = facts
            elif mounted or (unknown and host != LOCAL_HOST):
                may_be.add(facts.chain_id)
                self.complete(facts, version.spec)
        known = {version.image.chain_id for version in versions if version.image is not None}
        await self._resume_ahead(found - known, unpacked)
        for engine in self._door.lazy:
            await engine.credentials.take_up()
        return may_be

    async def _mounted_before(self) -> tuple[set[str], bool]:
        """Return what engines have mounted, and whether one that may have more did not answer."""
        found: set[str] = set()
        unknown = False
        for engine in self._door.lazy:
            if not engine.has_run:
                continue
            try:
                deadline = asyncio.get_running_loop().time() + RESUME_S
                await engine.up(deadline)
                found |= {shot.key for shot in await engine.snapshots.list(deadline=deadline)}
            except AgentError as error:
                unknown = True
                log.warning("%s; what it has mounted is not known", error)
        return found, unknown

    # -- what is mounted already

    async def mounted(self) -> set[str]:
        """Return the chain ids that engines have mounted, as far as they answer."""
        found: set[str] = set()
        soon = asyncio.get_running_loop().time() + RESUME_S
        for engine in self._door.lazy:
            if engine.has_run and await engine.answers():
                with contextlib.suppress(AgentError):
                    found |= {shot.key for shot in await engine.snapshots.list(deadline=soon)}
        return found

    async def take_up(self, spec: Asking, image: Image) -> bool:
        """Go on, for a spec that does not want it whole, with an image that an engine has mounted.

        False when there is no such mount, or it is not whole any more.
        """
        if spec.acceleration == "eager":
            return False
        soon = asyncio.get_running_loop().time() + RESUME_S
        for engine in self._door.lazy:
            if not engine.has_run or not await engine.answers():
                continue
            try:
                if not await engine.snapshots.exists(image.chain_id, deadline=soon):
                    continue
                await self._check_mounted(engine, image, soon)
            except AgentError as error:
                log.info("image %s is mounted anew: %s", image.name, error)
                continue
            host = parse_image_ref(image.name).host
            engine.credentials.use(spec.name, host, image.digest, spec.registry)
            await engine.credentials.refresh(spec.name)
            self.complete(image.facts(), spec)
            return True
        return False

    async def _resume_ahead(self, found: Collection[str], unpacked: Collection[str]) -> None:
        """Go on with mounted images that no version needs: they were asked for ahead."""
        for record in await self._door.images.list() if found else ():
            try:
                image = await self._door.images.inspect(record.name)
            except (NotFound, InvalidSpec):
                continue
            if image.chain_id not in found:
                continue
            ahead, host = Ahead(record.name, RegistrySpec()), parse_image_ref(record.name).host
            for engine in self._door.lazy:
                engine.credentials.use(ahead.name, host, image.digest, ahead.registry)
            if image.chain_id in unpacked:
                self._mounted[image.chain_id] = image.facts()
            else:
                self.complete(image.facts(), ahead)

    # -- completing

    def complete(self, facts: ImageFacts, spec: Asking) -> None:
        """Fetch and unpack a mounted image in the background, unless that is under way."""
        self._mounted.pop(facts.chain_id, None)
        if self.join(facts, spec):
            return
        one = Completion(facts, {spec.name: spec})
        self._completions[facts.chain_id] = one
        one.task = tasks.spawn(f"complete {facts.ref}", self._complete(one))
        one.task.add_done_callback(lambda _: self._ended(one))

    def join(self, facts: ImageFacts, spec: Asking) -> bool:
        """Have an image that is being completed be so for one more; False if none is."""
        one = self._completions.get(facts.chain_id)
        if one is None:
            return False
        one.askers.pop(spec.name, None)
        one.askers[spec.name] = spec
        return True

    def _ended(self, one: Completion) -> None:
        if self._completions.get(one.facts.chain_id) is one:
            del self._completions[one.facts.chain_id]

    def progress(self) -> list[str]:
        """Say of each image that is being completed how far it is."""
        return [str(one) for one in self._completions.values()]

    async def close(self) -> None:
        """Leave what is under way to the next worker."""
        await tasks.stop(*(one.task for one in list(self._completions.values())))

    async def drop(self, chain_id: str) -> None:
        """Complete an image no more, for no version needs it; its mounts go with its name."""
        # Out of the list first: who needs it again begins anew, though this one may still end.
        found = self._completions.pop(chain_id, None)
        await tasks.stop(found.task if found is not None else None)

    async def _complete(self, one: Completion) -> None:
        facts = one.facts
        await asyncio.sleep(self._settings.complete_after_s)  # sleeps: the start's reads come first
        pause_s, told = FIRST_PAUSE_S, ""
        tries = 0
        while True:
            renewed = self._renewed
            try:
                await self._completing.fetch_whole(one)
                break
            except Exception as error:  # whatever it was, starts need it whole
                trace = not isinstance(error, AgentError)
                text = f"image {facts.ref} is not complete yet: {error}"
                log.warning("%s", text, exc_info=trace)
                if text != told:
                    self._events.add("ImageNotComplete", message=text, details={"image": facts.ref})
                told = text
            tries += 1
            if isinstance(one.asker, Ahead) and tries >= AHEAD_TRIES:
                log.warning("image %s is left to who deploys it", facts.ref)
                return
            with contextlib.suppress(TimeoutError):  # what failed is not tried at once
                async with asyncio.timeout(pause_s):
                    await renewed.wait()
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
        self._prepared.completed(facts.chain_id)
        self._mounted[facts.chain_id] = facts
        text = f"image {facts.ref} is complete: starts need its registry no more"
        self._events.add("ImageCompleted", message=text, details={"image": facts.ref})

    # -- letting go

    def forget(self, function: str) -> None:
        """Show nothing any more of what a removed function had for its image's registry."""
        for engine in self._door.lazy:
            engine.credentials.drop(function)
        for one in self._completions.values():
            if len(one.askers) > 1:
                one.askers.pop(function, None)
        self.deploy_ended(function)

    def deploy_ended(self, function: str) -> None:
        """Let what the keyring keeps count from now on, not what a deploy has brought."""
        for engine in self._door.lazy:
            engine.credentials.deploy_ended(function)
        for one in self._completions.values():
            if function in one.askers:
                one.askers[function] = bare(one.askers[function])

    async def gone(self, name: str, chain_id: str) -> None:
        """Complete an image no more whose name is gone, and ask its registry for nothing."""
        await self.drop(chain_id)
        self._forget_ahead(name)

    def _forget_ahead(self, name: str) -> None:
        ahead = Ahead(name, RegistrySpec()).name
        self._door.keyring.drop(ahead)
        self.forget(ahead)

    def sources(self) -> set[str]:
        """Return the engines' processes that serve what starts would use."""
        return self._prepared.sources()

    async def cut_off(self, in_use: Collection[str]) -> set[str]:
        """Return the completed images in use whose mounts are given no more files.

        Their registry is away, or takes no credentials any more. Takes a while then.
        """
        found: set[str] = set()
        for chain_id in [one for one in self._mounted if one in in_use]:
            given = [await engine.given(chain_id) for engine in self._door.lazy]
            if not all(given):
                found.add(chain_id)
        return found

    async def let_go(self, in_use: Collection[str]) -> None:
        """Unmount completed images of which no instance runs on the mounts any more."""
        going = [item for item in self._mounted.items() if item[0] not in in_use]
        for engine in self._door.lazy if going else ():
            if engine.has_run and not await engine.answers():
                return  # asked once, not once for each; the next look is another try
        for chain_id, facts in going:
            try:
                await self._unmount(facts)
            except AgentError as error:  # the next look is another try
                if chain_id not in self._reluctant:
                    log.warning("image %s stays mounted: %s", facts.ref, error)
                self._reluctant.add(chain_id)
                continue
            self._reluctant.discard(chain_id)
            if self._mounted.get(chain_id) is facts:
                del self._mounted[chain_id]

    def _credentials_changed(self) -> None:
        self._renewed.set()
        self._renewed = asyncio.Event()

    def _tell_credentials(self, function: str, host: str, why: str) -> None:
        text = f"what is not here yet of an image of {host} has no credentials any more: {why}"
        self._events.add("CredentialsMissing", Subject(function), text, {"registry": host})

    async def _unmount(self, facts: ImageFacts) -> None:
        self._prepared.unmounted(facts.chain_id)
        self._forget_ahead(facts.ref)
        for engine in self._door.lazy:
            if engine.has_run:
                await self._door.images.unlabel(facts.chain_id, engine.name)
        await unmount(self._door.lazy, facts.chain_id)
        for engine in self._door.lazy:
            engine.credentials.release(facts.digest)
