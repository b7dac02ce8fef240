"""The one gRPC channel to containerd, with a deadline and one error mapping for every call.

It knows no service: the modules beside it (containers, tasks, snapshots …) hold the verbs and pass
their stubs' methods here. The channel reconnects by itself when containerd comes back. Nothing
here belongs on the warm path: a call costs 0.3 ms and more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TypeVar

import grpc
import grpc.aio

from agent.containerd.errors import convert
from agent.errors import RuntimeUnavailable

Request = TypeVar("Request")
Reply = TypeVar("Reply")

# Time for a call that names no deadline: bolt commits on a slow disk, and a busy shim.
DEFAULT_TIMEOUT_S = 15.0
# 500 container records with their specs (25 kB each) come in one List reply.
MAX_MESSAGE_BYTES = 64 << 20

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # containerd is restarted by the supervisor within a second: look for it often.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
)


class Channel:
    """A channel bound to one socket and one containerd namespace."""

    def __init__(self, socket: Path, namespace: str) -> None:
        self.socket = socket
        self.namespace = namespace
        self.grpc = grpc.aio.insecure_channel(f"unix:{socket}", options=_OPTIONS)

    async def call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Reply],
        request: Request,
        what: str,
        *,
        deadline: float | None = None,
        lease: str = "",
    ) -> Reply:
        """Make one unary call and return its reply.

        `what` starts the error's text, such as "create task a-1". `deadline` is the loop's time;
        without one the call gets DEFAULT_TIMEOUT_S. `lease` protects what the call makes. Raises
        the errors of `errors.convert`.
        """
        call = method(request, metadata=self.metadata(lease), timeout=self.left_s(deadline))
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise convert(error, what, str(self.socket)) from error
        except asyncio.CancelledError as error:
            raise self.ended(error, what) from error

    async def stream(
        self,
        method: grpc.aio.UnaryStreamMultiCallable[Request, Reply],
        request: Request,
        what: str,
        *,
        deadline: float | None = None,
    ) -> AsyncIterator[Reply]:
        """Yield the replies of a call that streams them; otherwise as `call`."""
        call = method(request, metadata=self.metadata(), timeout=self.left_s(deadline))
        try:
            async for reply in call:
                yield reply
        except grpc.aio.AioRpcError as error:
            raise convert(error, what, str(self.socket)) from error
        except asyncio.CancelledError as error:
            raise self.ended(error, what) from error
        finally:
            call.cancel()

    def metadata(self, lease: str = "") -> tuple[tuple[str, str], ...]:
        """Return the headers every call carries."""
        headers = (("containerd-namespace", self.namespace),)
        return (*headers, ("containerd-lease", lease)) if lease else headers

    def left_s(self, deadline: float | None) -> float:
        """Return the seconds until an absolute deadline of the loop's clock, never below zero."""
        if deadline is None:
            return DEFAULT_TIMEOUT_S
        return max(0.0, deadline - asyncio.get_running_loop().time())

    async def close(self) -> None:
        """Close the channel; calls still under way fail."""
        await self.grpc.close()

    def ended(self, error: asyncio.CancelledError, what: str) -> BaseException:
        """Tell a cancelled caller (passed on) from a channel closed below a call (an error)."""
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            return error
        return RuntimeUnavailable(f"{what}: the connection to containerd was closed")
