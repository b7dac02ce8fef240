"""What is kept about versions, instances, starts and calls: frozen, slotted, plain.

Wall-clock times are nanoseconds since the epoch and end in `_ns`; durations are float seconds or
milliseconds and say which. `agent/store` keeps these, `agent/control` converts them for the wire.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from agent.model.spec import FunctionSpec


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """An image as the runtime needs it; `digest` is that of the linux/amd64 manifest."""

    ref: str
    digest: str
    chain_id: str
    size_bytes: int
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    workdir: str = "/"
    user: str = ""
    stop_signal: str = "SIGTERM"
    volumes: tuple[str, ...] = ()
    compressed_bytes: int = 0


@dataclass(frozen=True, slots=True)
class FunctionVersion:
    """One deployed version. `state` is Preparing, Ready or Failed (then `reason` says why)."""

    name: str
    version: int
    spec: FunctionSpec
    image: ImageFacts | None
    state: str
    created_ns: int
    reason: str = ""

    @property
    def key(self) -> tuple[str, int]:
        """Name and version: what pools and instances hang on."""
        return (self.name, self.version)


@dataclass(frozen=True, slots=True)
class ColdStart:
    """The itemised start of one instance, milliseconds. `total_ms` is measured on its own clock.

    The phases are disjoint and follow each other: queue (decision to builder), image, slots,
    create, start, listen, init. `cached` names what was found ready. Before them it may have waited
    `pull_ms` for its image, of which so many compressed bytes were fetched for it or were here.
    """

    total_ms: float
    queue_ms: float = 0.0
    image_ms: float = 0.0
    slots_ms: float = 0.0
    create_ms: float = 0.0
    start_ms: float = 0.0
    listen_ms: float = 0.0
    init_ms: float = 0.0
    bytes_pulled: int = 0
    cached: tuple[str, ...] = ()
    bytes_cached: int = 0
    pull_ms: float = 0.0

    def phases(self) -> dict[str, float]:
        """Return the phases by name, milliseconds, in order."""
        names = ("queue", "image", "slots", "create", "start", "listen", "init")
        return {name: round(getattr(self, f"{name}_ms"), 3) for name in names}


def cold_start_of(data: dict[str, Any] | None) -> ColdStart | None:
    """Read a cold start back from plain JSON values."""
    if data is None:
        return None
    return ColdStart(**{**data, "cached": tuple(data.get("cached", ()))})


@dataclass(frozen=True, slots=True)
class InstanceRecord:
    """What a new worker needs to adopt a running instance; kept on tmpfs beside its FIFOs.

    `owner` is the generation of the worker that starts or ends it; while that one lives, nobody
    else touches it. One that serves is for whoever serves now, unless it is `kept`: a job whose
    caller waits at its owner. `source` is who serves its image's files, if that is a process.
    """

    id: str
    function: str
    version: int
    row: int
    network_slot: int
    address: str
    port: int
    layer_kind: str
    layer_slot: int
    pid: int
    state: str
    created_ns: int
    cold_start: ColdStart | None = None
    owner: int = 0
    kept: bool = False
    source: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> InstanceRecord:
        """Read what `to_json` wrote; raises TypeError or KeyError on anything else."""
        return InstanceRecord(**{**data, "cold_start": cold_start_of(data.get("cold_start"))})


@dataclass(frozen=True, slots=True)
class Exit:
    """How a container's process ended. `peak_bytes` is the instance's memory peak, 0 if unknown."""

    exit_code: int
    signal: int | None
    out_of_memory: bool
    at_ns: int
    peak_bytes: int = 0


@dataclass(slots=True)
class Meters:
    """What one call cost. `billed_ms` is rounded as the contract bills; memory in bytes.

    Nobody changes it, but it is made for every call, and freezing costs a microsecond.
    """

    wall_ms: float = 0.0
    billed_ms: float = 0.0
    memory_gb_s: float = 0.0
    cpu_ms: float = 0.0
    cpu_exact: bool = True
    peak_memory_bytes: int = 0
    pull_s: float = 0.0
    pull_gb_s: float = 0.0


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One call that is worth keeping: jobs, asynchronous calls, failures.

    `state` is Enqueued, Running, Succeeded, Failed, Stopped or Expired.
    """

    id: str
    function: str
    version: int
    instance: str
    state: str
    accepted_ns: int
    started_ns: int = 0
    ended_ns: int = 0
    status: int = 0
    exit_code: int | None = None
    error: str = ""
    meters: Meters = field(default_factory=Meters)
    cold_start: ColdStart | None = None
