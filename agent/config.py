"""The node's configuration: one TOML file, checked once, with a default for everything.

`kindling run` reads it (by default /etc/kindling/kindling.toml), resolves paths and writes the
result as JSON for the supervisor and the worker. Every path, port and socket can be changed, so
that two agents fit on one host. A wrong value is refused with its field and the way out.
"""

from __future__ import annotations

import os
import tomllib
from ipaddress import IPv4Network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from agent.errors import InvalidSpec, Problem
from agent.model.image_ref import parse_image_ref

DEFAULT_FILE = Path("/etc/kindling/kindling.toml")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PathsSettings(_Section):
    """Where things lie. `run` must be on tmpfs; `lib` holds the private binaries."""

    data: Path = Path("/var/lib/kindling")
    run: Path = Path("/run/kindling")
    lib: Path = Path("/usr/lib/kindling")
    slots: Path = Path("/var/lib/kindling/slots")


class NodeSettings(_Section):
    """Who this node says it is; the names go into headers and environments of the contracts."""

    name: str = Field(default="node", pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")
    region: str = "local"
    account_id: str = "0"
    app_id: str = "0"
    uin: str = "0"


class InvokeSettings(_Section):
    """The callers' door. An empty `listen` closes TCP; an empty `domain` turns Host routing off."""

    listen: str = "127.0.0.1:8080"
    socket: str = "invoke.sock"
    domain: str = ""
    max_connections: int = Field(default=10_000, ge=1)
    idle_timeout_s: float = Field(default=75.0, gt=0)
    head_timeout_s: float = Field(default=30.0, gt=0)


class AdminSettings(_Section):
    """The operators' door: health and metrics."""

    listen: str = "127.0.0.1:8081"
    socket: str = "admin.sock"


class GrpcSettings(_Section):
    """The scheduler's door: two unix sockets, full authority and read-only."""

    socket: str = "kindling.sock"
    readonly_socket: str = "kindling-ro.sock"
    max_connections: int = Field(default=256, ge=1)


def _network(entry: str) -> str:
    try:
        return str(IPv4Network(entry))
    except ValueError as error:
        # Braces would be fields of the message's template.
        reason = {"reason": str(error)}
        text = "{reason}: write it like 10.0.0.0/8"
        raise PydanticCustomError("network", text, reason) from error


class NetworkSettings(_Section):
    """Function networks: one veth per instance on a bridge inside the detached namespace.

    `deny` are IPv4 networks that no function reaches, whatever its egress says.
    """

    subnet: str = "172.30.0.0/16"
    bridge: str = Field(default="kd0", pattern=r"^[a-z][a-z0-9]{0,11}$")
    warm_slots: int = Field(default=8, ge=0, le=512)
    mtu: int = Field(default=1500, ge=576, le=65520)
    deny: tuple[Annotated[str, AfterValidator(_network)], ...] = Field(default=(), max_length=1024)


class StorageSettings(_Section):
    """The writable layer of instances: provisioned slots, or tmpfs counted as their memory."""

    writable: Literal["slots", "tmpfs"] = "slots"
    inodes: int = Field(default=65536, ge=1024)


def _reference(text: str) -> str:
    try:
        return parse_image_ref(text).full
    except ValueError as error:
        raise PydanticCustomError("image", "{reason}", {"reason": str(error)}) from error


LONGEST_PULL_S = 86_400.0


class ImagesSettings(_Section):
    """The image store: how large it may get, and what is collected when.

    `max_bytes` and `max_files` 0 mean four fifths of what the file system below `paths.data` has.
    Above `gc_high_percent` of either, images that nothing needs go, least recently used first,
    until `gc_low_percent` is left; those used within `min_age_s` stay unless a pull finds no room.
    What `keep` names is never collected. A pull may take `pull_timeout_s`; one that brings nothing
    ends much earlier, and what an interrupted one brought is gone on with.
    """

    max_bytes: int = Field(default=0, ge=0)
    max_files: int = Field(default=0, ge=0)
    # 10 GB, the largest image that any contract allows, at half a megabyte per second.
    pull_timeout_s: float = Field(default=21_600, gt=0, le=LONGEST_PULL_S)
    gc_high_percent: float = Field(default=85, gt=0, le=100)
    gc_low_percent: float = Field(default=70, ge=0, lt=100, validate_default=True)
    gc_interval_s: float = Field(default=60, gt=0)
    min_age_s: float = Field(default=120, ge=0)
    keep: tuple[Annotated[str, AfterValidator(_reference)], ...] = Field(
        default=(), max_length=1024
    )

    @field_validator("gc_low_percent")
    @classmethod
    def _below_the_high_one(cls, low: float, info: ValidationInfo) -> float:
        high = info.data.get("gc_high_percent")
        if high is not None and low >= high:
            told = {"high": f"{high:g}"}
            raise PydanticCustomError("mark", "must be below gc_high_percent, {high}", told)
        return low


class RuntimeSettings(_Section):
    """How containers are made. `shims` 0 means two anchored shims per core.

    `fifo` starts them without asking their shim, where the runtime was seen to take that.
    """

    binary: Literal["auto", "crun", "runc"] = "auto"
    shims: int = Field(default=0, ge=0, le=64)
    anchored: bool = True
    fifo: bool = True
    create_timeout_s: float = Field(default=20.0, gt=0)
    max_instances: int = Field(default=512, ge=1, le=1023)
    parallel_starts: int = Field(default=8, ge=1, le=64)


class StandbySettings(_Section):
    """Containers kept created and not started, a megabyte each, within `memory_mb` on the node.

    `auto` keeps one for a busy function whose spec does not say: until `busy_s` after a call had to
    wait for a start, and as long as something of it serves. One is replaced when it is `max_age_s`
    old, for its environment, credentials too, is that of its making.
    """

    memory_mb: int = Field(default=64, ge=0)
    auto: bool = True
    busy_s: float = Field(default=600.0, gt=0)
    max_age_s: float = Field(default=3600.0, ge=1)


# How soci-snapshotter is told to work here. Completing an image is the agent's, by an ordinary pull
# that outlives the daemon, so it fetches nothing by itself. What a layer's index lacks is not asked
# for again and again (http); a read waits about 95 s for a registry that is away, and whether one
# still gives a layer is looked at when a mount is asked for, not once a minute (blob). Layers never
# change: the kernel may keep for good what it was told of their files (fuse).
SOCI_SETTINGS = """\
[http]
MaxRetries = 1
[blob]
max_retries = 16
max_wait_msec = 10000
valid_interval = 4
[background_fetch]
disable = true
[fuse]
attr_timeout = 86400
entry_timeout = 86400
negative_timeout = 86400
[snapshotter]
allow_invalid_mounts_on_restart = true
"""


class EngineSettings(_Section):
    """A daemon that mounts images whose layers are still at their registry, as a snapshotter.

    It is there when `binary` is found in the private binaries or on PATH. An image is indexed for
    it if its registry has a referrer of the artifact type `mark`, or each larger layer is annotated
    with `mark`. `settings` is its own configuration file, `place` a directory compiled into it,
    `indexer` the program that makes and pushes an index. containerd learns of engines when it is
    started: a reload brings none.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9]{0,15}$")
    binary: str
    found_by: Literal["referrer", "annotation"]
    mark: str
    settings: str = ""
    place: str = ""
    indexer: str = ""


ENGINES = (
    EngineSettings(
        name="soci",
        binary="soci-snapshotter-grpc",
        found_by="referrer",
        mark="application/vnd.amazon.soci.index.v1+json",
        settings=SOCI_SETTINGS,
        place="/var/lib/soci-snapshotter-grpc",
        indexer="soci",
    ),
    EngineSettings(
        name="stargz",
        binary="containerd-stargz-grpc",
        found_by="annotation",
        mark="containerd.io/snapshot/stargz/toc.digest",
        settings="[snapshotter]\nallow_invalid_mounts_on_restart = true\n",
    ),
)


class LazySettings(_Section):
    """Images that start before they are here. No `engines`: every image is unpacked whole.

    Under `acceleration = "auto"` images of less than `least_mb` compressed are fetched whole.
    Completing a lazy image begins `complete_after_s` after its deploy. An engine that has not
    answered for `stuck_after_s` is ended and started anew.
    """

    engines: tuple[EngineSettings, ...] = ENGINES
    least_mb: int = Field(default=64, ge=0)
    complete_after_s: float = Field(default=10.0, ge=0)
    stuck_after_s: float = Field(default=15.0, ge=2)


class RegistriesSettings(_Section):
    """How registries are reached: `<directory>/<host>/hosts.toml`, or Docker's certificates."""

    directory: Path | None = Path("/etc/kindling/registries")


class LimitsSettings(_Section):
    """Bounds on what the node keeps and how long it waits."""

    max_functions: int = Field(default=1000, ge=1)
    memory_mb: int = Field(default=0, ge=0)
    stop_timeout_s: float = Field(default=20.0, gt=0, le=600)
    zombie_s: float = Field(default=30.0, gt=0)
    log_bytes: int = Field(default=1 << 20, ge=4096)  # of one function's log
    logs_bytes: int = Field(default=64 << 20, ge=1 << 20)  # of all logs together
    calls_kept: int = Field(default=10_000, ge=1)


class NodeConfig(_Section):
    """The whole configuration of one agent."""

    paths: PathsSettings = PathsSettings()
    node: NodeSettings = NodeSettings()
    invoke: InvokeSettings = InvokeSettings()
    admin: AdminSettings = AdminSettings()
    grpc: GrpcSettings = GrpcSettings()
    network: NetworkSettings = NetworkSettings()
    storage: StorageSettings = StorageSettings()
    images: ImagesSettings = ImagesSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    standby: StandbySettings = StandbySettings()
    lazy: LazySettings = LazySettings()
    registries: RegistriesSettings = RegistriesSettings()
    limits: LimitsSettings = LimitsSettings()
    volumes: dict[str, Path] = Field(default_factory=dict)

    def socket_path(self, name: str) -> Path:
        """Return the absolute path of a socket given relative to the run directory."""
        return self.paths.run / name


def load(path: Path | None) -> NodeConfig:
    """Read and check a configuration file.

    With None the default file is read if it exists, else everything has its default. Raises
    InvalidSpec naming each wrong field, or the file and line that is not TOML.
    """
    if path is None:
        if not DEFAULT_FILE.exists():
            return NodeConfig()
        path = DEFAULT_FILE
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise InvalidSpec([Problem(str(path), f"cannot be read: {reason}")]) from error
    except (ValueError, RecursionError) as error:
        raise InvalidSpec([Problem(str(path), f"is not TOML: {error}")]) from error
    try:
        return NodeConfig.model_validate(data)
    except ValidationError as error:
        raise InvalidSpec(
            [Problem(_field(item["loc"]), item["msg"]) for item in error.errors()]
        ) from error


def _field(path: tuple[str | int, ...]) -> str:
    """Return a field's path as the file's reader would write it: `network.deny[1]`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return "".join(parts).removeprefix(".")
