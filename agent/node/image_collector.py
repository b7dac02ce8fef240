"""Keeps the image store within its marks: on a timer, for a pull that finds no room, and asked.

Unit of concurrency: one collection at a time. What goes, and in which order, is decided by
`agent/core/image_gc.py`; what nobody owns is found by `agent/recovery/orphans.py`. Nothing goes
that a deployed version or a running instance needs, that a deploy or pull under way relies on, or
that the configuration keeps. When images were last used is kept on disk from here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from agent.aio.tasks import finish
from agent.containerd.store_limit import Room, StoreBounds
from agent.control.node import GarbageReport, GarbageView
from agent.core import image_gc
from agent.core.image_gc import NO_LIMIT, Amount, total
from agent.errors import AgentError, FailedPrecondition, NotFound
from agent.node.image_stock import ImageStock, Stock
from agent.recovery.orphans import Orphan, Orphans
from agent.store.ballast import Ballast
from agent.store.last_use import LastUses

if TYPE_CHECKING:
    from agent.config import ImagesSettings, NodeConfig
    from agent.containerd.client import Containerd
    from agent.deployments.catalog import Catalog
    from agent.instances.admission import Admission
    from agent.sandbox.prepared_images import PreparedImages

log = logging.getLogger(__name__)

REST_SHARE = 9.0  # of a look's time, before the next one
REST_S = 1.0
COLLECT_S = 300.0  # removing millions of files takes a while
SAVE_S = 5.0
LAST_USES = "images.json"  # below the agent's data
MAX_USES = 10_000  # digests that are remembered, here or gone
NAMED = 10
NS = 1_000_000_000
MB = 1 << 20
EVERYTHING = Amount(NO_LIMIT, NO_LIMIT)

Excess = Callable[[Room], Amount]
"""How much is to be given back, by what was measured."""


class ImageCollector:
    """Removes images that nothing needs."""

    def __init__(
        self,
        settings: ImagesSettings,
        containerd: Containerd,
        stock: ImageStock,
        orphans: Orphans,
        catalog: Catalog,
        data: Path,
    ) -> None:
        self._settings = settings
        self._containerd = containerd
        self.stock = stock
        self._orphans = orphans
        self._catalog = catalog
        self._uses = LastUses(data / LAST_USES)
        self._ballast = Ballast(data)
        self._turn = asyncio.Lock()
        self.gone: Callable[[str, str], Awaitable[None]] | None = None
        """Hears of every name that was removed, with the layers it stood for."""
        self.active = True
        """False once another worker has taken over: what is deployed is no longer known here."""

    # -- by itself

    async def load(self) -> None:
        """Take up when images were last used, as it was kept, and set the ballast aside."""
        await asyncio.to_thread(self._ballast.take)
        kept = await asyncio.to_thread(self._uses.load)
        use = self._catalog.image_use
        use.last_ns = kept | use.last_ns

    async def run(self) -> None:
        """Look every `gc_interval_s` seconds, and when functions were removed, for ever.

        A look goes through all functions and layers: in a storm of removals it takes a tenth of the
        time, or comes once a second.
        """
        released = self._catalog.image_use.released
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._settings.gc_interval_s):
                        await released.wait()
                released.clear()
                began = asyncio.get_running_loop().time()
                await self._next_round()
                took_s = asyncio.get_running_loop().time() - began
                # sleeps: the least between two looks
                await asyncio.sleep(min(REST_SHARE * took_s, REST_S))
        finally:
            await finish("keep last uses", self.save(), within_s=SAVE_S)

    async def _next_round(self) -> None:
        try:
            done = await self._collect(self._above_the_mark, spare_young=True)
        except Exception as error:  # the next round looks anew
            log.warning("collection: %s", error, exc_info=not isinstance(error, AgentError))
            return
        if done.removed:
            log.info("collected %s", _sentence(done))
        await self.save()
        await asyncio.to_thread(self._ballast.take)

    async def save(self) -> None:
        """Keep when images were last used, if that has changed."""
        use = self._catalog.image_use
        if not use.changed or not self.active:
            return
        use.changed = False
        if len(use.last_ns) > MAX_USES:
            newest = sorted(use.last_ns.items(), key=lambda item: item[1])[-MAX_USES // 2 :]
            use.last_ns = dict(newest)
        await asyncio.to_thread(self._uses.save, dict(use.last_ns))

    def _above_the_mark(self, room: Room) -> Amount:
        """Return what is to go down to the low mark, nothing while the high one is not passed."""
        most = room.used + room.left
        if room.used.fits(most.percent(self._settings.gc_high_percent)):
            return Amount()
        return room.used - most.percent(self._settings.gc_low_percent)

    # -- when asked

    async def make_room(self, excess: Amount) -> bool:
        """Give back at least so much, and down to the low mark; say whether anything was."""
        if not self.active:
            return False

        given = await self._give_up_interrupted()

        def wanted(room: Room) -> Amount:
            low = (room.used + room.left).percent(self._settings.gc_low_percent)
            return image_gc.larger(excess - given, room.used - low)

        done = await self._collect(wanted)
        log.info("collected for an image without room: %s", _sentence(done))
        return bool(done.removed) or given != Amount()

    async def collect(self, *, dry_run: bool) -> GarbageReport:
        """Remove every image that nothing needs, and what is nobody's; or say what would go."""
        if not dry_run:
            await self._give_up_interrupted()
        return await self._collect(lambda _: EVERYTHING, dry_run=dry_run)

    async def remove(self, name: str) -> None:
        """Remove a name, and give back what it alone held.

        Raises NotFound, FailedPrecondition when a function uses the image or is being deployed
        with it.
        """
        async with self._turn:
            await asyncio.to_thread(self._ballast.give)
            with self._catalog.image_use.removing(name):
                await self._remove(name, await self.stock.look())
            # The name is free again, whatever time the rest takes.
            await self._sweep()
            await self._containerd.leases.collect(deadline=_within(COLLECT_S))
            for engine in await self._containerd.engine_store.idle():
                await self._rest(engine)

    # -- doing it

    async def _give_up_interrupted(self) -> Amount:
        """Give up what interrupted pulls would go on with; returns what that gave back."""
        before = await self._containerd.limit.room()
        if not await self._containerd.leases.give_up():
            return Amount()
        await self._containerd.leases.collect(deadline=_within(COLLECT_S))
        given = before.used - (await self._containerd.limit.room()).used
        return image_gc.larger(given, Amount())  # others may have fetched meanwhile

    async def _collect(
        self, excess: Excess, *, dry_run: bool = False, spare_young: bool = False
    ) -> GarbageReport:
        async with self._turn:
            before = await self._containerd.limit.room()
            stock = await self.stock.look()
            found = await self._unneeded(stock)
            loose = self._held_by(found, stock)
            young_ns = time.time_ns() - int(self._settings.min_age_s * NS)
            going = image_gc.plan(
                self.stock.stored(stock),
                stock.contents.sizes,
                self._pinned(stock),
                excess(before) - total(loose.values()),
                used_before_ns=young_ns if spare_young else NO_LIMIT,
            )
            orphans = [
                GarbageView(one.kind, one.name, loose.get(one.name, one.freed)) for one in found
            ]
            images = [GarbageView("image", one.name, one.freed) for one in going]
            least_s = self._settings.min_age_s if spare_young else 0.0
            idle = await self._containerd.engine_store.idle(least_s)
            engines = [GarbageView("engine", name, kept) for name, kept in idle.items()]
            if dry_run or not (orphans or images or engines):
                return _report((*orphans, *images, *engines), before)
            await asyncio.to_thread(self._ballast.give)
            swept = await self._orphans.remove(found, self.stock.needed_layers)
            gone = {one.name for one in swept}
            gone |= {one.name for one in images if await self._removed(one.name, stock)}
            await self._sweep()
            await self._containerd.leases.collect(deadline=_within(COLLECT_S))
            gone |= {one.name for one in engines if await self._rest(one.name)}
            after = await self._containerd.limit.room()
            removed = tuple(one for one in (*orphans, *images, *engines) if one.name in gone)
            return _report(removed, after, before.used - after.used)

    async def _rest(self, engine: str) -> bool:
        """End an engine that has nothing mounted, and give back what it kept."""
        if not self.active:  # another worker may be about to use it
            return False
        try:
            return await self._containerd.engine_store.give_back(engine)
        except AgentError as error:
            log.warning("%s", error)
            return False

    async def _removed(self, name: str, stock: Stock) -> bool:
        try:
            with self._catalog.image_use.removing(name):
                await self._remove(name, stock)
        except (FailedPrecondition, NotFound) as error:  # it has come into use, or is gone
            log.info("%s", error)
            return False
        return True

    async def _remove(self, name: str, stock: Stock) -> None:
        """Remove a name that deploys are kept away from. What it held is still to be collected.

        Raises FailedPrecondition when it stands for something else than it did in `stock`.
        """
        record = await self._containerd.images.get(name)
        if not any(one.name == name and one.target == record.target for one in stock.records):
            raise FailedPrecondition(f"image {name} has just come anew; try again")
        known = stock.known.get(record.target.digest)
        users = self._catalog.using(known.digest) if known is not None else []
        if users:
            raise FailedPrecondition(
                f"image {name} is in use by {', '.join(users)}; remove the function first"
            )
        await self._containerd.images.delete(name)
        if known is not None:
            if self.gone is not None and known.chain_id not in self.stock.needed_layers():
                await self.gone(name, known.chain_id)
            await self._orphans.unmount(known.chain_id, self.stock.needed_layers)

    async def _sweep(self) -> None:
        """Remove what is nobody's now that names are gone."""
        found = await self._unneeded(await self.stock.look())
        await self._orphans.remove(found, self.stock.needed_layers)

    async def _unneeded(self, stock: Stock) -> list[Orphan]:
        """Return what is nobody's, views of layers included that no image and no run needs."""
        named = {known.chain_id for known in stock.known.values()}
        return await self._orphans.find(stock.contents, named | self.stock.needed_layers())

    def _held_by(self, orphans: list[Orphan], stock: Stock) -> dict[str, Amount]:
        """Return what each view among the orphans alone keeps on the disk, by its name."""
        images = self.stock.stored(stock)
        kept = self._pinned(stock).union(*(image.parts for image in images))
        views = [
            image_gc.StoredImage(one.name, 0, stock.contents.chain(one.layer))
            for one in orphans
            if one.layer and not one.engine
        ]
        going = image_gc.plan(views, stock.contents.sizes, kept, EVERYTHING)
        return {one.name: one.freed for one in going}

    def _pinned(self, stock: Stock) -> frozenset[str]:
        """Return the parts that must stay, whatever becomes of images' names."""
        chains = (stock.contents.chain(key) for key in self.stock.needed_layers())
        return frozenset().union(*chains)


def collector_of(
    config: NodeConfig,
    containerd: Containerd,
    prepared: PreparedImages,
    catalog: Catalog,
    admission: Admission,
    living: Callable[[], frozenset[int]],
) -> ImageCollector:
    """Put the collector of a node together, and hold its store to the configured limit."""
    settings, data = config.images, config.paths.data
    collector = ImageCollector(
        settings,
        containerd,
        ImageStock(containerd, catalog, admission, settings.keep),
        Orphans(containerd, prepared, living),
        catalog,
        data,
    )
    most = Amount(settings.max_bytes, settings.max_files)
    containerd.limit.hold_to(StoreBounds(most, data), collector.make_room)
    return collector


def _report(
    removed: tuple[GarbageView, ...], room: Room, freed: Amount | None = None
) -> GarbageReport:
    if freed is None:
        freed = total(one.freed for one in removed)
    return GarbageReport(removed, freed, room.used, room.used + room.left)


def _sentence(done: GarbageReport) -> str:
    names = ", ".join(f"{one.kind} {one.name}" for one in done.removed[:NAMED])
    more = f" and {len(done.removed) - NAMED} more" if len(done.removed) > NAMED else ""
    return f"{names or 'nothing'}{more}: {done.freed.bytes / MB:.1f} MB, {done.freed.files} files"


def _within(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds
