"""Deploying and removing functions: image, decision, store, pool, in this order.

One deploy of a name at a time; different names do not wait for each other. The image's tag becomes
a digest here and the digest is what runs. What a deploy means for versions is
`agent/core/deploy.py`'s decision. Removing takes the function out of store and catalog first, so
that no call finds it any more, then drains. Store and catalog change together: once that has
begun it goes on to its end, whether or not the caller still waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from operator import attrgetter
from weakref import WeakValueDictionary

from agent.aio.tasks import finish
from agent.calls.job import JobRunner
from agent.calls.target import FunctionTarget
from agent.config import NodeConfig
from agent.containerd.client import Containerd
from agent.contracts.base import NodeFacts
from agent.contracts.bind import bind
from agent.core import stop_signal
from agent.core.deploy import decide
from agent.deployments.catalog import Catalog
from agent.deployments.image import Fetched, ImageSource
from agent.deployments.lazy_image import LOCAL_HOST, LazyImages
from agent.deployments.preparing import Preparing
from agent.deployments.removal import Removal
from agent.errors import (
    FailedPrecondition,
    FunctionFailed,
    NotFound,
    Overloaded,
    RuntimeUnavailable,
)
from agent.instances.fleet import Fleet
from agent.model.failure import Failure, FailureKind
from agent.model.image_ref import parse_image_ref
from agent.model.limits import LIMITS
from agent.model.records import FunctionVersion, ImageFacts
from agent.model.spec import FunctionSpec, digest, without_credentials
from agent.model.spec_parse import parse_spec
from agent.sandbox.builder import Builder
from agent.store.calls import CallStore
from agent.store.functions import FunctionStore
from agent.telemetry.events import Events, Subject
from agent.telemetry.logs import Logs

log = logging.getLogger(__name__)

STORE_S = 60.0
REMOVE_SLACK_S = 60.0
WAIT_STEP_S = 0.02
MB = 1 << 20
# Checked, stored and given back, but read by nothing yet: a deploy that sets one is told so.
UNUSED = (
    "health_check",
    "async_calls",
)


@dataclass(frozen=True, slots=True)
class Deployment:
    """What a deploy led to; `created` is False when an equal version was there already."""

    version: FunctionVersion
    created: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stores:
    """What a deploy writes to and reads from."""

    functions: FunctionStore
    calls: CallStore
    containerd: Containerd
    lazy: LazyImages
    logs: Logs
    events: Events


@dataclass(frozen=True, slots=True)
class Runners:
    """What a deployed version runs with."""

    fleet: Fleet
    jobs: JobRunner
    builder: Builder


class Deployer:
    """Deploys and removes functions on this node."""

    def __init__(
        self,
        config: NodeConfig,
        catalog: Catalog,
        runners: Runners,
        stores: Stores,
    ) -> None:
        self._catalog = catalog
        self._fleet = runners.fleet
        self._jobs = runners.jobs
        self._builder = runners.builder
        self._stores = stores
        self._images = ImageSource(
            stores.containerd, catalog, stores.lazy, config.images.pull_timeout_s
        )
        self._preparing = Preparing(
            self._images, catalog, runners.builder, stores.events, self._settle
        )
        self._max_functions = config.limits.max_functions
        self._facts = node_facts(config)
        # A lock lives as long as somebody holds it or waits for it.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._removals: dict[str, Removal] = {}
        self._coming: set[str] = set()
        self._storing = asyncio.Lock()

    # -- deploying

    async def deploy(self, spec: FunctionSpec, *, wait: bool) -> Deployment:
        """Deploy a checked spec.

        With `wait` returns when the image is Ready and `scaling.min` instances serve; without, a
        version whose image is not here yet is Preparing (`preparing.py`). Raises InvalidSpec,
        NotFound (no such image), AlreadyExists, FailedPrecondition, or FunctionFailed when a wanted
        instance does not start.
        """
        name = parse_image_ref(spec.image).full
        async with self._lock(spec.name):
            with self._catalog.image_use.deploying(name), self._counted(spec.name):
                try:
                    outcome, target = await self._deploy(spec, wait=wait)
                    self._images.keep_credentials(spec)
                finally:
                    deployed = self._catalog.has(spec.name)
                    self._images.deploy_ended(spec.name, deployed=deployed)
        if wait:
            await self._settled(target)
            outcome = replace(outcome, version=target.version)
        return outcome

    @contextlib.contextmanager
    def _counted(self, name: str) -> Iterator[None]:
        """Count a function from its first deploy's begin on; raises FailedPrecondition."""
        there = self._coming | {function.name for function in self._catalog.functions()}
        if name not in there and len(there) >= self._max_functions:
            raise FailedPrecondition(
                f"{self._max_functions} functions are deployed (limits.max_functions); "
                "remove one first"
            )
        self._coming.add(name)
        try:
            yield
        finally:
            self._coming.discard(name)

    def _lock(self, name: str) -> asyncio.Lock:
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = asyncio.Lock()
        return lock

    async def _deploy(self, spec: FunctionSpec, *, wait: bool) -> tuple[Deployment, FunctionTarget]:
        try:
            function = self._catalog.get(spec.name)
            existing = {n: t.version for n, t in function.versions.items()}
            # One that is Preparing is LATEST to be.
            coming = (n for n, version in existing.items() if version.state == "Preparing")
            latest: int | None = max((function.latest, *coming))
        except NotFound:
            existing, latest = {}, None
        fetched = await (self._images.fetch(spec) if wait else self._images.sight(spec))
        facts, here = fetched.facts, fetched.here
        # Of a thousand versions only two can be what is deployed.
        asked = (latest, spec.version)
        known = {n: _identity(v.spec, v.image) if n in asked else "" for n, v in existing.items()}
        decision = decide(known, latest, _identity(spec, facts), spec.version)
        before = existing[latest].spec if latest is not None else None
        warnings = (
            *fetched.warnings,
            *_pull_advice(spec, fetched, before),
            *_advice(spec, facts),
            *(await self._images.advice(facts) if here else ()),
        )
        if not decision.changed:
            target = self._catalog.find(spec.name, str(decision.version))
            await self._again(target, facts, here=here)
            return Deployment(target.version, False, warnings), target
        version = FunctionVersion(
            name=spec.name,
            version=decision.version,
            spec=without_credentials(spec).model_copy(update={"version": decision.version}),
            image=facts,
            state="Ready" if here else "Preparing",
            created_ns=time.time_ns(),
        )
        target = self.target(version)
        try:
            if here:
                await self._builder.check(version)
            await self._finished(target, self._publish(target))
        finally:
            if self._catalog.target(version.key) is not target:
                self._builder.forget(version)
                if not existing:  # its log was made for nothing
                    self._stores.logs.drop(spec.name)
        if not here:
            self.prepare(target)
        return Deployment(version, True, warnings), target

    async def _again(self, target: FunctionTarget, facts: ImageFacts, *, here: bool) -> None:
        """Let a version run that is deployed again and cannot run yet, or not any more."""
        if target.version.state == "Ready":
            return
        if not here:
            if target.version.state == "Failed":
                await self._preparing.end(target)  # it is settled, but may not have ended yet
                await self._finished(target, self._prepares(target))
            self.prepare(target)
            return
        await self._preparing.end(target)
        try:
            whole = replace(target.version, image=facts, state="Ready", reason="")
            await self._builder.check(whole)
            await self._finished(target, self._settle(target, whole))
        finally:
            if target.version.state == "Preparing":  # nobody else is at work on it now
                self.prepare(target)

    async def _finished(self, target: FunctionTarget, work: Coroutine[None, None, bool]) -> None:
        """Do what changes the store to its end."""
        name = target.version.name
        if not await finish(f"deploy {name}", work, within_s=STORE_S):
            raise RuntimeUnavailable(f"{name}: the store does not answer")

    async def _prepares(self, target: FunctionTarget) -> bool:
        """Let the next worker know as well that a Failed version's image is fetched again."""
        async with self._storing:
            self._fleet.mode.check()
            again = replace(target.version, state="Preparing", reason="")
            await self._stores.functions.put(again, latest=False)
            target.prepares()
        return True

    async def _publish(self, target: FunctionTarget) -> bool:
        """Store a new version and let calls find it: both or neither."""
        version = target.version
        # What serves goes on as LATEST until the image of what follows it is here.
        latest = version.state == "Ready"
        async with self._storing:
            self._fleet.mode.check()
            await self._stores.functions.put(version, latest=latest)
            self.install(target, latest=latest)
        self._stores.events.add(
            "FunctionDeployed",
            Subject(version.name, version.version),
            f"{version.name} version {version.version} was deployed",
            self._how_its_image_came(version),
        )
        return True

    def _how_its_image_came(self, version: FunctionVersion) -> dict[str, str]:
        """Return what a deploy's pull took, as its event tells it; nothing when it was here."""
        digest = version.image.digest if version.image is not None else ""
        pull = self._catalog.image_use.pulls.pop(digest, None)
        if pull is None:
            return {}
        return {
            "pull_s": f"{pull.seconds:.3f}",
            "bytes_pulled": str(pull.fetched_bytes),
            "bytes_cached": str(pull.cached_bytes),
        }

    async def _settle(self, target: FunctionTarget, version: FunctionVersion) -> bool:
        """Store what became of a version; one that is Ready is LATEST unless a later one is."""
        async with self._storing:
            if self._catalog.target(version.key) is not target:
                return False
            self._fleet.mode.check()
            ready = version.state == "Ready"
            latest = ready and version.version >= self._catalog.get(version.name).latest
            await self._stores.functions.put(version, latest=latest)
            if ready:
                digest = version.image.digest if version.image is not None else ""
                target.pull = self._catalog.image_use.pulls.pop(digest, None)
                target.mended(version)
            else:
                target.failed(version)
            if latest:
                target.keep_minimum()
                self.install(target, latest=True)
        return True

    def prepare(self, target: FunctionTarget) -> None:
        """Fetch the image of a version that is Preparing, in the background."""
        self._preparing.begin(target)

    async def leave(self) -> None:
        """Leave to the next worker what goes on in the background."""
        await self._preparing.close()
        await self._stores.lazy.close()

    async def stored(self) -> None:
        """Wait until what is being stored is: the next worker reads it then."""
        async with self._storing:
            pass

    def target(self, version: FunctionVersion) -> FunctionTarget:
        """Bind a version to its contract and give it an empty pool."""
        contract = bind(version, self._facts)
        return FunctionTarget(
            version, contract, self._fleet, self._jobs, self._stores.logs.of(version.name)
        )

    def install(self, target: FunctionTarget, *, latest: bool) -> None:
        """Let calls find a target; the version that was LATEST keeps no minimum any more."""
        self._catalog.put(target, latest=latest)
        for other in self._catalog.get(target.version.name).others():
            other.keep_no_minimum()
        self._fleet.timer.visit(target)

    async def _settled(self, target: FunctionTarget) -> None:
        """Wait until `scaling.min` instances serve, or one of them fails to start."""
        pool, scaling = target.pool, target.scaling
        limit = self._fleet.now() + target.contract.limits.start_s + REMOVE_SLACK_S
        target.tick(self._fleet.now())
        while pool.ready_count < pool.policy.min:
            failure = scaling.last_failure
            if failure is not None and not pool.starting and not self._gets_room(failure):
                raise FunctionFailed(failure)
            if not self._fleet.mode.takes_calls:
                raise Overloaded("the node drains: nothing is started", reason="draining")
            if pool.closed or self._fleet.now() > limit:
                raise FailedPrecondition(f"{target.version.name} did not become ready in time")
            await asyncio.sleep(WAIT_STEP_S)

    def _gets_room(self, failure: Failure) -> bool:
        """Say whether a start failed for want of room, and others are about to give way to it."""
        return failure.kind is FailureKind.NO_CAPACITY and self._fleet.admission.leaving()

    # -- removing

    async def remove(self, name: str, *, force: bool) -> None:
        """Remove a function with all versions; drains first, `force` kills. Raises NotFound.

        A removal that is under way is joined, and hastened by `force`. It goes on when the caller
        has gone. Raises RuntimeUnavailable, naming what still drains, when it is late.
        """
        under_way = self._removals.get(name)
        if under_way is not None and await under_way.join(force=force):
            return
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self._lock(name))
            targets = list(self._catalog.get(name).versions.values())
            slowest_s = max(_longest_end_s(target.version) for target in targets)
            left = partial(self._not_ended, name)
            removal = Removal(name, slowest_s + REMOVE_SLACK_S, left)
            self._removals[name] = removal
            stack.callback(self._removals.pop, name)
            # Until all of it has ended nobody deploys the name, whoever still waits.
            removal.begin(self._take_down(removal, targets, stack.pop_all(), force=force))
        await removal.ended()

    async def _take_down(
        self,
        removal: Removal,
        targets: list[FunctionTarget],
        held: contextlib.AsyncExitStack,
        *,
        force: bool,
    ) -> None:
        name = targets[0].version.name

        async def end(force: bool) -> None:
            grace_s = 0.0 if force else None
            await asyncio.gather(*(target.stop(grace_s=grace_s) for target in targets))
            await self._jobs.end_those_of(name, force=force)

        async with held:
            async with self._storing:
                self._fleet.mode.check()
                await self._stores.functions.remove(name)
                self._catalog.remove(name)
                self._images.forget_credentials(name)
            for target in targets:  # not before: a removal that is refused changes nothing
                await self._preparing.end(target)
            await removal.end(end, force=force)
            for target in targets:
                self._builder.forget(target.version)
                image = target.version.image
                if image is not None and not self._catalog.holds_layers(image.chain_id):
                    await self._stores.lazy.drop(image.chain_id)
            self._stores.logs.drop(name)
            self._catalog.image_use.released.set()
            self._stores.events.add("FunctionRemoved", Subject(name), f"{name} was removed")

    def _not_ended(self, name: str) -> list[str]:
        """Return the instances of a function that are still there, jobs' included."""
        return [
            one.id for one in self._fleet.admission.instances.values() if one.version.name == name
        ]


def node_facts(config: NodeConfig) -> NodeFacts:
    """Return what the contracts tell functions of this node."""
    node = config.node
    return NodeFacts(node.region, node.account_id, node.app_id, node.uin)


def _longest_end_s(version: FunctionVersion) -> float:
    """Return how long an instance may take to end: its last call, its hook, TERM and KILL."""
    limits = LIMITS[version.spec.contract]
    return version.spec.timeout_s + limits.pre_stop_s + limits.stop_grace_s


def _identity(spec: FunctionSpec, image: ImageFacts | None) -> str:
    """Return what makes two versions equal: the canonical spec and the digest it runs."""
    return f"{digest(spec)}@{image.digest if image is not None else ''}"


def _advice(spec: FunctionSpec, image: ImageFacts) -> tuple[str, ...]:
    """Return what a platform would advise against, and what is asked for in vain."""
    signals = stop_signal.advice(image.stop_signal)
    return (*_memory_advice(spec, image), *signals, *_unused(spec))


def _pull_advice(
    spec: FunctionSpec, fetched: Fetched, before: FunctionSpec | None
) -> tuple[str, ...]:
    """Say that a tag may stand for something else by now, to who deploys it a second time."""
    if fetched.why_not:
        return (f"{fetched.why_not}; {spec.image} is what was on this node already",)
    reference = parse_image_ref(spec.image)
    asked = fetched.asked or reference.digest or reference.host == LOCAL_HOST
    if asked or before is None or before.image != spec.image:
        return ()
    said = f"{spec.image} is what was on this node already, and its registry was not asked"
    return (f"{said}: deploy with pull=always if the tag has moved",)


def _memory_advice(spec: FunctionSpec, image: ImageFacts) -> tuple[str, ...]:
    size_mb = image.size_bytes // MB
    for below_mb, memory_mb in LIMITS[spec.contract].memory_advice:
        if size_mb < below_mb:
            if spec.memory_mb > memory_mb:
                return ()
            advice = f"{spec.contract} advises more than {memory_mb} MB of memory"
            return (f"the image takes {size_mb} MB: {advice}, the function has {spec.memory_mb}",)
    return ()


def _unused(spec: FunctionSpec) -> tuple[str, ...]:
    """Return a warning for each field that differs from its default and has no effect."""
    silent = _silent(spec.contract, spec.kind)
    asked = [field for field in UNUSED if attrgetter(field)(spec) != attrgetter(field)(silent)]
    return tuple(f"{field} is accepted, but this version does not use it yet" for field in asked)


@cache
def _silent(contract: str, kind: str) -> FunctionSpec:
    """Return what a deploy gets that asks for nothing else."""
    return parse_spec({"name": "f", "image": "i:1", "contract": contract, "kind": kind})
