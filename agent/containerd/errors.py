"""Turns gRPC's errors into the agent's, once, at this door.

Callers ask the class, never the text. What containerd cannot do now is RuntimeUnavailable and may
be tried again; what it says is missing, taken or not allowed keeps its meaning; a request it finds
malformed is a bug of ours. The foreign error stays reachable as `__cause__`.
"""

from __future__ import annotations

import re

import grpc
import grpc.aio

from agent.errors import (
    AgentError,
    AlreadyExists,
    Bug,
    FailedPrecondition,
    InvalidSpec,
    NotFound,
    Overloaded,
    RuntimeUnavailable,
)

# containerd repeats the whole chain of causes; more than this helps nobody.
MAX_DETAIL = 800

_CLASSES: dict[grpc.StatusCode, type[AgentError]] = {
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.INVALID_ARGUMENT: Bug,
    grpc.StatusCode.OUT_OF_RANGE: Bug,
}

# ENOSPC and EDQUOT, from whatever file containerd could not write.
_DISK_FULL = re.compile(r"no space left on device|disk quota exceeded")

# What the shim says without a code when a verb does not fit the task's state.
_WRONG_STATE = re.compile(r"cannot \w+ a (?:running|stopped|created|paused|deleted) ")


class ForeignOwner(InvalidSpec):
    """A layer has a file of an owner that no node has; `unpack` can give it another one."""


class NoFilter(RuntimeUnavailable):
    """Owners cannot be changed here: containerd has no filter for it, or that one failed."""


def convert(error: grpc.aio.AioRpcError, what: str, socket: str) -> AgentError:
    """Return the agent's error for a failed call; `what` says what was asked for."""
    code = error.code()
    detail = (error.details() or code.name)[:MAX_DETAIL]
    if code is grpc.StatusCode.UNAVAILABLE:
        return RuntimeUnavailable(f"{what}: containerd does not answer at {socket} ({detail})")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return RuntimeUnavailable(f"{what}: containerd did not finish within the time allowed")
    if _DISK_FULL.search(detail):
        return Overloaded(f"{what}: disk full ({detail})", reason="disk")
    if code is grpc.StatusCode.UNKNOWN and _WRONG_STATE.search(detail):
        return FailedPrecondition(f"{what}: {detail}")
    return _CLASSES.get(code, RuntimeUnavailable)(f"{what}: {detail}")


def whole_detail(error: AgentError) -> str:
    """Return all that containerd said, where only the end of it tells what went wrong."""
    cause = error.__cause__
    if isinstance(cause, grpc.aio.AioRpcError):
        return cause.details() or error.message
    return error.message
