"""Instances whose files are gone, because the engine that served them has ended: found, replaced.

Mounts of a lazy engine die with its process; a new one mounts the images anew, but an instance
keeps what it was built on. Who served it is on its record, so nothing of a dead mount is touched to
find out. A look a second, where there are engines. One that lives and does not answer is ended, if
something runs on its mounts or could be started from them: who waits for their files would wait for
ever. Mounts that nothing runs on any more, and whose image is complete, are let go here as well.
Where the registry gives a mount nothing more and its image is complete, what runs on it gives way.
"""

from __future__ import annotations

import asyncio
import logging

from agent.aio import tasks
from agent.containerd.lazy import LazySource, is_lost
from agent.core.instance import State
from agent.deployments.catalog import Catalog
from agent.deployments.deploy import Stores
from agent.errors import AgentError
from agent.instances.fleet import Fleet
from agent.instances.instance import Instance
from agent.telemetry.events import Subject

log = logging.getLogger(__name__)

LOOK_S = 1.0
GRACE_S = 10.0  # calls that need no more files may end
CUT_OFF_LOOK_S = 10.0
CUT_OFF_GRACE_S = 100.0  # a read waits that long for a registry that comes back
LOST = "its files are gone: {engine}, which served its image, has ended"
CUT_OFF = "its registry gives no more files of its image, which is here whole by now: replaced"


class LostFiles:
    """Looks after what runs on lazy mounts."""

    def __init__(
        self,
        fleet: Fleet,
        catalog: Catalog,
        stores: Stores,
        stuck_after_s: float,
    ) -> None:
        self._fleet = fleet
        self._catalog = catalog
        self._engines = stores.containerd.lazy
        self._images = stores.lazy
        self._events = stores.events
        self._told: set[str] = set()
        self._silent: dict[str, float] = {}
        self._stuck_after_s = stuck_after_s

    async def run(self) -> None:
        """Look once a second, for ever; at nothing, where there is no engine."""
        beside = tasks.spawn("mounts without a registry", self._watch_cut_off())
        try:
            while self._engines:
                await asyncio.sleep(LOOK_S)  # sleeps: the pace of looking
                try:
                    await self.look()
                except Exception as error:  # the next look is another try
                    trace = not isinstance(error, AgentError)
                    log.warning("looking for lost files: %s", error, exc_info=trace)
        finally:
            await tasks.stop(beside)

    async def _watch_cut_off(self) -> None:
        while self._engines:
            await asyncio.sleep(CUT_OFF_LOOK_S)  # sleeps: the pace of looking
            try:
                await self.look_for_cut_off()
            except Exception as error:  # the next look is another try
                trace = not isinstance(error, AgentError)
                log.warning("looking for cut off mounts: %s", error, exc_info=trace)

    async def look_for_cut_off(self) -> None:
        """Have instances give way whose mount is given nothing more, where the image is here."""
        if not self._fleet.mode.owns_instances:
            return
        cut_off = await self._images.cut_off({_chain_id(one) for one in self._on_mounts()})
        for instance in self._on_mounts():
            if instance.state is State.READY and _chain_id(instance) in cut_off:
                instance.note(CUT_OFF)
                version = instance.version
                subject = Subject(version.name, version.version, instance.id)
                self._events.add("InstanceCutOff", subject, CUT_OFF)
                self._retire(instance, CUT_OFF_GRACE_S)

    def _on_mounts(self) -> list[Instance]:
        return [one for one in self._fleet.admission.instances.values() if _source(one)]

    async def look(self) -> None:
        """Look once."""
        instances = list(self._fleet.admission.instances.values())
        on_mounts = [one for one in instances if _source(one)]
        for instance in on_mounts:
            if is_lost(_source(instance)):
                self._replace(instance)
        self._told &= {one.id for one in on_mounts}
        # Nothing may run on what nothing can be started from: what was prepared counts as well.
        await self._end_stuck({_source(one) for one in on_mounts} | self._images.sources())
        if self._fleet.mode.owns_instances:
            # What another worker holds has no container here, and may run on anything.
            users = (one for one in instances if _source(one) or one.container is None)
            await self._images.let_go({_chain_id(one) for one in users})

    def _replace(self, instance: Instance) -> None:
        """Have an instance give way to a new one; a job goes on as far as it gets."""
        if instance.id not in self._told:
            self._told.add(instance.id)
            source = LazySource.parse(_source(instance))
            text = LOST.format(engine=source.engine if source is not None else "")
            log.warning("%s: %s", instance.id, text)
            instance.note(text)
            version = instance.version
            subject = Subject(version.name, version.version, instance.id)
            self._events.add("InstanceLostFiles", subject, text)
        self._retire(instance, GRACE_S)

    def _retire(self, instance: Instance, grace_s: float) -> None:
        target = self._catalog.target(instance.version.key)
        if target is None or instance.state is not State.READY:
            return
        for member in target.pool.members:
            if member.instance is instance:
                target.scaling.retire(member, grace_s=grace_s)
                return

    async def _end_stuck(self, sources: set[str]) -> None:
        """End engines that serve mounts and have not answered for a while."""
        self._silent = {text: at for text, at in self._silent.items() if text in sources}
        for text in sources:
            source = LazySource.parse(text)
            engine = self._engines.get(source.engine) if source is not None else None
            if source is None or engine is None or not source.alive or await engine.answers():
                self._silent.pop(text, None)
                continue
            now = self._fleet.now()
            if now - self._silent.setdefault(text, now) >= self._stuck_after_s:
                self._silent.pop(text)
                log.warning("%s does not answer: ended", engine.name)
                engine.stuck()


def _chain_id(instance: Instance) -> str:
    image = instance.version.image
    return image.chain_id if image is not None else ""


def _source(instance: Instance) -> str:
    return instance.container.source if instance.container is not None else ""
