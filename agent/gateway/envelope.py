"""A call whose request names the function inside its body, and whose answer is wrapped again.

The body is read whole first (bounded), opened by the contracts' own code, and the call inside goes
through an ordinary event exchange. This object stands on both sides of it: the connection gives it
the body, the exchange has it as its `Caller`, whose replies it wraps. The form itself is
`contracts/tencent_api.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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
from agent.gateway.event import EventExchange, JobExchange
from agent.gateway.exchange import Exchange

if TYPE_CHECKING:
    from agent.gateway.client import ClientConnection
    from agent.gateway.head import RequestHead
    from agent.gateway.server import Gateway
    from agent.gateway.template import HeadTemplate

_KEPT = (b"x-kindling-", b"server-timing")


class EnvelopedCall:
    """One such call."""

    movable = True

    def __init__(
        self, gateway: Gateway, client: ClientConnection, head: RequestHead, request_id: str
    ) -> None:
        self._gateway = gateway
        self._client: ClientConnection | None = client
        self._head = head
        self._request_id = request_id
        self._pieces: list[bytes] = []
        self._size = 0
        self._body = b""
        """The whole body, once it is here."""
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
        elif not self._gateway.desk.reserve(len(data)):
            self._size -= len(data)
            self._finish(_crowded(self._request_id))
        else:
            self._pieces.append(data)
            if ended:
                self._open(b"".join(self._pieces))

    def caller_gone(self) -> None:
        """The caller closed its connection."""
        self._client = None
        self._let_go()
        if self._exchange is not None:
            self._exchange.caller_gone()

    def caller_full(self) -> None:
        """Nothing: the reply is written whole."""

    def caller_drained(self) -> None:
        """Nothing: the reply is written whole."""

    def withdraw(self) -> tuple[list[bytes], float] | None:
        """Give the request up, whether its body is still being read or the call inside waits."""
        waited_s = 0.0
        if self._exchange is not None:
            left = self._exchange.withdraw()
            if left is None:
                return None
            waited_s = left[1]
        pieces = list(self._pieces) if self._exchange is None else [self._body]
        self._client = None
        self._let_go()
        return pieces, waited_s

    # -- from the exchange inside

    def whole(self, head: HeadTemplate, request_id: bytes, body: bytes) -> bool:
        """Heads are wanted as pairs here."""
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
        self._tell(Reply(wrapped.status, [*wrapped.headers, *ours], wrapped.body))

    def more(self, data: bytes, ended: bool) -> None:
        """Nothing: an event exchange tells its reply whole."""

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

    # -- inside

    def _open(self, body: bytes) -> None:
        self._let_go()
        client = self._client
        if client is None:
            return
        self._body = body
        opened = parse(self._head.headers, body, self._request_id)
        if isinstance(opened, Reply):
            self._finish(opened)
            return
        try:
            view = self._gateway.find(opened.name, opened.qualifier)
        except NotFound as error:
            self._finish(unknown_name(error.message, self._request_id))
            return
        call = self._call(client, opened, view.new_request_id(self._gateway.desk.random()))
        kind = view.kinds["tencent_api"]
        if kind is None:
            route = Route("tencent_api", opened.name, opened.qualifier)
            self._finish(refusal(route, view.contract, call) or _crowded(call.request_id))
            return
        if opened.asynchronous and kind != "job":  # a job is answered at its start anyway
            message = "InvocationType Event is not served yet: leave it out to wait for the result."
            self._finish(api_error("UnsupportedOperation", message, call.request_id))
            return
        call.kind = kind
        make = JobExchange if kind == "job" else EventExchange
        exchange = make(self._gateway.desk, view, call, self, len(opened.event))
        exchange.traced = self._head.traced
        exchange.provide(opened.event, True)
        self._exchange = exchange
        exchange.start()

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
        self._let_go()
        client, self._client = self._client, None
        if client is not None:
            client.answer(reply, self._request_id)

    def _tell(self, reply: Reply) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.reply(reply.status, reply.headers, len(reply.body), reply.body, True)

    def _let_go(self) -> None:
        held = sum(map(len, self._pieces))
        self._pieces.clear()
        if held:
            self._gateway.desk.unreserve(held)


def _crowded(request_id: str) -> Reply:
    message = "too many large requests are waiting; try again"
    refused = api_error("RequestLimitExceeded", message, request_id)
    return Reply(refused.status, [*refused.headers, retry_after(1.0)], refused.body)
