"""What the scheduler's door asks of the node, as a protocol, and the plain values it gets back.

`agent/node/local.py` implements `Node`; nothing here touches gRPC. Every method may raise
AgentError; a method that is not built raises NotImplementedError and its RPC answers UNIMPLEMENTED.
Async iterators are closed (`aclose`) when the client has gone. Names and qualifiers come unchecked:
an empty qualifier means LATEST, an unknown one is NotFound.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from agent.contracts.base import Headers
from agent.core.image_gc import Amount
from agent.core.pull_progress import PullState
from agent.model.failure import Failure
from agent.model.records import CallRecord, ColdStart, FunctionVersion, Meters
from agent.model.spec import FunctionSpec, RegistrySpec
from agent.rootless.installed import Form
from agent.rootless.outcome import ReloadOutcome
from agent.telemetry.logs import LogLine


@dataclass(frozen=True, slots=True)
class InstanceView:
    """One instance. `state` is a name of the table in core/instance.py, or FROZEN for READY."""

    id: str
    function: str
    version: int
    state: str
    inflight: int
    created_ns: int
    cold_start: ColdStart | None = None


@dataclass(frozen=True, slots=True)
class FunctionView:
    """One function: `versions` oldest first with `latest` among them."""

    name: str
    latest: FunctionVersion
    versions: tuple[FunctionVersion, ...]
    instances: tuple[InstanceView, ...] = ()


@dataclass(frozen=True, slots=True)
class Deployed:
    """The outcome of a deploy. `created` is False when an equal version was there already."""

    version: FunctionVersion
    created: bool
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ImageView:
    """One image by its name in the store; `used_by` are functions whose versions need it.

    `size_bytes` is the compressed size. `form` is unpacked, lazy (its layers come as they are
    read), packed (not unpacked), or "" for what this node cannot run.
    """

    name: str
    digest: str
    size_bytes: int
    created_ns: int
    used_by: tuple[str, ...] = ()
    unpacked_bytes: int = 0
    form: str = ""
    used_ns: int = 0


@dataclass(frozen=True, slots=True)
class LayerView:
    """One layer, lowest first: its blob, that blob's media type, and what it takes unpacked."""

    digest: str
    media_type: str
    size_bytes: int
    unpacked_bytes: int


@dataclass(frozen=True, slots=True)
class ImageDetail:
    """One image with what it says about running it; `config` is its config's JSON."""

    image: ImageView
    media_type: str
    config_digest: str
    config: str
    layers: tuple[LayerView, ...]


@dataclass(frozen=True, slots=True)
class GarbageView:
    """One thing that goes. `kind` is image, layers, lease, engine or unfinished blob."""

    kind: str
    name: str
    freed: Amount


@dataclass(frozen=True, slots=True)
class GarbageReport:
    """What a collection removed, or would remove; how full the store is and may be."""

    removed: tuple[GarbageView, ...]
    freed: Amount
    used: Amount
    most: Amount


@dataclass(frozen=True, slots=True)
class ImageStep:
    """Progress of a pull, or its end: then `done` is the image.

    `name` is the digest of the blob that has come further; `whole` how far the image is.
    """

    phase: str
    name: str = ""
    bytes_done: int = 0
    bytes_total: int = 0
    done: ImageView | None = None
    whole: PullState | None = None
    warnings: tuple[str, ...] = ()
    """What was asked for and not done; with the last step."""


@dataclass(frozen=True, slots=True)
class InvokeCall:
    """A call through the scheduler's door; `path` holds the undecoded path and query.

    For `event` the contract chooses method and path. An empty request id means: make one.
    """

    name: str
    qualifier: str
    kind: Literal["event", "http"]
    method: bytes
    path: bytes
    headers: Headers
    body: bytes
    request_id: str = ""
    want_log_tail: bool = False


@dataclass(frozen=True, slots=True)
class InvokeResult:
    """The reply the invoke endpoint would have sent, and what is known about the call.

    `failure` is set when status and body are the contract's words for a failure.
    """

    request_id: str
    status: int
    headers: Headers
    body: bytes
    cold_start: ColdStart | None = None
    meters: Meters = field(default_factory=Meters)
    log_tail: bytes = b""
    instance: str = ""
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A log line; `dropped` lines were lost just before it because the reader was too slow."""

    line: LogLine
    dropped: int = 0
    call: str = ""
    shared: bool = False


@dataclass(frozen=True, slots=True)
class LogQuery:
    """Which lines: of one instance or call only if named; `tail` None means all that are kept."""

    instance: str = ""
    call: str = ""
    follow: bool = False
    tail: int | None = None


@dataclass(frozen=True, slots=True)
class WatchedEvent:
    """What happened, in the past tense. `token` resumes a watch after this event."""

    token: str
    at_ns: int
    type: str
    function: str = ""
    version: int = 0
    instance: str = ""
    call: str = ""
    message: str = ""
    details: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CapacityView:
    """What there is and what of it is taken. `free_layers` maps a layer's size in MB to a count."""

    at_ns: int
    memory_bytes: int
    memory_used_bytes: int
    cpu_millis: int
    cpu_used_millis: int
    instances: int
    instances_used: int
    inflight: int
    queued: int
    draining: bool
    free_layers: dict[int, int] = field(default_factory=dict)
    image_free_bytes: int = 0


@dataclass(frozen=True, slots=True)
class NodeView:
    """Who the node is; `components` maps names such as containerd to versions.

    `reload` is the last one, number 0 if there was none. `form` tells whether the warm path is
    compiled.
    """

    name: str
    region: str
    version: str
    started_ns: int
    draining: bool
    capacity: CapacityView
    components: dict[str, str] = field(default_factory=dict)
    contracts: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    summary: str = ""
    reload: ReloadOutcome = field(default_factory=ReloadOutcome)
    form: Form = field(default_factory=lambda: Form(compiled=True))


class Node(Protocol):
    """Everything the door can ask for."""

    async def deploy(self, spec: FunctionSpec, *, wait: bool) -> Deployed:
        """Deploy a checked spec; with `wait` return when Ready and `scaling.min` are READY."""

    async def remove(self, name: str, *, force: bool) -> None:
        """Remove a function after draining it; `force` kills."""

    async def get(self, name: str, qualifier: str) -> FunctionView:
        """Return one function; a non-empty qualifier limits versions and instances to that one."""

    async def functions(self) -> Sequence[FunctionView]:
        """Return all functions with LATEST, in any order; other versions and instances are not."""

    async def instances(self, function: str) -> Sequence[InstanceView]:
        """Return the instances of one function, or all for an empty name, in any order."""

    def pull_image(
        self, ref: str, registry: RegistrySpec, *, lazily: bool = False
    ) -> AsyncIterator[ImageStep]:
        """Pull and unpack, `registry` says how for this once; the last step has `done`.

        `lazily`: mounted as a deploy that is lazy would have it, where that can be.
        """

    async def set_registry_credentials(
        self, host: str, registry: RegistrySpec, until: float | None
    ) -> None:
        """Keep credentials for every image of a host until then (wall time); empty: forget."""

    async def import_image(
        self, chunks: AsyncIterator[bytes], name: str, *, everything: bool = False
    ) -> Sequence[ImageView]:
        """Import an archive from its bytes; reads `chunks` to the end or raises.

        `name` chooses one image of several, or names the only one; `everything` imports all.
        """

    async def images(self) -> Sequence[ImageView]:
        """Return all images, in any order."""

    async def image(self, name: str) -> ImageDetail:
        """Return one image with its config and layers."""

    async def remove_image(self, name: str) -> None:
        """Remove an image's name."""

    async def collect_garbage(self, *, dry_run: bool) -> GarbageReport:
        """Remove every image that nothing needs; with `dry_run` say what would go."""

    async def accelerate_image(self, ref: str, registry: RegistrySpec) -> tuple[str, str]:
        """Index an image for lazy starts and push the index; return its digest and its engine."""

    async def invoke(self, call: InvokeCall) -> InvokeResult:
        """Call a function; its failures are results, AgentError means no contract could answer."""

    async def run_job(
        self, name: str, qualifier: str, event: bytes, *, wait: bool, request_id: str
    ) -> CallRecord:
        """Run a job; return when it has started, or with `wait` when it has ended."""

    async def get_call(self, call: str) -> CallRecord:
        """Return a call's record."""

    async def stop_call(self, call: str) -> CallRecord:
        """Ask a call to stop and return its record as it then is."""

    def logs(self, name: str, query: LogQuery) -> AsyncIterator[LogEntry | None]:
        """Return the kept lines, oldest first, and with `follow` those to come.

        With `follow` None comes first: from then on no line is missed.
        """

    def events(
        self, resume_token: str, functions: frozenset[str]
    ) -> AsyncIterator[WatchedEvent | None]:
        """Return events after the token, or from now on; of these functions only if any is named.

        None comes first: from then on no event is missed.
        Raises FailedPrecondition when events after the token are no longer kept.
        """

    async def info(self) -> NodeView:
        """Return who the node is and how it is."""

    def capacity(self, min_interval_s: float) -> AsyncIterator[CapacityView]:
        """Return the capacity at once, then after changes, at most once per interval."""

    async def drain(self, timeout_s: float | None) -> int:
        """Take no new work, wait until nothing is in flight; return what still is at the end."""

    async def undrain(self) -> None:
        """Take work again."""

    async def reload(self) -> int:
        """Ask for a reload; return the number at which, or after which, it has been done."""
