"""How every RPC of the service runs: the verb's own code, and errors by the one table.

A unary verb takes the request and returns the reply; a streaming verb is an async generator of
replies, closed at once when the client has gone; none among them sends the initial metadata, by
which a client knows that it watches before there is anything to see. Neither sees gRPC's context.
The verbs themselves stand in `deploying.py`, `images.py`, `calling.py`, `watching.py` and
`node_state.py`.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any, Never, TypeVar, cast

import grpc
import grpc.aio

from agent.control.errors import MESSAGE_BYTES, clipped, refusal
from agent.control.node import Node

log = logging.getLogger(__name__)

Request = TypeVar("Request")
Reply = TypeVar("Reply")
Context = grpc.aio.ServicerContext[Any, Any]


class Verbs:
    """What every group of verbs shares: the node that it asks, and how many calls are open."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.active = 0


def unary(
    name: str, verb: Callable[[Any, Request], Awaitable[Reply]]
) -> Callable[[Any, Request, Context], Coroutine[Any, Any, Reply]]:
    """Make the RPC `name`, which answers once, out of a coroutine method."""

    @functools.wraps(verb)
    async def call(self: Verbs, request: Request, context: Context) -> Reply:
        self.active += 1
        try:
            return await verb(self, request)
        except Exception as error:  # the top of this call: the client is told
            await refuse(context, name, error)
        finally:
            self.active -= 1

    return call


def streaming(
    name: str, verb: Callable[[Any, Request], AsyncGenerator[Reply | None, None]]
) -> Callable[[Any, Request, Context], AsyncIterator[Reply]]:
    """Make the RPC `name`, which answers with a stream, out of an async generator method."""

    @functools.wraps(verb)
    async def call(self: Verbs, request: Request, context: Context) -> None:
        self.active += 1
        # Written by hand rather than yielded: a generator that gRPC abandons would be closed only
        # when it is collected.
        try:
            async with aclosing(verb(self, request)) as replies:
                async for reply in replies:
                    if reply is None:
                        await context.send_initial_metadata(())
                    else:
                        await context.write(reply)
        except Exception as error:  # the top of this call: the client is told
            await refuse(context, name, error)
        finally:
            self.active -= 1

    return cast("Callable[[Any, Request, Context], AsyncIterator[Reply]]", call)


async def refuse(context: Context, call: str, error: Exception) -> Never:
    """End the RPC with the error's status; a surprise is logged whole."""
    refused = refusal(error, call)
    if refused.code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
        log.error("%s failed", call, exc_info=error)
    else:
        log.info("%s refused: %s: %s", call, refused.code.name, refused.message)
    await context.abort(refused.code, clipped(refused.message, MESSAGE_BYTES), refused.trailers)
