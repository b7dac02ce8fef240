"""What each contract allows and what it assumes: one table, read by specs and by dialects.

The figures are the platforms' own; a line marked `ours` is our choice where they say nothing.
Sizes are bytes, times seconds; 0 means that the contract has no such thing. Nothing here acts:
`model/spec.py` checks specs against it, `agent/contracts` answers calls by it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

KB = 1024
MB = 1024 * KB
GB = 1024 * MB

# Linux: one string of execve(2) is at most 32 pages (MAX_ARG_STRLEN), its NUL included; all of
# arguments and environment at most a quarter of the 8 MB stack.
MAX_STRING_BYTES = 131072
MAX_EXEC_BYTES = 2 * MB
# A pointer per string counts too, and the kernel puts the path, auxv and alignment beside them.
EXEC_POINTER_BYTES = 8
EXEC_RESERVE_BYTES = 4 * KB

RESERVED_ENV_PREFIXES = ("FC_", "SCF_", "TENCENTCLOUD_")
LOG_TAIL_BYTES = 4 * KB


@dataclass(frozen=True, slots=True)
class Range:
    """An inclusive range with the value assumed when the spec is silent."""

    least: float
    most: float
    default: float

    def holds(self, value: float) -> bool:
        """Say whether `value` lies in the range."""
        return self.least <= value <= self.most


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractLimits:
    """One column of the table. The first of `kinds` is assumed when the spec names none."""

    kinds: tuple[str, ...]
    port: Range | None
    """None: the contract has no port. least == most: the port is fixed."""
    start_s: float
    call_s: Range
    concurrency: Range
    """For kind `http`; an event function and a job serve one call at a time."""
    request_bytes: int
    response_bytes: int
    async_bytes: int
    header_bytes: int
    target_bytes: int
    env_bytes: int = 0
    """Names and values of the function's own variables together; 0: only the kernel's limit."""
    image_bytes: int = 0
    image_compressed_bytes: int = 0
    disk_mb: tuple[int, ...] = (512,)
    pids: Range = field(default_factory=lambda: Range(16, 1024, 1024))
    fds: int = 1024
    initialize_s: float = 0.0
    pre_stop_s: float = 0.0
    pre_freeze_s: float = 0.0
    stop_grace_s: float = 30.0
    idle_s: float = 300.0  # ours
    idle_preview_s: float = 300.0
    freeze_after_ms: int = -1
    """-1: instances are not frozen when idle."""
    memory_advice: tuple[tuple[int, int], ...] = ()
    """(image below so many MB, memory above so many MB): a warning at deploy, first match."""


_FC = ContractLimits(
    kinds=("event", "http"),
    port=Range(1, 65535, 9000),
    start_s=120.0,
    call_s=Range(1, 86400, 60),  # default ours
    concurrency=Range(1, 200, 1),
    request_bytes=32 * MB,
    response_bytes=32 * MB,
    async_bytes=128 * KB,
    header_bytes=8 * KB,
    target_bytes=4 * KB,
    env_bytes=4 * KB,
    image_bytes=10 * GB,
    disk_mb=(512, 10240),
    fds=100_000,
    initialize_s=300.0,
    pre_stop_s=90.0,
    freeze_after_ms=0,
)
_FC2 = replace(_FC, kinds=("event", "http", "job"), disk_mb=(512,), pre_freeze_s=90.0)
_SCF_WEB = ContractLimits(
    kinds=("http", "event"),
    port=Range(9000, 9000, 9000),
    start_s=30.0,
    call_s=Range(1, 900, 60),  # default ours
    concurrency=Range(1, 100, 1),  # most ours
    request_bytes=6 * MB,
    response_bytes=6 * MB,
    async_bytes=128 * KB,
    header_bytes=32 * KB,  # ours
    target_bytes=8 * KB,  # ours
    image_compressed_bytes=1 * GB,
    memory_advice=((256, 256), (512, 512), (1024, 1024)),
)
_SCF_JOB = replace(
    _SCF_WEB,
    kinds=("job",),
    port=None,
    start_s=120.0,  # ours: the platform counts pull and start together
    call_s=Range(1, 86400, 86400),  # default ours: a job runs to its end
    concurrency=Range(1, 1, 1),
    request_bytes=MAX_STRING_BYTES,
)
_VERCEL = ContractLimits(
    kinds=("http",),
    port=Range(1, 65535, 80),
    start_s=120.0,  # ours
    call_s=Range(1, 800, 300),
    concurrency=Range(1, 1000, 100),  # ours: the platform has no limit
    pids=Range(16, 32768, 1024),  # ours
    request_bytes=4608 * KB,
    response_bytes=4608 * KB,
    async_bytes=0,
    header_bytes=32 * KB,  # ours
    target_bytes=16 * KB,  # ours
    idle_preview_s=30.0,
)

LIMITS: dict[str, ContractLimits] = {
    "fc": _FC,
    "fc2": _FC2,
    "scf-web": _SCF_WEB,
    "scf-job": _SCF_JOB,
    "vercel": _VERCEL,
}


@dataclass(frozen=True, slots=True)
class HookDefault:
    """Path and time limit of a hook that the spec turns on without saying more."""

    path: str
    timeout_s: float


HOOKS: dict[str, HookDefault] = {
    "initialize": HookDefault("/initialize", 60.0),  # seconds ours
    "pre_stop": HookDefault("/pre-stop", 30.0),  # seconds ours
    "pre_freeze": HookDefault("/pre-freeze", 30.0),  # seconds ours
}

# Ranges that hold under every contract, by the spec's field path.
RANGES: dict[str, Range] = {
    "version": Range(1, 2**31 - 1, 1),
    "memory_mb": Range(128, 32768, 512),
    "cpu_millis": Range(50, 64_000, 1000),
    "max_queue": Range(1, 100_000, 1000),
    "queue_timeout_s": Range(0.1, 86400, 150),
    "scaling.min": Range(0, 1023, 0),
    "scaling.max": Range(1, 1023, 100),
    "scaling.standby": Range(0, 1023, 0),
    "scaling.idle_s": Range(0.1, 7 * 86400, 300),
    "scaling.freeze_after_ms": Range(-1, 86_400_000, -1),
    "health_check.initial_delay_s": Range(0, 120, 0),
    "health_check.period_s": Range(1, 120, 3),
    "health_check.timeout_s": Range(0.1, 30, 1),
    "health_check.failure_threshold": Range(1, 120, 3),
    "health_check.success_threshold": Range(1, 120, 1),
    "async_calls.max_retries": Range(0, 8, 3),
    "async_calls.max_age_s": Range(1, 7 * 86400, 86400),
}

QUEUE_SLACK_S = 30.0
"""How much longer than a start a call waits in the queue, unless the spec says otherwise."""

MAX_MOUNTS = 32
MAX_SECRETS = 64
MAX_LABELS = 64
MAX_EGRESS_RULES = 64
