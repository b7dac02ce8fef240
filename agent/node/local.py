"""What the scheduler's door asks for, answered by the parts: the agent as one object.

Implements `agent/control/node.py`. It decides nothing: it finds the room that does, and turns what
the room knows into the plain values of the door. Calls go through the gateway, so that a call by
gRPC and one by HTTP cannot differ.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

from agent.calls.target import FunctionTarget
from agent.containerd.keyring import given
from agent.contracts.base import Call
from agent.contracts.bind import DIALECTS
from agent.control.health import Health
from agent.control.node import (
    CapacityView,
    Deployed,
    FunctionView,
    GarbageReport,
    ImageDetail,
    ImageStep,
    ImageView,
    InstanceView,
    InvokeCall,
    InvokeResult,
    LogEntry,
    LogQuery,
    NodeView,
    WatchedEvent,
)
from agent.core.deploy import pick
from agent.deployments.catalog import DeployedFunction
from agent.deployments.indexing import Indexer
from agent.errors import AlreadyExists, InvalidSpec, NotFound, Problem, RuntimeUnavailable
from agent.instances.instance import Instance
from agent.model.records import CallRecord, Meters
from agent.model.spec import FunctionSpec, RegistrySpec
from agent.node.capacity import NodeCapacity
from agent.node.images import IMPORTS, NodeImages
from agent.node.parts import NodeParts
from agent.rootless import installed, outcome
from agent.telemetry.logs import LogLine, read

DRAIN_STEP_S = 0.05


class LocalNode:
    """This node, as the scheduler's door sees it."""

    def __init__(self, parts: NodeParts, health: Health) -> None:
        self._parts = parts
        scratch = parts.config.paths.data / IMPORTS
        pull_s = parts.config.images.pull_timeout_s
        self._images = NodeImages(
            parts.containerd, parts.collector, parts.catalog, parts.lazy, scratch, pull_s
        )
        self._indexer = Indexer(parts.containerd, parts.config.paths.data / "index")
        self._capacity = NodeCapacity(parts)
        self._started_ns = time.time_ns()
        self._health = health
        self._form = installed.form()

    # -- functions

    async def deploy(self, spec: FunctionSpec, *, wait: bool) -> Deployed:
        """See `control.node.Node.deploy`."""
        done = await self._parts.deployer.deploy(spec, wait=wait)
        return Deployed(done.version, done.created, done.warnings)

    async def remove(self, name: str, *, force: bool) -> None:
        """See `control.node.Node.remove`."""
        await self._parts.deployer.remove(name, force=force)

    async def get(self, name: str, qualifier: str) -> FunctionView:
        """See `control.node.Node.get`."""
        function = self._parts.catalog.get(name)
        view = self._view(function)
        if not qualifier:
            return view
        number = pick(name, function.versions, function.latest, qualifier)
        return FunctionView(
            name=name,
            latest=view.latest,
            versions=tuple(v for v in view.versions if v.version == number),
            instances=tuple(i for i in view.instances if i.version == number),
        )

    async def functions(self) -> Sequence[FunctionView]:
        """See `control.node.Node.functions`."""
        latest = [function.current.version for function in self._parts.catalog.functions()]
        return [FunctionView(one.name, one, (one,)) for one in latest]

    def _view(self, function: DeployedFunction) -> FunctionView:
        return FunctionView(
            name=function.name,
            latest=function.current.version,
            versions=tuple(t.version for _, t in sorted(function.versions.items())),
            instances=tuple(self._instances(function.versions.values(), function.name)),
        )

    def _instances(
        self, targets: Iterable[FunctionTarget], function: str = ""
    ) -> Sequence[InstanceView]:
        """Return the instances of a function, or all; `targets` are those of its versions."""
        inflight = {
            member.instance.id: member.inflight for one in targets for member in one.pool.members
        }
        return [
            _instance_view(instance, inflight.get(instance.id, 0))
            for instance in self._parts.runners.fleet.admission.instances.values()
            if not function or instance.version.name == function
        ]

    async def instances(self, function: str) -> Sequence[InstanceView]:
        """See `control.node.Node.instances`."""
        catalog = self._parts.catalog
        if function:
            return self._instances(catalog.get(function).versions.values(), function)
        return self._instances(catalog.targets())

    # -- images

    async def images(self) -> Sequence[ImageView]:
        """See `control.node.Node.images`."""
        return await self._images.list()

    def pull_image(
        self, ref: str, registry: RegistrySpec, *, lazily: bool = False
    ) -> AsyncIterator[ImageStep]:
        """See `control.node.Node.pull_image`."""
        return self._images.pull(ref, registry, lazily=lazily)

    async def set_registry_credentials(
        self, host: str, registry: RegistrySpec, until: float | None
    ) -> None:
        """See `control.node.Node.set_registry_credentials`."""
        self._parts.containerd.keyring.set(host, given(registry), until)

    async def import_image(
        self, chunks: AsyncIterator[bytes], name: str, *, everything: bool = False
    ) -> Sequence[ImageView]:
        """See `control.node.Node.import_image`."""
        return await self._images.load(chunks, name, everything=everything)

    async def image(self, name: str) -> ImageDetail:
        """See `control.node.Node.image`."""
        return await self._images.detail(name)

    async def remove_image(self, name: str) -> None:
        """See `control.node.Node.remove_image`."""
        await self._images.remove(name)

    async def collect_garbage(self, *, dry_run: bool) -> GarbageReport:
        """See `control.node.Node.collect_garbage`."""
        return await self._parts.collector.collect(dry_run=dry_run)

    async def accelerate_image(self, ref: str, registry: RegistrySpec) -> tuple[str, str]:
        """See `control.node.Node.accelerate_image`."""
        return await self._indexer.accelerate(ref, registry)

    # -- calls

    async def invoke(self, call: InvokeCall) -> InvokeResult:
        """See `control.node.Node.invoke`."""
        result = await self._parts.gateway.call(
            call.name,
            kind=call.kind,
            method=call.method,
            path=call.path,
            headers=call.headers,
            body=call.body,
            qualifier=call.qualifier,
            request_id=call.request_id or None,
            want_log_tail=call.want_log_tail,
        )
        report = result.report
        return InvokeResult(
            request_id=result.request_id,
            status=result.status,
            headers=result.headers,
            body=result.body,
            cold_start=result.cold_start,
            meters=report.meters if report is not None else Meters(),
            log_tail=report.log_tail if report is not None else b"",
            instance=report.instance if report is not None else "",
            failure=result.failure,
        )

    async def run_job(
        self, name: str, qualifier: str, event: bytes, *, wait: bool, request_id: str
    ) -> CallRecord:
        """See `control.node.Node.run_job`."""
        target = self._parts.catalog.find(name, qualifier)
        if target.version.spec.kind != "job":
            raise InvalidSpec([Problem("name", f"{name} is no job; call it with Invoke")])
        if request_id:
            await self._never_seen(request_id)
        id = request_id or target.contract.new_request_id(os.urandom(16))
        call = Call(id, "job", b"POST", b"/", [], instance="")
        run = await self._parts.runners.jobs.run(target, call, event)
        await run.wait(to_the_end=wait)
        return run.record

    async def _never_seen(self, request_id: str) -> None:
        """Raise AlreadyExists for an id that is on record; `run` knows those of running jobs."""
        with contextlib.suppress(NotFound):
            known = await self._parts.calls.get(request_id)
            raise AlreadyExists(f"call {request_id} of {known.function} is known here already")

    async def get_call(self, call: str) -> CallRecord:
        """See `control.node.Node.get_call`."""
        running = self._parts.runners.jobs.find(call)
        return running if running is not None else await self._parts.calls.get(call)

    async def stop_call(self, call: str) -> CallRecord:
        """See `control.node.Node.stop_call`."""
        if self._parts.runners.jobs.find(call) is None:
            return await self._parts.calls.get(call)
        return await self._parts.runners.jobs.stop(call)

    # -- watching

    async def logs(self, name: str, query: LogQuery) -> AsyncIterator[LogEntry | None]:
        """See `control.node.Node.logs`."""
        self._parts.catalog.get(name)
        log = self._parts.logs.of(name)
        wanted = await self._filter(query)
        if not query.follow:
            async for line in read(log.entries(), wanted, query.tail):
                yield LogEntry(line)
            return
        follower, kept = log.follow(), log.entries()  # together: no line is missed, none told twice
        lost = 0
        try:
            yield None
            async for line in read(kept, wanted, query.tail):
                yield LogEntry(line)
            async for line in follower:
                if not wanted(line):
                    continue
                yield LogEntry(line, dropped=follower.lost - lost)
                lost = follower.lost
        finally:
            log.unfollow(follower)

    async def _filter(self, query: LogQuery) -> Callable[[LogLine], bool]:
        """Return what tells the lines of an instance or a call; a job's are its instance's."""
        instance, call = query.instance, query.call
        if call and not instance:
            with contextlib.suppress(NotFound):
                instance, call = (await self.get_call(call)).instance, ""
        return lambda line: (not instance or line.instance == instance) and call in line.text

    async def events(
        self, resume_token: str, functions: frozenset[str]
    ) -> AsyncIterator[WatchedEvent | None]:
        """See `control.node.Node.events`."""
        happening = self._parts.events.watch(resume_token, functions)
        yield None
        async for event in happening:
            subject = event.subject
            yield WatchedEvent(
                token=event.token,
                at_ns=event.at_ns,
                type=event.type,
                function=subject.function,
                version=subject.version,
                instance=subject.instance,
                call=subject.call,
                message=event.message,
                details=event.details,
            )

    async def info(self) -> NodeView:
        """See `control.node.Node.info`."""
        parts = self._parts
        return NodeView(
            name=parts.config.node.name,
            region=parts.config.node.region,
            version=parts.components.get("kindling", ""),
            started_ns=self._started_ns,
            draining=not parts.mode.takes_calls,
            capacity=await self._capacity.now(),
            components={**parts.components, "kernel": platform.release()},
            contracts=tuple(DIALECTS),
            features=_features(parts),
            summary=parts.reconciler.sentence,
            reload=outcome.read(parts.config.paths.run),
            form=self._form,
        )

    def capacity(self, min_interval_s: float) -> AsyncIterator[CapacityView]:
        """See `control.node.Node.capacity`."""
        return self._capacity.watch(min_interval_s)

    # -- the node

    async def drain(self, timeout_s: float | None) -> int:
        """See `control.node.Node.drain`."""
        await self._order_drain(True)
        self._parts.mode.drain()
        await self._health.set(serving=False)
        self._parts.events.add("NodeDrainBegan", message="the node takes no new calls")
        limit = asyncio.get_running_loop().time() + (timeout_s if timeout_s is not None else 1e9)
        left = self._inflight()
        while left and asyncio.get_running_loop().time() < limit:
            await asyncio.sleep(DRAIN_STEP_S)
            left = self._inflight()
        if not left:
            self._parts.events.add("NodeDrained", message="nothing is in flight any more")
        return left

    async def _order_drain(self, drained: bool) -> None:
        """Keep an order; not once this worker ends, for the next one may have read it already."""
        self._parts.mode.check()
        await asyncio.to_thread(self._parts.orders.order_drain, drained)
        self._parts.mode.check()

    def _inflight(self) -> int:
        """Return the calls that run or wait for an instance, jobs included."""
        pools = [target.pool for target in self._parts.catalog.targets()]
        calls = sum(pool.inflight + pool.waiting for pool in pools)
        return self._parts.runners.jobs.running + calls

    async def undrain(self) -> None:
        """See `control.node.Node.undrain`."""
        await self._order_drain(False)
        self._parts.mode.undrain()
        await self._health.set(serving=True)
        self._parts.events.add("NodeUndrained", message="the node takes calls again")

    async def reload(self) -> int:
        """See `control.node.Node.reload`."""
        parts = self._parts
        if parts.mode.ends:
            # The supervisor hears this worker no more, or reloads nothing any more.
            mode = parts.mode.mode.value
            raise RuntimeUnavailable(f"this worker is {mode}: ask again in a moment")
        # Read first: whatever is asked for from now on gets a later number than what stands there.
        number = outcome.read(parts.config.paths.run).number + 1
        parts.reload()
        return number


def _instance_view(instance: Instance, inflight: int) -> InstanceView:
    return InstanceView(
        id=instance.id,
        function=instance.version.name,
        version=instance.version.version,
        state="FROZEN" if instance.frozen else instance.state.name,
        inflight=inflight,
        created_ns=instance.created_ns,
        cold_start=instance.cold_start,
    )


def _features(parts: NodeParts) -> tuple[str, ...]:
    """Return what this host makes possible."""
    builder = parts.runners.builder
    found = ["anchored_shims"] if builder.shims.anchored else []
    found += ["fifo_start"] if builder.exec_fifo.works else []
    found += ["lazy_images"] if parts.containerd.lazy else []
    slots = parts.config.storage.writable == "slots"
    return (*found, "quota_slots" if slots else "tmpfs_layers")
