"""The callers' door: listens, takes requests from connections, and starts their exchanges.

`Gateway` owns everything between the listening sockets and the functions: connections, the state
that calls share, and the coarse clock that keeps all time limits here. It decides where a request
goes (doors, then the catalog, then the contract); it knows no platform by name and never awaits for
a request. The calls themselves are in `exchanges/`, the bytes in `wire/`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final, cast

from agent.aio.tasks import launch
from agent.calls.ports import Target, TargetFinder
from agent.config import NodeConfig
from agent.contracts.base import Call, CallKind, Reply
from agent.contracts.doors import (
    Doors,
    Route,
    call_options,
    no_door,
    refusal,
    unknown_function,
)
from agent.contracts.headers import looked_at
from agent.contracts.own_errors import own_error
from agent.core.counters import CallCounters
from agent.errors import NotFound
from agent.gateway.doors.envelope import EnvelopedCall
from agent.gateway.doors.local import LocalCaller, LocalResult
from agent.gateway.doors.routed import exchange_of, too_long
from agent.gateway.exchanges.shared import TICK_S, Callee, SharedState
from agent.gateway.wire.client import ClientConnection
from agent.gateway.wire.head import RequestHead
from agent.gateway.wire.passing import TAKEN_AT_ONCE, Passed, receive
from agent.gateway.wire.plain import PlainHeads
from agent.gateway.wire.upstream import UpstreamConnector
from agent.model.failure import Failure, FailureKind

log = logging.getLogger(__name__)

CHECK_S: Final = 1.0
"""How often waits for callers are looked at; a tenth of a timeout shorter than ten seconds."""
SWEEP_S: Final = 60.0
"""How often idle upstream connections and cached callees are looked at."""
BACKLOG: Final = 4096
CLOSE_TURNS: Final = 20
"""Turns of the loop given to connections to send their last bytes when everything closes."""

FOUND: Final = 4096
"""Names and qualifiers of callees remembered at once; callers choose how they write a version."""

_NO_ASYNC: Final = ("Unimplemented", "asynchronous calls are not served by this version")


class Gateway:
    """One node's callers' door. Made and used on one running loop."""

    def __init__(
        self,
        config: NodeConfig,
        catalog: TargetFinder,
        connector: UpstreamConnector,
        counters: CallCounters,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.counters = counters
        self.shared = SharedState(connector, counters, config.limits.zombie_s, self.loop)
        self.draining = False
        self.plain_heads = PlainHeads(looked_at)
        self._found: dict[tuple[str, str], Callee] = {}
        """Callees by name and qualifier, as of one generation of the catalog."""
        self._generation = -1
        self._config = config.invoke
        self._catalog = catalog
        self._doors = Doors(config.invoke.domain)
        self._connections: set[ClientConnection] = set()
        self._servers: list[asyncio.AbstractServer] = []
        self._timer: asyncio.TimerHandle | None = None
        self._taking: socket.socket | None = None
        self._passing: socket.socket | None = None
        shortest_s = min(config.invoke.head_timeout_s, config.invoke.idle_timeout_s)
        self._check_s = max(TICK_S, min(CHECK_S, shortest_s / 10))
        self._checked_at = self._swept_at = self.loop.time()

    # -- for the composition root

    @property
    def connections(self) -> int:
        """How many connections of callers are open."""
        return len(self._connections)

    @property
    def calls_running(self) -> int:
        """How many calls wait or run, those made in memory included."""
        return sum(counters.inflight for counters in self.counters.functions.values())

    async def serve(
        self, sockets: Sequence[socket.socket], passing: socket.socket | None = None
    ) -> None:
        """Accept on listening sockets, TCP or unix, made by somebody else.

        From `passing` come the connections that the worker before passes on.
        """
        if passing is not None:
            self._taking = passing
            self.loop.add_reader(passing.fileno(), self._take_over)
        for sock in sockets:
            sock.setblocking(False)
            if sock.family == socket.AF_UNIX:
                # Python 3.13 would unlink the supervisor's path when we close our copy.
                keep_path: dict[str, Any] = (
                    {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
                )
                server = await self.loop.create_unix_server(
                    self._connection, sock=sock, backlog=BACKLOG, **keep_path
                )
            else:
                server = await self.loop.create_server(self._connection, sock=sock, backlog=BACKLOG)
            self._servers.append(server)

    def _take_over(self) -> None:
        """Go on with connections that the worker before has passed on."""
        for _ in range(TAKEN_AT_ONCE):
            if self._taking is None:
                return
            try:
                passed = receive(self._taking)
            except ValueError as error:
                log.warning("%s", error)
                continue
            if passed is None:
                return
            launch("take a connection over", self._go_on(passed))

    async def _go_on(self, passed: Passed) -> None:
        try:
            await self.loop.connect_accepted_socket(
                lambda: cast("asyncio.Protocol", ClientConnection(self, passed)), passed.sock
            )
        except OSError as error:  # the caller has gone meanwhile
            log.info("a connection that was passed on has ended: %s", error)
            passed.sock.close()

    def stop_accepting(self) -> None:
        """Close our copies of the listening sockets; what waits in the backlog stays there."""
        if self._taking is not None:
            self.loop.remove_reader(self._taking.fileno())
            self._taking = None
        for server in self._servers:
            server.close()
        self._servers.clear()

    def hand_over(self, passing: socket.socket | None) -> None:
        """Accept no more, and pass on every connection whose request has reached no instance.

        Calls in flight go on here; their connections are passed on behind them. Without `passing`
        connections end with their calls.
        """
        self.stop_accepting()
        self.draining = passing is None
        self._passing = passing
        for client in self._connections:
            client.leaving = passing is not None
        self.pass_on()

    def pass_on(self) -> None:
        """Pass on what can be passed on now, or close it; what cannot yet is asked again."""
        if self._passing is None:
            self._close_idle()
            return
        for client in list(self._connections):
            client.pass_on(self._passing)

    def pass_on_soon(self, client: ClientConnection) -> None:
        """Pass one connection on, as soon as its own work of this turn is done."""
        if self._passing is not None:
            self.loop.call_soon(client.pass_on, self._passing)

    async def drain(self, within_s: float) -> int:
        """Accept no more, let calls end for `within_s` seconds; return how many still run."""
        self.draining = True
        self.stop_accepting()
        deadline = self.loop.time() + within_s
        while self.calls_running and self.loop.time() < deadline:
            self._close_idle()
            await asyncio.sleep(min(TICK_S, within_s))
        self._close_idle()
        return self.calls_running

    async def close(self) -> None:
        """End everything that is left; every lease is released."""
        self.draining = True
        self.stop_accepting()
        for call in self.shared.open_calls():
            call.cut()
        for client in list(self._connections):
            client.close_now()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for _ in range(CLOSE_TURNS):  # transports tell their protocols in turns of the loop
            if not self._connections:
                break
            await asyncio.sleep(0)
        for client in list(self._connections):
            client.cut()

    def state(self) -> dict[str, Any]:
        """Return what /debug/state shows of the gateway."""
        return {
            "connections": len(self._connections),
            "draining": self.draining,
            "buffered_bytes": self.shared.buffered_bytes,
            "upstream_connections": len(self.shared.connector.connections),
            "calls": [repr(call) for call in self.shared.open_calls()[:100]],
        }

    async def call(  # noqa: PLR0913 - the parts of a request, by name
        self,
        function: Target | str,
        *,
        kind: CallKind = "event",
        method: bytes = b"POST",
        path: bytes = b"/",
        headers: Iterable[tuple[bytes, bytes]] = (),
        body: bytes = b"",
        qualifier: str = "LATEST",
        request_id: str | None = None,
        want_log_tail: bool = False,
    ) -> LocalResult:
        """Make a call in memory, the same way as one from the network.

        Raises NotFound for an unknown name; every other outcome is a result. If the waiting task is
        cancelled, the call is treated as one whose caller went away.
        """
        target = self._catalog.find(function, qualifier) if isinstance(function, str) else function
        callee = self.shared.callee(target)
        # An HTTP call comes by the door of HTTP calls, with that door's rules.
        admitted = callee.kinds["http" if kind == "http" else "invoke"]
        call = Call(
            request_id or callee.contract.new_request_id(self.shared.random()),
            admitted or kind,
            method,
            path,
            [pair for pair in headers if pair[0].lower() != b"upgrade"],  # there is no connection
            qualifier=qualifier,
            want_log_tail=want_log_tail,
        )
        if admitted is None:
            reply = refusal(Route("http", callee.contract.version.name), callee.contract, call)
            assert reply is not None
            failure = Failure(FailureKind.WRONG_KIND, "this is not an HTTP function")
            return LocalResult(
                reply.status, reply.headers, reply.body, call.request_id, failure=failure
            )
        kind = admitted
        caller = LocalCaller(self.loop)
        exchange = exchange_of(kind, self.shared, callee, call, caller, len(body))
        exchange.begin_body(body, True)
        self._arm()
        return await caller.result_of(exchange)

    # -- for connections

    def connected(self, client: ClientConnection) -> bool:
        """Count a new connection in; False when there are too many."""
        self._connections.add(client)
        client.leaving = self._passing is not None
        counters = self.counters
        counters.connections = len(self._connections)
        counters.connections_total += 1
        self._arm()
        if counters.connections <= self._config.max_connections:
            return True
        counters.connections_refused += 1
        return False

    def turn_away(self, client: ClientConnection) -> None:
        """Answer a connection that is one too many."""
        request_id = self.shared.random().hex()
        message = "this node has too many connections; try again"
        reply = own_error(503, "Overloaded", message, request_id, fault="platform", retryable=True)
        self.answer(client, reply, request_id)

    def refuse(self, client: ClientConnection, status: int, code: str, message: str) -> None:
        """Answer what is no request, in our own error shape."""
        request_id = self.shared.random().hex()
        self.answer(client, own_error(status, code, message, request_id), request_id)

    def answer(self, client: ClientConnection, reply: Reply, request_id: str) -> None:
        """Answer a request that never became a call."""
        self.counters.refused(reply.status)
        headers = [*reply.headers, (b"X-Kindling-Request-Id", request_id.encode())]
        client.reply(reply.status, headers, len(reply.body), reply.body, True)

    def disconnected(self, client: ClientConnection) -> None:
        """Forget a closed connection."""
        self._connections.discard(client)
        self.counters.connections = len(self._connections)

    def request(
        self, client: ClientConnection, head: RequestHead, first: bytes, done: bool
    ) -> None:
        """Start what a whole head asks for; `first` is what came of the body, `done` if all."""
        waited_s = client.waited_s
        if waited_s:
            client.waited_s = 0.0
        route = self._doors.match(head.method, head.target, head.host, head.looked_at)
        if route is None:
            request_id = self.shared.random().hex()
            self.answer(client, no_door(head.method, head.target, request_id), request_id)
            return
        if route.needs_body:
            envelope = EnvelopedCall(self, client, head, self.shared.random().hex())
            envelope.waited_s = waited_s
            client.sink = envelope
            envelope.start(head.length, first, done)
            return
        callee = self._callee(client, route)
        if callee is None:
            return
        kind = callee.kinds[route.door]
        call = Call(
            callee.new_request_id(self.shared.random()),
            kind or "event",
            head.method,
            route.target,
            head.looked_at,
            client.remote,
            head.host_text,
            "http",
            route.qualifier,
            "",
            False,
            head.lines,
        )
        if kind != "http" or head.size > callee.short_head_bytes:
            reply = self._refusal(head, route, callee, call)
            if reply is not None:
                self.answer(client, reply, call.request_id)
                return
        exchange = exchange_of(call.kind, self.shared, callee, call, client, head.length)
        exchange.head = head
        if waited_s:
            exchange.waited_s = waited_s
        if head.traced:
            exchange.traced = True
        client.sink = exchange
        if first:
            exchange.begin_body(first, done)
        elif done:
            exchange.request_done = True
        exchange.start()

    def _callee(self, client: ClientConnection, route: Route) -> Callee | None:
        """Return the function a route leads to; None when it was answered that there is none."""
        if self._generation != self._catalog.generation:
            self._generation = self._catalog.generation
            self._found.clear()
        key = (route.name, route.qualifier)
        callee = self._found.get(key)
        if callee is None:
            try:
                callee = self.find(route.name, route.qualifier)
            except NotFound as error:
                request_id = self.shared.random().hex()
                self.answer(client, unknown_function(route, error.message, request_id), request_id)
                return None
            if len(self._found) >= FOUND:
                self._found.clear()
            self._found[key] = callee
        return callee

    def _refusal(self, head: RequestHead, route: Route, callee: Callee, call: Call) -> Reply | None:
        """Note an event call's options; return the answer to a call that cannot be made."""
        if callee.kinds[route.door] is None:
            return refusal(route, callee.contract, call)
        if head.size > callee.short_head_bytes:
            wrong = too_long(head, route, callee)
            if wrong is not None:
                return callee.contract.error(wrong, call)
        if call.kind != "http":
            options = call_options(head.looked_at)
            call.want_log_tail = options.want_log_tail
            if options.asynchronous:
                return own_error(501, *_NO_ASYNC, call.request_id)
        return None

    def find(self, name: str, qualifier: str) -> Callee:
        """Return a deployed function as calls use it; raises NotFound."""
        return self.shared.callee(self._catalog.find(name, qualifier))

    # -- connections and the clock

    def _connection(self) -> asyncio.Protocol:
        return cast("asyncio.Protocol", ClientConnection(self))

    def _close_idle(self) -> None:
        for client in list(self._connections):
            client.close_if_idle()

    def _arm(self) -> None:
        if self._timer is None:
            delay_s = TICK_S if self.shared.busy else self._check_s
            self._timer = self.loop.call_later(delay_s, self._tick)

    def _tick(self) -> None:
        """Keep every time limit; runs only while there is something to watch."""
        self._timer = None
        now = self.loop.time()
        try:
            self._keep_time(now)
        finally:
            if self._connections or self.shared.busy or self.shared.connector.connections:
                self._arm()

    def _keep_time(self, now: float) -> None:
        self.shared.tick(now)
        if now - self._checked_at >= self._check_s:
            self._checked_at = now
            head_s, idle_s = self._config.head_timeout_s, self._config.idle_timeout_s
            for client in list(self._connections):
                client.check(now, head_s, idle_s)
        if now - self._swept_at >= SWEEP_S:
            self._swept_at = now
            self.shared.sweep(now)
            self._found.clear()
            self._forget_removed()

    def _forget_removed(self) -> None:
        """Drop the counters of functions that are not deployed any more and have no calls."""
        for name, counters in list(self.counters.functions.items()):
            if not counters.inflight:
                try:
                    self._catalog.find(name, "LATEST")
                except NotFound:
                    self.counters.forget(name)
