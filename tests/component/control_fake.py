"""A node for the door's tests: keeps what it is given, answers what it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from agent.control.node import (
    CapacityView,
    Deployed,
    FunctionView,
    GarbageReport,
    GarbageView,
    ImageDetail,
    ImageStep,
    ImageView,
    InstanceView,
    InvokeCall,
    InvokeResult,
    LayerView,
    LogEntry,
    LogQuery,
    NodeView,
    WatchedEvent,
)
from agent.core.image_gc import Amount
from agent.core.pull_progress import PullState
from agent.errors import NotFound
from agent.model.records import CallRecord, ColdStart, FunctionVersion, ImageFacts, Meters
from agent.model.spec import FunctionSpec, RegistrySpec
from agent.model.spec_parse import parse_spec
from agent.rootless.outcome import DONE, FAILED, RUNNING, ReloadOutcome
from agent.telemetry.logs import LogLine

AT_NS = 1_700_000_000_123_456_789

COLD = ColdStart(
    total_ms=20.0,
    queue_ms=0.5,
    image_ms=1.0,
    slots_ms=0.25,
    create_ms=10.0,
    start_ms=4.25,
    listen_ms=4.0,
    bytes_pulled=7,
    cached=("image", "network"),
)
CAPACITY = CapacityView(
    AT_NS, 1 << 34, 1 << 30, 2000, 500, 512, 3, 2, 1, False, {512: 9, 10240: 1}, 1 << 33
)
IMAGE = ImageView(
    "kindling.local/hello:1",
    "sha256:" + "a" * 64,
    12345,
    AT_NS,
    ("hello",),
    unpacked_bytes=40_000,
    form="unpacked",
    used_ns=AT_NS,
)
DETAIL = ImageDetail(
    IMAGE,
    "application/vnd.oci.image.manifest.v1+json",
    "sha256:" + "c" * 64,
    '{"config": {"Env": ["A=1", "B=2"], "Cmd": ["/serve", "-v"], "Labels": {"by": "me"}, '
    '"ExposedPorts": {"80/tcp": {}}, "User": "7", "Volumes": null}}',
    (LayerView("sha256:" + "d" * 64, "tar+gzip", 12000, 40_000),),
)
GARBAGE = GarbageReport(
    (
        GarbageView("layers", "view-sha256:e", Amount(1_000_000, 10)),
        GarbageView("image", "docker.io/library/old:1", Amount(2_000_000, 20)),
    ),
    Amount(3_000_000, 30),
    Amount(7_000_000, 70),
    Amount(20_000_000, 1 << 62),
)


def spec(name: str = "hello", **fields: Any) -> FunctionSpec:
    return parse_spec({"name": name, "image": "kindling.local/hello:1", "contract": "fc", **fields})


def version(of: FunctionSpec, number: int = 1) -> FunctionVersion:
    facts = ImageFacts(of.image, "sha256:" + "a" * 64, "sha256:" + "b" * 64, 12345)
    return FunctionVersion(of.name, number, of, facts, "Ready", AT_NS)


class FakeNode:
    """Implements agent.control.node.Node; `error` is raised by the next call if it is set."""

    def __init__(self) -> None:
        self.deployed: dict[str, list[FunctionVersion]] = {}
        self.error: Exception | None = None
        self.seen: list[Any] = []
        self.registries: list[RegistrySpec] = []
        self.until: float | None = None
        self.imported = b""
        self.closed: asyncio.Queue[str] = asyncio.Queue()
        self.result: InvokeResult | None = None
        self.lines: asyncio.Queue[LogEntry] = asyncio.Queue()
        self.outcome = ReloadOutcome()
        # How often a reload that was asked for is seen running, and why it fails then, if it does.
        self.reload_looks = 0
        self.reload_reason = ""
        # Until it is set nothing happens that a watcher could see.
        self.quiet = asyncio.Event()
        self.quiet.set()

    def _come(self, *what: Any) -> None:
        self.seen.append(what)
        if self.error is not None:
            raise self.error

    def _view(self, name: str) -> FunctionView:
        found = self.deployed.get(name)
        if not found:
            raise NotFound(f"no function {name}: 'kindling status' lists what is deployed")
        one = InstanceView(f"{name}-0badcafe", name, found[-1].version, "READY", 1, AT_NS, COLD)
        return FunctionView(name, found[-1], tuple(found), (one,))

    async def deploy(self, spec: FunctionSpec, *, wait: bool) -> Deployed:
        self._come("deploy", spec, wait)
        kept = self.deployed.setdefault(spec.name, [])
        if kept and kept[-1].spec == spec:
            return Deployed(kept[-1], created=False)
        kept.append(version(spec, len(kept) + 1))
        return Deployed(kept[-1], created=True, warnings=("give it more memory",))

    async def remove(self, name: str, *, force: bool) -> None:
        self._come("remove", name, force)
        self._view(name)
        del self.deployed[name]

    async def get(self, name: str, qualifier: str) -> FunctionView:
        self._come("get", name, qualifier)
        return self._view(name)

    async def functions(self) -> Sequence[FunctionView]:
        self._come("functions")
        return [self._view(name) for name in reversed(list(self.deployed))]

    async def instances(self, function: str) -> Sequence[InstanceView]:
        self._come("instances", function)
        names = [function] if function else list(self.deployed)
        return [one for name in names for one in self._view(name).instances]

    async def pull_image(
        self, ref: str, registry: RegistrySpec, *, lazily: bool = False
    ) -> AsyncIterator[ImageStep]:
        self._come("pull_image", ref, *(["lazily"] if lazily else []))
        self.registries.append(registry)
        whole = PullState("downloading", 70, 100, 1, 2, 1.5)
        yield ImageStep("downloading", "layer", 5, 10, whole=whole)
        yield ImageStep("done", done=IMAGE, warnings=("it has no index",) if lazily else ())

    async def set_registry_credentials(
        self, host: str, registry: RegistrySpec, until: float | None
    ) -> None:
        self._come("set_registry_credentials", host)
        self.registries.append(registry)
        self.until = until

    async def import_image(
        self, chunks: AsyncIterator[bytes], name: str, *, everything: bool = False
    ) -> Sequence[ImageView]:
        self._come("import_image", *([name] if name or not everything else ["all"]))
        async for chunk in chunks:
            self.imported += chunk
        return [IMAGE]

    async def images(self) -> Sequence[ImageView]:
        self._come("images")
        return [IMAGE]

    async def image(self, name: str) -> ImageDetail:
        self._come("image", name)
        return DETAIL

    async def collect_garbage(self, *, dry_run: bool) -> GarbageReport:
        self._come("collect_garbage", dry_run)
        return GARBAGE

    async def remove_image(self, name: str) -> None:
        self._come("remove_image", name)

    async def accelerate_image(self, ref: str, registry: RegistrySpec) -> tuple[str, str]:
        self._come("accelerate_image", ref, registry)
        return "sha256:1", "soci"

    async def invoke(self, call: InvokeCall) -> InvokeResult:
        self._come("invoke", call)
        if self.result is not None:
            return self.result
        return InvokeResult(
            "1-12345678-12345678-123456789abc",
            200,
            [(b"x-fc-instance-id", b"hello-0badcafe")],
            b"\x00result",
            COLD,
            Meters(wall_ms=16.81, billed_ms=17.0, memory_gb_s=0.002, cpu_ms=3.5),
            b"last line",
            "hello-0badcafe",
        )

    async def run_job(
        self, name: str, qualifier: str, event: bytes, *, wait: bool, request_id: str
    ) -> CallRecord:
        self._come("run_job", name, qualifier, event, wait, request_id)
        if wait:
            return CallRecord("c1", name, 1, "i1", "Succeeded", AT_NS, AT_NS, AT_NS, exit_code=0)
        return CallRecord("c1", name, 1, "i1", "Running", AT_NS, AT_NS)

    async def get_call(self, call: str) -> CallRecord:
        self._come("get_call", call)
        return CallRecord(call, "job", 1, "i1", "Failed", AT_NS, AT_NS, AT_NS, 0, 3, "exited")

    async def stop_call(self, call: str) -> CallRecord:
        self._come("stop_call", call)
        raise NotImplementedError

    async def logs(self, name: str, query: LogQuery) -> AsyncIterator[LogEntry | None]:
        self._come("logs", name, query)
        try:
            if query.follow:
                yield None
                await self.quiet.wait()
            yield LogEntry(LogLine(AT_NS, "stderr", "i1", 1, "caf\udce9", more=True), 4)
            while query.follow:
                yield await self.lines.get()
        finally:
            self.closed.put_nowait("logs")

    async def events(
        self, resume_token: str, functions: frozenset[str]
    ) -> AsyncIterator[WatchedEvent | None]:
        self._come("events", resume_token, functions)
        yield None
        await self.quiet.wait()
        yield WatchedEvent(
            "8", AT_NS, "InstanceReady", "hello", 1, "i1", "", "ready", {"port": "9000"}
        )

    async def info(self) -> NodeView:
        self._come("info")
        if self.outcome.state == RUNNING:
            self.reload_looks -= 1
            if self.reload_looks < 0:
                ended = FAILED if self.reload_reason else DONE
                self.outcome = ReloadOutcome(self.outcome.number, ended, self.reload_reason)
        return NodeView(
            "node",
            "local",
            "0.1.0",
            AT_NS,
            False,
            CAPACITY,
            {"crun": "1.8.1"},
            ("fc",),
            ("x",),
            reload=self.outcome,
        )

    async def capacity(self, min_interval_s: float) -> AsyncIterator[CapacityView]:
        self._come("capacity", min_interval_s)
        yield CAPACITY

    async def drain(self, timeout_s: float | None) -> int:
        self._come("drain", timeout_s)
        return 2

    async def undrain(self) -> None:
        self._come("undrain")

    async def reload(self) -> int:
        self._come("reload")
        self.outcome = ReloadOutcome(self.outcome.number + 1, RUNNING)
        return self.outcome.number
