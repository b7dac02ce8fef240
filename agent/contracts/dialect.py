"""What all dialects share: limits from the one table, request heads joined from fixed bytes.

A dialect says which fixed header lines go with an event call, an HTTP call and a hook; all of them
are made once, at bind. Nothing platform-specific stands here; `fc.py`, `fc2.py`, `scf.py` and
`vercel.py` come next.
"""

from __future__ import annotations

from agent.contracts import headers as h
from agent.contracts.base import Call, Contract, Hook, HookName, Limits, NodeFacts
from agent.contracts.own_errors import retry_after
from agent.contracts.wording import whole_ms
from agent.errors import Bug
from agent.model.failure import Failure
from agent.model.limits import LIMITS, ContractLimits
from agent.model.records import FunctionVersion


class Dialect(Contract):
    """The common ground of the platforms."""

    special = h.REQUEST_SPECIAL
    prefixes: tuple[bytes, ...] = h.CONTROL_PREFIXES
    event_method = b"POST"
    event_path = b"/"

    def __init__(self, version: FunctionVersion, node: NodeFacts) -> None:
        super().__init__(version, node)
        spec = version.spec
        self.name = spec.contract
        self.kind = spec.kind
        self.port = spec.port
        self.table: ContractLimits = LIMITS[spec.contract]
        self.limits = self._limits()
        self._own_host = f"localhost:{self.port}".encode()
        self._hooks = self._configured_hooks()

    def _limits(self) -> Limits:
        spec, table = self.version.spec, self.table
        return Limits(
            request_bytes=table.request_bytes,
            response_bytes=table.response_bytes,
            async_bytes=table.async_bytes,
            header_bytes=table.header_bytes,
            target_bytes=table.target_bytes,
            start_s=spec.startup_timeout_s,
            call_s=spec.timeout_s,
            stop_grace_s=table.stop_grace_s,
        )

    def _configured_hooks(self) -> dict[HookName, Hook]:
        """Return the hooks this contract has and the spec turned on."""
        asked = self.version.spec.hooks
        table = self.table
        found: dict[HookName, Hook] = {}
        rows: tuple[tuple[HookName, bytes, float], ...] = (
            ("initialize", b"POST", table.initialize_s),
            ("pre_freeze", b"GET", table.pre_freeze_s),
            ("pre_stop", b"GET", table.pre_stop_s),
        )
        for name, method, most_s in rows:
            hook = getattr(asked, name)
            if hook is not None and most_s:
                path = h.request_path(hook.path)
                found[name] = Hook(name, method, path, min(hook.timeout_s, most_s))
        return found

    def hook(self, name: HookName) -> Hook | None:
        """Return the hook if this contract has it and the spec turned it on."""
        return self._hooks.get(name)

    def billed_ms(self, wall_ms: float) -> float:
        """Return wall milliseconds rounded up to whole ones."""
        return float(whole_ms(wall_ms))

    # -- for the dialects

    def _http_head(
        self, call: Call, method: bytes, target: bytes, length: int | None, identity: list[bytes]
    ) -> bytes:
        """Join the head of a pass-through call; `identity` is the platform's header lines."""
        host = call.host.encode("latin-1") if call.host else self._own_host
        out = [method, b" ", target, b" HTTP/1.1\r\nHost: ", host, h.CRLF]
        out += identity
        if call.lines:
            out.append(call.lines)
        request_id = call.request_id.encode()
        # A WebSocket begins with a GET (RFC 6455 section 4.1); nothing says what a body would be.
        upgrades = call.kind == "http" and method == b"GET" and length == 0
        h.copy_request(
            out, call.headers, request_id, self.special, self.prefixes, upgrades=upgrades
        )
        out += (h.framing(method, length), h.CRLF)
        return b"".join(out)

    def _fixed_head(self, method: bytes, path: bytes, content_type: bytes = b"") -> bytes:
        """Return the part of a head that never changes: request line, Host, Content-Type."""
        head = method + b" " + path + b" HTTP/1.1\r\nHost: " + self._own_host + h.CRLF
        return head + (b"Content-Type: " + content_type + h.CRLF if content_type else b"")

    def _retry_after(self, failure: Failure) -> list[tuple[bytes, bytes]]:
        return [retry_after(failure.retry_after_s)] if failure.retry_after_s > 0 else []

    def _no_jobs(self) -> Bug:
        return Bug(f"contract {self.name}, kind {self.kind}, was asked for a job of {self._shown}")

    @property
    def _shown(self) -> str:
        return f"{self.version.name} version {self.version.version}"
