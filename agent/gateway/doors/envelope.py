"""A call whose request names the function inside its body, and whose answer is wrapped again.

The body is read whole first (bounded), opened by the contracts' own code, and the call inside goes
through an ordinary event exchange. This object stands on both sides of it: the connection gives it
the body, the exchange has it as its `Caller`, whose replies it wraps. The form itself is
`contracts/tencent_api.py`.
"""

from __future__ import annotations

from typing import Protocol

from agent.calls.ports import Lease
from agent.contracts.base import Call, Headers, Reply
from agent.contracts.doors import Route, refusal
from agent.contracts.own_errors import retry_after
from agent.contracts.tencent_api import (
    BODY_LIMIT_BYTES,
    Envelope,
    api_error,
    parse,
    sealed,
    unknown_name,
)
from agent.errors import NotFound
from agent.gateway.exchanges.buffer import BodyBuffer
from agent.gateway.exchanges.event import EventExchange
from agent.gateway.exchanges.exchange import Exchange
from agent.gateway.exchanges.job import JobExchange
from agent.gateway.exchanges.shared import Callee, SharedState
from agent.gateway.wire.client import ClientConnection
from agent.gateway.wire.head import HeadTemplate, RequestHead

_KEPT = (b"x-kindling-", b"server-timing")


class FunctionDirectory(Protocol):
    """Who knows the functions, and answers what never becomes a call."""

    shared: SharedState

    def find(self, name: str, qualifier: str) -> Callee:
        """Return a deployed function as calls use it; raises NotFound."""

    def answer(self, client: ClientConnection, reply: Reply, request_id: str) -> None:
        """Answer a request that never became a call."""


class _EventInside(EventExchange):
    """The call inside, of an event; with a lease it stays in this worker to its end."""

    def granted(self, lease: Lease) -> None:
        """Use the lease, and let the envelope's body go."""
        if isinstance(self.caller, EnvelopedCall):
            self.caller.let_go()
        super().granted(lease)


class EnvelopedCall:
    """One such call."""

    waited_s = 0.0
    """How long the call has waited in another worker, which passed it on."""

    def __init__(
        self,
        directory: FunctionDirectory,
        client: ClientConnection,
        head: RequestHead,
        request_id: str,
    ) -> None:
        self._directory = directory
        self._shared = directory.shared
        self._client: ClientConnection | None = client
        self._head = head
        self._request_id = request_id
        self.leaving = False
        """Whether its connection is to be passed on: known when the call inside begins."""
        self._size = 0
        self._buffer = BodyBuffer(self._shared)
        """The body, until the call inside has an instance: so long it may have to be given up."""
        self._exchange: Exchange | None = None

    def start(self, length: int | None, first: bytes, done: bool) -> None:
        """Begin to read the body; `length` None means chunks."""
        if (length or 0) > BODY_LIMIT_BYTES:
            self._too_large()
            return
        if not done and self._client is not None:
            self._client.go_ahead()
        if first or done:
            self.request_body(first, done)

    # -- from the connection

    @property
    def limited(self) -> bool:
        """True once the call inside has its own time limit."""
        return self._exchange is not None and self._exchange.limited

    def request_body(self, data: bytes, ended: bool) -> None:
        """Take further bytes of the body."""
        if self._client is None or self._exchange is not None:
            return
        self._size += len(data)
        if self._size > BODY_LIMIT_BYTES:
            self._too_large()
        elif not self._buffer.hold(data):
            self._finish(_crowded(self._request_id))
        elif ended:
            self._open(b"".join(self._buffer.pieces))

    def caller_gone(self) -> None:
        """The caller closed its connection."""
        self._client = None
        self._buffer.let_go()
        if self._exchange is not None:
            self._exchange.caller_gone()

    def caller_full(self) -> None:
        """Nothing: the reply is written whole."""

    def caller_drained(self) -> None:
        """Nothing: the reply is written whole."""

    def withdraw(self) -> tuple[list[bytes], float] | None:
        """Give the request up, whether its body is still being read or the call inside waits."""
        waited_s = self.waited_s
        if self._exchange is not None:
            left = self._exchange.withdraw()
            if left is None:
                return None
            waited_s = left[1]
        pieces = self._buffer.take()
        self._client = None
        self._buffer.let_go()
        return pieces, waited_s

    # -- from the exchange inside

    def ready_reply(self, head: HeadTemplate, request_id: bytes, body: bytes) -> bool:
        """Say no: heads are wanted as pairs here."""
        return False

    def reply(
        self, status: int, headers: Headers, length: int | None, body: bytes, ended: bool
    ) -> None:
        """Wrap the contract's reply, which an event exchange gives whole."""
        exchange = self._exchange
        if exchange is None:
            return
        wrapped = sealed(exchange.call, Reply(status, headers, body), exchange.report)
        ours = [pair for pair in headers if pair[0].lower().startswith(_KEPT)]
        self._give(Reply(wrapped.status, [*wrapped.headers, *ours], wrapped.body))

    def more(self, data: bytes, ended: bool) -> None:
        """Nothing: an event exchange gives its reply whole."""

    def abort(self) -> None:
        """Break off."""
        if self._client is not None:
            self._client.abort()

    def switch(self, headers: Headers, data: bytes) -> None:
        """Nothing: no upgrade passes through this door."""

    def go_ahead(self) -> None:
        """Nothing: the body is here."""

    def pause_request(self) -> None:
        """Nothing: the body is here."""

    def resume_request(self) -> None:
        """Nothing: the body is here."""

    def let_go(self) -> None:
        """Forget the body: the call inside is never given up from now on."""
        self._buffer.let_go()

    # -- inside

    def _open(self, body: bytes) -> None:
        client = self._client
        if client is None:
            return
        self.leaving = client.leaving
        opened = parse(self._head.headers, body, self._request_id)
        if isinstance(opened, Reply):
            self._finish(opened)
            return
        try:
            callee = self._directory.find(opened.name, opened.qualifier)
        except NotFound as error:
            self._finish(unknown_name(error.message, self._request_id))
            return
        call = self._call(client, opened, callee.new_request_id(self._shared.random()))
        kind = callee.kinds["tencent_api"]
        if kind is None:
            route = Route("tencent_api", opened.name, opened.qualifier)
            self._finish(refusal(route, callee.contract, call) or _crowded(call.request_id))
            return
        if opened.asynchronous and kind != "job":  # a job is answered at its start anyway
            message = "InvocationType Event is not served yet: leave it out to wait for the result."
            self._finish(api_error("UnsupportedOperation", message, call.request_id))
            return
        call.kind = kind
        make = JobExchange if kind == "job" else _EventInside
        exchange = make(self._shared, callee, call, self, len(opened.event))
        exchange.traced = self._head.traced
        exchange.waited_s = self.waited_s
        exchange.begin_body(opened.event, True)
        self._exchange = exchange
        exchange.start()
        if kind == "job":  # it has begun
            self.let_go()

    def _call(self, client: ClientConnection, opened: Envelope, request_id: str) -> Call:
        return Call(
            request_id,
            "event",
            self._head.method,
            b"",
            self._head.headers,
            client.remote,
            self._head.host.decode("latin-1"),
            qualifier=opened.qualifier,
            want_log_tail=opened.want_log_tail,
        )

    def _too_large(self) -> None:
        message = f"the request is larger than {BODY_LIMIT_BYTES} bytes"
        self._finish(api_error("RequestSizeLimitExceeded", message, self._request_id))

    def _finish(self, reply: Reply) -> None:
        """Answer without a call."""
        self._buffer.let_go()
        client, self._client = self._client, None
        if client is not None:
            self._directory.answer(client, reply, self._request_id)

    def _give(self, reply: Reply) -> None:
        self._buffer.let_go()
        client, self._client = self._client, None
        if client is not None:
            client.reply(reply.status, reply.headers, len(reply.body), reply.body, True)


def _crowded(request_id: str) -> Reply:
    message = "too many large requests are waiting; try again"
    refused = api_error("RequestLimitExceeded", message, request_id)
    return Reply(refused.status, [*refused.headers, retry_after(1.0)], refused.body)
