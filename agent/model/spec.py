"""FunctionSpec: what a function is, with every default filled in.

`canonical` is its stable form: equal bytes mean an equal version. Made by `spec_parse.py` only,
which checks the rules; the names are the same in TOML, JSON and proto.
"""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Kind = Literal["event", "http", "job"]
ContractName = Literal["fc", "fc2", "scf-web", "scf-job", "vercel"]
Init = Literal["auto", "true", "false"]


class _Table(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True
    )


class Secret(_Table):
    """An environment variable whose value is given once, or read from a file of the node."""

    name: str
    value: str | None = Field(default=None, repr=False)
    file: str | None = None


class MountSpec(_Table):
    """A volume of the node's config, bound at `target` inside the container."""

    volume: str
    target: str
    read_only: bool = False


class ScalingSpec(_Table):
    """How many instances there are. `standby` None: as the node sees fit.

    `freeze_after_ms` -1: idle instances are not frozen.
    """

    min: int
    max: int
    standby: int | None
    idle_s: float
    freeze_after_ms: int


class HookSpec(_Table):
    """One hook: a path of the function's own server, and how long it may take."""

    path: str
    timeout_s: float


class HooksSpec(_Table):
    """The hooks that are turned on; None is off."""

    initialize: HookSpec | None = None
    pre_stop: HookSpec | None = None
    pre_freeze: HookSpec | None = None


class HealthCheck(_Table):
    """A GET that the platform repeats while an instance runs."""

    path: str
    initial_delay_s: float
    period_s: float
    timeout_s: float
    failure_threshold: int
    success_threshold: int


class RegistrySpec(_Table):
    """How to reach the image. Name, password and token are never stored (see `canonical`)."""

    username: str = Field(default="", repr=False)
    password: str = Field(default="", repr=False)
    identity_token: str = Field(default="", repr=False)
    ca_pem: str = Field(default="", repr=False)
    credential_command: tuple[str, ...] = ()


class AsyncCalls(_Table):
    """Retries, age and destinations (HTTP URLs, empty for none) of accepted calls."""

    max_retries: int
    max_age_s: float
    on_success: str = ""
    on_failure: str = ""


class FunctionSpec(_Table):
    """A function as deployed. Made by `parse_spec` only: it fills defaults and checks the rules.

    `version` is None unless the deploy names one. `port` is 0 for jobs. `command` and `args`
    override the image's ENTRYPOINT and CMD when not None. `init` says whether the node's init is
    the first process, "auto" that the command decides (`agent/core/init.py`).
    """

    name: str
    version: int | None
    image: str
    contract: ContractName
    kind: Kind
    command: tuple[str, ...] | None
    args: tuple[str, ...] | None
    env: dict[str, str]
    secrets: tuple[Secret, ...]
    mounts: tuple[MountSpec, ...]
    port: int
    user: str
    memory_mb: int
    cpu_millis: int
    pids: int
    disk_mb: int
    timeout_s: float
    startup_timeout_s: float
    concurrency: int
    max_queue: int
    queue_timeout_s: float
    environment: Literal["production", "preview"]
    scaling: ScalingSpec
    hooks: HooksSpec
    health_check: HealthCheck | None
    egress: Literal["all", "none"] | tuple[str, ...]
    acceleration: Literal["auto", "lazy", "eager"]
    pull: Literal["missing", "always", "never"]
    registry: RegistrySpec
    async_calls: AsyncCalls
    on_client_cancel: Literal["keep", "signal", "recycle"]
    labels: dict[str, str]
    init: Init
    wait_for_image: bool

    @property
    def memory_bytes(self) -> int:
        """The hard memory limit."""
        return self.memory_mb << 20


_NEVER_STORED = {"username", "password", "identity_token"}
# What a deploy does, not what a function is: another value is no other version.
_DEPLOYS_ONLY = {"version": True, "pull": True}


def canonical(spec: FunctionSpec) -> bytes:
    """Return the spec as stable JSON: what is stored, and what version equality compares.

    Left out are the version number (it is the answer, not the question), whether the deploy pulls,
    and the registry's credentials, which live in memory only. `parse_spec(json.loads(...))` gives
    the spec back.
    """
    data = spec.model_dump(mode="json", exclude={**_DEPLOYS_ONLY, "registry": _NEVER_STORED})
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest(spec: FunctionSpec) -> str:
    """Return the SHA-256 of the canonical form, in hex."""
    return hashlib.sha256(canonical(spec)).hexdigest()


def without_credentials(spec: FunctionSpec) -> FunctionSpec:
    """Return the spec as a version keeps it: who pulls keeps credentials elsewhere."""
    return spec.model_copy(update={"registry": nothing_given(spec.registry)})


def nothing_given(registry: RegistrySpec) -> RegistrySpec:
    """Return a table without the credentials in it."""
    return registry.model_copy(update=dict.fromkeys(_NEVER_STORED, ""))


def public(spec: FunctionSpec) -> dict[str, object]:
    """Return the spec as plain JSON values without secrets, credentials and what is not kept."""
    data: dict[str, object] = spec.model_dump(
        mode="json", exclude={"pull": True, "registry": _NEVER_STORED}
    )
    data["secrets"] = [{"name": secret.name} for secret in spec.secrets]
    return data
