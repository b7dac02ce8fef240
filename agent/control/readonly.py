"""What the read-only socket refuses, before anything of the request is read.

Who may connect to which socket is decided by the sockets' file modes: peer credentials say little
inside a user namespace.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from agent.control.service import NAME, READONLY
from agent.control.verbs import Context, refuse
from agent.errors import PermissionDenied

_ALLOWED = frozenset(f"/{NAME}/{call}" for call in READONLY)
_OPEN_SERVICES = ("/grpc.health.", "/grpc.reflection.")

if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]  # generic in the stubs only


class ReadOnly(grpc.aio.ServerInterceptor):
    """Admits calls that change nothing, refuses the others by name."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Pass an admitted call on; otherwise answer PERMISSION_DENIED."""
        method = str(handler_call_details.method)
        if method in _ALLOWED or method.startswith(_OPEN_SERVICES):
            return await continuation(handler_call_details)
        call = method.rsplit("/", 1)[-1]

        async def deny(_messages: AsyncIterator[bytes], context: Context) -> None:
            text = f"{call} changes the node, and this socket is read-only: use the admin socket"
            await refuse(context, call, PermissionDenied(text))

        # Streaming both ways fits every call, and reads nothing.
        return grpc.stream_stream_rpc_method_handler(deny)
