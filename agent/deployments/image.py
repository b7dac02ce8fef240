"""The image that a deploy runs: what is here, or fetched as its `pull` says; refused if too large.

While a deploy relies on an image's name nobody removes it, nor the other way round (`image_use`). A
pull that brought more than the contract takes is taken back. How large is too large is
`agent/core/image_size.py`'s to say, pulling and unpacking are `agent/containerd`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.aio.tasks import finish
from agent.containerd.client import Containerd
from agent.containerd.images import Image
from agent.containerd.unpack import owners_in
from agent.core.image_size import check_image_size, packed_bytes
from agent.core.pulling import PullBegun
from agent.deployments.catalog import Catalog
from agent.deployments.lazy_image import LOCAL_HOST, LazyImages
from agent.errors import FailedPrecondition, InvalidSpec, NotFound, RuntimeUnavailable
from agent.model.image_ref import ImageRef, parse_image_ref
from agent.model.records import ImageFacts
from agent.model.spec import FunctionSpec

if TYPE_CHECKING:
    from agent.containerd.access import Access
    from agent.containerd.images import ImageRecord
    from agent.containerd.registry import Resolved

log = logging.getLogger(__name__)

SIGHT_S = 30.0
TAKE_BACK_S = 60.0


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a deploy runs. Not `asked`: its registry was not, or did not answer and `why_not`.

    Not `here`: it is still to be fetched. `warnings` are of how it came.
    """

    facts: ImageFacts
    asked: bool
    why_not: str = ""
    here: bool = True
    warnings: tuple[str, ...] = ()


class ImageSource:
    """Where deploys get their images from."""

    def __init__(
        self, containerd: Containerd, catalog: Catalog, lazy: LazyImages, pull_s: float
    ) -> None:
        """`pull_s` is the longest that a pull may take."""
        self._door = containerd
        self._pull_s = pull_s
        self._catalog = catalog
        self._lazy = lazy

    async def sight(self, spec: FunctionSpec) -> Fetched:
        """Return the image that a spec names as its registry tells it, not fetched yet.

        What is here, or is not to be asked for, is fetched as `fetch` does. Raises as that does.
        """
        reference = parse_image_ref(spec.image)
        name, transfer = reference.full, self._door.transfer
        deadline = asyncio.get_running_loop().time() + SIGHT_S
        local = reference.host == LOCAL_HOST or spec.pull == "never"
        if local or (spec.pull == "missing" and await self._here(spec, reference) is not None):
            return await self.fetch(spec)
        try:
            found = await transfer.resolve(name, deadline=deadline, access=self._access(spec))
        except RuntimeUnavailable as error:
            log.warning("image %s: %s", spec.image, error)
        else:
            size = found.manifest.compressed_bytes
            check_image_size(spec.contract, name, compressed_bytes=size)
            if await transfer.present(name, found, deadline) is None:
                seen = Image(name, found.target.digest, found.manifest, found.config, None)
                return Fetched(seen.facts(), asked=True, here=False)
        # What is here, or an error of the registry's that the caller is to hear.
        return await self.fetch(spec)

    async def fetch(self, spec: FunctionSpec) -> Fetched:
        """Return the image that a spec names, as its `pull` says.

        Raises NotFound when there is none, InvalidSpec when it is no image for this node or larger
        than the contract takes; nothing of it stays then that was not here before.
        """
        fetched = await self._fetch(spec)
        use = self._catalog.image_use
        use.hold(parse_image_ref(spec.image).full, fetched.facts.chain_id)
        use.touch(fetched.facts.digest)
        return fetched

    async def _fetch(self, spec: FunctionSpec) -> Fetched:
        reference = parse_image_ref(spec.image)
        if spec.pull != "always" or reference.host == LOCAL_HOST:
            image = await self._here(spec, reference)
            if image is not None:
                return Fetched(_fitting(spec, image), asked=False)
        if reference.host == LOCAL_HOST:
            raise NotFound(
                f"image {spec.image} is not on this node; run 'kindling image import FILE'"
            )
        if spec.pull == "never":
            raise NotFound(
                f"image {spec.image} is not on this node, and pull is never: run 'kindling image "
                f"import FILE' or 'kindling image pull {spec.image}', or deploy with pull=missing"
            )
        return await self._pulled(spec, reference.full)

    async def _here(self, spec: FunctionSpec, reference: ImageRef) -> Image | None:
        """Return what this node has whole under a name, or by the digest that the name ends with.

        An image found by its digest gets the name: it has to outlive the one it was found under.
        """
        door = self._door.images
        found = await self._whole(spec, reference.full)
        if found is not None or not reference.digest:
            return found
        for record in await door.list():
            if record.target.digest != reference.digest:
                continue
            if (image := await self._whole(spec, record.name)) is not None:
                _fitting(spec, image)  # or it gets no name
                await door.put(reference.full, record.target, record.labels)
                return await self._whole(spec, reference.full)
        return None

    async def _whole(self, spec: FunctionSpec, name: str) -> Image | None:
        """Return an image that is here and unpacked, or mounted where that is good enough."""
        try:
            image = await self._door.images.inspect(name)
        except NotFound:
            return None
        if image.unpacked_bytes is not None or await self._lazy.take_up(spec, image):
            return image
        return None

    async def advice(self, image: ImageFacts) -> tuple[str, ...]:
        """Return what was changed in an image that is here, for a deploy to warn of."""
        try:
            layers = await self._door.snapshots.chain(image.chain_id)
        except NotFound:  # the builder says so, in better words
            return ()
        owners = owners_in(layer.labels for layer in reversed(layers))
        return (owners.warning(),) if owners.files else ()

    async def _pulled(self, spec: FunctionSpec, name: str) -> Fetched:
        door = self._door

        def accept(found: Resolved) -> None:
            check_image_size(spec.contract, name, compressed_bytes=found.manifest.compressed_bytes)
            # From now on: whoever removes a function of the same layers leaves them alone.
            self._catalog.image_use.hold(name, found.config.chain_id)

        before = await self._record(name)
        here = await door.content.sizes()
        begun = self._catalog.image_use.under_way.begin(here, time.monotonic())
        deadline = asyncio.get_running_loop().time() + self._pull_s
        try:
            image, warnings = await self._lazy.pull(
                spec, name, deadline=deadline, accept=accept, access=self._access(spec)
            )
        except RuntimeUnavailable as error:
            with contextlib.suppress(NotFound):
                facts = _fitting(spec, await door.images.inspect(name))
                log.warning("image %s: %s; using what is on this node", spec.image, error)
                self._lazy.join(facts, spec)
                return Fetched(facts, asked=False, why_not=error.message)
            raise
        await self._note_pull(image, begun)
        try:
            return Fetched(_fitting(spec, image), asked=True, warnings=warnings)
        except InvalidSpec:
            back = self._take_back(name, image, before)
            await finish(f"take back image {name}", back, within_s=TAKE_BACK_S)
            raise

    def _access(self, spec: FunctionSpec) -> Access:
        host = parse_image_ref(spec.image).host
        return self._door.keyring.access(host, spec.registry, spec.name)

    def keep_credentials(self, spec: FunctionSpec) -> None:
        """Keep what a deploy brought for its image's registry, in memory, for later pulls."""
        host = parse_image_ref(spec.image).host
        self._door.keyring.keep(spec.name, host, spec.registry)

    def deploy_ended(self, function: str, *, deployed: bool) -> None:
        """Hold nothing any more that only a deploy has brought; `deployed`: there is a version."""
        if deployed:
            self._lazy.deploy_ended(function)
        else:
            self.forget_credentials(function)

    def forget_credentials(self, function: str) -> None:
        """Forget what a function's deploys brought."""
        self._door.keyring.drop(function)
        self._lazy.forget(function)

    async def _note_pull(self, image: Image, begun: PullBegun) -> None:
        """Note what a pull took, if anything had to come."""
        use, ended = self._catalog.image_use, time.monotonic()
        pull = use.under_way.end(begun, image.blobs(), await self._door.content.sizes(), ended)
        if pull is not None:
            use.came(image.name, image.digest, pull)

    async def _record(self, name: str) -> ImageRecord | None:
        with contextlib.suppress(NotFound):
            return await self._door.images.get(name)
        return None

    async def _take_back(self, name: str, image: Image, before: ImageRecord | None) -> None:
        """Let a name stand for what it stood for before a pull, or for nothing."""
        if self._catalog.using(image.digest):
            return
        door = self._door.images
        try:
            with self._catalog.image_use.removing(name, deploys=1):
                if before is None:
                    await door.delete(name)
                elif before.target.digest != image.digest:
                    await door.put(name, before.target, before.labels)
        except FailedPrecondition as error:
            log.info("image %s stays: %s", name, error)


def _fitting(spec: FunctionSpec, image: Image) -> ImageFacts:
    """Return what is kept of an image that is here; raises InvalidSpec when it is too large."""
    check_image_size(
        spec.contract,
        image.name,
        compressed_bytes=packed_bytes(image.manifest),
        unpacked_bytes=image.unpacked_bytes,
    )
    return image.facts()
