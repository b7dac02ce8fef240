"""What every platform dialect must answer, and the plain values it is asked with.

A contract object is bound to one function version, so that everything fixed (header bytes,
environment, limits) is computed once at deploy and a warm call only joins bytes. Contracts are
pure: no I/O, no clock, no randomness; request ids are made from random bytes passed in.

Header lists are pairs of bytes as they came over the wire; names keep the sender's case, and are
compared lower-cased. `agent/contracts/bind.py` is the only place that knows all dialects.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from agent.model.failure import Failure
from agent.model.records import ColdStart, FunctionVersion, Meters

Headers = list[tuple[bytes, bytes]]
CallKind = Literal["event", "http", "job"]
HookName = Literal["initialize", "pre_freeze", "pre_stop"]


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """Who the node says it is."""

    region: str = "local"
    account_id: str = "0"
    app_id: str = "0"
    uin: str = "0"


@dataclass(slots=True, init=False)
class Call:
    """One call as a contract sees it.

    `target` is the path and query for the container, undecoded. `headers` are the caller's, but for
    those that stand in `lines`: whole lines with fields that no dialect looks at (`looked_at`),
    which go to the container as they are. `remote` is the real peer's address. `kind` is how the
    caller called, not what the function is.
    """

    request_id: str
    kind: CallKind
    method: bytes
    target: bytes
    headers: Sequence[tuple[bytes, bytes]]
    remote: str
    host: str
    scheme: str
    qualifier: str
    instance: str
    want_log_tail: bool
    lines: bytes

    def __init__(  # noqa: PLR0913, PLR0917 - made for every call; what a dataclass makes would be slower
        self,
        request_id: str,
        kind: CallKind,
        method: bytes,
        target: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        remote: str = "",
        host: str = "",
        scheme: str = "http",
        qualifier: str = "LATEST",
        instance: str = "",
        want_log_tail: bool = False,
        lines: bytes = b"",
    ) -> None:
        self.request_id = request_id
        self.kind = kind
        self.method = method
        self.target = target
        self.headers = headers
        self.remote = remote
        self.host = host
        self.scheme = scheme
        self.qualifier = qualifier
        self.instance = instance
        self.want_log_tail = want_log_tail
        self.lines = lines


@dataclass(slots=True)
class CallReport:
    """What is known when a call has ended. `log_tail` is at most 4 KB, raw.

    Made for every call, so not frozen; nobody changes it.
    """

    meters: Meters
    cold_start: ColdStart | None = None
    log_tail: bytes = b""
    instance: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole reply to the caller. Content-Length and connection headers are the gateway's."""

    status: int
    headers: Headers
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Hook:
    """A request the platform makes of its own to the container."""

    name: HookName
    method: bytes
    path: bytes
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes and times in seconds of one bound contract; 0 means no such thing here."""

    request_bytes: int
    response_bytes: int
    async_bytes: int
    header_bytes: int
    target_bytes: int
    start_s: float
    call_s: float
    stop_grace_s: float = 30.0


@dataclass(slots=True)
class JobInput:
    """How a job gets its event: environment added for this one run."""

    environment: dict[str, str] = field(default_factory=dict)


class Contract(ABC):
    """One platform's behaviour, bound to one function version."""

    name: str
    kind: str
    port: int
    limits: Limits
    doors: frozenset[str]
    """Which doors admit this function: a subset of {"fc_api", "tencent_api", "invoke", "http"}."""

    def __init__(self, version: FunctionVersion, node: NodeFacts) -> None:
        self.version = version
        self.node = node

    # -- before the container runs

    @abstractmethod
    def environment(self, instance: str) -> dict[str, str]:
        """Return one instance's environment: it goes over the image's and under the spec's."""

    @abstractmethod
    def hook(self, name: HookName) -> Hook | None:
        """Return the hook if this function has it configured, else None."""

    @abstractmethod
    def hook_head(self, hook: Hook, request_id: str, instance: str) -> bytes:
        """Return the raw HTTP/1.1 request head of a hook, without a body."""

    def job_input(self, event: bytes, request_id: str) -> JobInput:
        """Return how a job gets its event.

        Raises InvalidSpec naming the limit when the event does not fit or holds a NUL byte. Only
        called for kind `job`.
        """
        raise NotImplementedError(f"contract {self.name} has no jobs")

    # -- a call

    @abstractmethod
    def new_request_id(self, random: bytes) -> str:
        """Return a request id in the platform's form from 16 random bytes."""

    @abstractmethod
    def request_head(self, call: Call, length: int | None) -> bytes:
        """Return the raw HTTP/1.1 request head for the container.

        `length` is the body's size in bytes, 0 for none, None when it is streamed (then the head
        says chunked). For an event call the contract chooses method, path and content type; for an
        HTTP call `call.method` and `call.target` pass unchanged. Forged platform headers and
        hop-by-hop headers are gone; `traceparent` is passed on, or made from the request id.
        """

    @abstractmethod
    def http_reply(self, call: Call, status: int, headers: Headers, report: CallReport) -> Headers:
        """Return the headers that reach the caller of an HTTP call; status and body pass.

        Raises FunctionFailed(RESPONSE_HEADERS_TOO_LARGE). Called before the body has come, so
        `report` holds what is known by then (instance and cold start). Of `call` only kind and
        request id may show in the answer: the gateway keeps it for heads that come again.
        """

    @abstractmethod
    def event_reply(
        self, call: Call, status: int, headers: Headers, body: bytes, report: CallReport
    ) -> Reply:
        """Return the reply to an event call, whole; the container's answer was buffered."""

    @abstractmethod
    def job_reply(
        self, call: Call, exit_code: int | None, output: bytes, report: CallReport
    ) -> Reply:
        """Return the reply to a call of a job; `exit_code` is None when it has only started."""

    @abstractmethod
    def error(self, failure: Failure, call: Call, report: CallReport | None = None) -> Reply:
        """Return the platform's words for a failure."""

    def waits_for_job(self) -> bool:
        """Say whether a call of a job is answered at its exit (True) or at its start (False)."""
        return False

    # -- afterwards

    @abstractmethod
    def billed_ms(self, wall_ms: float) -> float:
        """Return the billed milliseconds of a call that took `wall_ms`."""

    def log_before(self, request_id: str) -> Sequence[str]:
        """Return the platform's lines in the function's log before a call."""
        return ()

    def log_after(self, request_id: str, meters: Meters, error: str = "") -> Sequence[str]:
        """Return the platform's lines in the function's log after a call; `error` says why not."""
        return ()

    def log_hook(self, hook: Hook, request_id: str) -> tuple[str, str] | None:
        """Return the platform's lines in the function's log before and after a hook, if any."""
        return None
