"""The image that a deploy runs: fetched if it is not here, and refused if it is too large.

While a deploy relies on an image's name nobody removes it, nor the other way round (`image_use`). A
pull that brought more than the contract takes is taken back. How large is too large is
`agent/core/image_size.py`'s to say, pulling and unpacking are `agent/containerd`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from agent.aio.tasks import finish
from agent.containerd.client import Containerd
from agent.containerd.images import Image
from agent.core.image_size import check_image_size, packed_bytes
from agent.deployments.catalog import Catalog
from agent.deployments.lazy_image import LOCAL_HOST, LazyImages
from agent.errors import FailedPrecondition, InvalidSpec, NotFound, RuntimeUnavailable
from agent.model.image_ref import parse_image_ref
from agent.model.records import ImageFacts
from agent.model.spec import FunctionSpec

if TYPE_CHECKING:
    from agent.containerd.access import Access
    from agent.containerd.images import ImageRecord
    from agent.containerd.registry import Resolved

log = logging.getLogger(__name__)

PULL_S = 600.0
SIGHT_S = 30.0
TAKE_BACK_S = 60.0


class ImageSource:
    """Where deploys get their images from."""

    def __init__(self, containerd: Containerd, catalog: Catalog, lazy: LazyImages) -> None:
        self._door = containerd
        self._catalog = catalog
        self._lazy = lazy

    async def sight(self, spec: FunctionSpec) -> tuple[ImageFacts, tuple[str, ...], bool]:
        """Return the image that a spec names as its registry tells it, not fetched yet.

        Also what to warn of, and whether it is here already. Raises as `fetch` does.
        """
        reference = parse_image_ref(spec.image)
        name, transfer = reference.full, self._door.transfer
        deadline = asyncio.get_running_loop().time() + SIGHT_S
        if reference.host != LOCAL_HOST:
            try:
                access = self._access(spec)
                found = await transfer.resolve(name, deadline=deadline, access=access)
            except RuntimeUnavailable as error:
                log.warning("image %s: %s", spec.image, error)
            else:
                size = found.manifest.compressed_bytes
                check_image_size(spec.contract, name, compressed_bytes=size)
                image = await transfer.present(name, found, deadline)
                if image is None:
                    seen = Image(name, found.target.digest, found.manifest, found.config, None)
                    return seen.facts(), (), False
        # What is here, or an error of the registry's that the caller is to hear.
        return *await self.fetch(spec), True

    async def fetch(self, spec: FunctionSpec) -> tuple[ImageFacts, tuple[str, ...]]:
        """Return the image that a spec names, pulled if it is not here, and what to warn of.

        Raises NotFound when there is none, InvalidSpec when it is no linux/amd64 image or larger
        than the contract takes; nothing of it stays then that was not here before.
        """
        reference = parse_image_ref(spec.image)
        if reference.host != LOCAL_HOST:
            return await self._pulled(spec, reference.full)
        try:
            image = await self._door.images.inspect(reference.full)
        except NotFound:
            raise NotFound(
                f"image {spec.image} is not on this node; run 'kindling image import FILE'"
            ) from None
        return _fitting(spec, image), ()

    async def _pulled(self, spec: FunctionSpec, name: str) -> tuple[ImageFacts, tuple[str, ...]]:
        door = self._door

        def accept(found: Resolved) -> None:
            check_image_size(spec.contract, name, compressed_bytes=found.manifest.compressed_bytes)

        before = await self._record(name)
        deadline = asyncio.get_running_loop().time() + PULL_S
        try:
            image, warnings = await self._lazy.pull(
                spec, name, deadline=deadline, accept=accept, access=self._access(spec)
            )
        except RuntimeUnavailable as error:
            log.warning("image %s: %s; using what is on this node", spec.image, error)
            with contextlib.suppress(NotFound):
                return _fitting(spec, await door.images.inspect(name)), ()
            raise
        try:
            return _fitting(spec, image), warnings
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

    def forget_credentials(self, function: str) -> None:
        """Forget what a function's deploys brought."""
        self._door.keyring.drop(function)
        self._lazy.forget(function)

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
