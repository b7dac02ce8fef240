"""How an event becomes a job's environment, and whether Linux will take it.

Checked before anything is pulled or created, so that a too large event is a clear refusal and not
E2BIG out of the runtime. What execve(2) counts stands in `core/job.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from agent.contracts.base import JobInput
from agent.core.job import check_exec_sizes, exec_bytes
from agent.core.oci import argv_of, merged_env
from agent.errors import FunctionFailed, InvalidSpec, Problem
from agent.model.failure import Failure, FailureKind
from agent.model.limits import MAX_EXEC_BYTES, MAX_STRING_BYTES
from agent.model.records import FunctionVersion


def event_room(variable: str) -> int:
    """Return how many bytes of event fit into `NAME=value` and its NUL."""
    return MAX_STRING_BYTES - len(variable) - 2


def job_input(
    variable: str, event: bytes, version: FunctionVersion, contract_env: Mapping[str, str]
) -> JobInput:
    """Return the event as one variable.

    Raises FunctionFailed(REQUEST_TOO_LARGE) when the event, or all of environment and arguments
    with it, is too large; InvalidSpec when it holds a NUL byte or is not UTF-8 (a runtime spec is
    JSON), or when the image brings a string of its own that Linux would not take.
    """
    room = event_room(variable)
    if len(event) > room:
        raise _too_large(f"the event has {len(event)} bytes; {variable} takes at most {room}", room)
    text = _text(event)
    spec, image = version.spec, version.image
    own = {**spec.env, **{secret.name: secret.value or "" for secret in spec.secrets}}
    env = merged_env(image.env if image else (), contract_env, own)
    env[variable] = text
    argv = _argv(version)
    size = exec_bytes(argv, env)
    if size > MAX_EXEC_BYTES:
        message = (
            f"environment and arguments with this event take {size} bytes; "
            f"Linux takes at most {MAX_EXEC_BYTES}"
        )
        raise _too_large(message, MAX_EXEC_BYTES)
    check_exec_sizes(argv, env, variable)
    return JobInput({variable: text})


def _text(event: bytes) -> str:
    if b"\0" in event:
        raise InvalidSpec([Problem("event", "holds a NUL byte, which no environment can carry")])
    try:
        return event.decode()
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 at byte {error.start}; encode it, for example as base64"
        raise InvalidSpec([Problem("event", problem)]) from error


def _argv(version: FunctionVersion) -> tuple[str, ...]:
    """Return the command line; while the image is not known, only the function's part of it."""
    spec, image = version.spec, version.image
    if image is None:
        return (*(spec.command or ()), *(spec.args or ()))
    return argv_of(image.entrypoint, image.cmd, spec.command, spec.args)


def _too_large(message: str, limit: int) -> FunctionFailed:
    return FunctionFailed(Failure(FailureKind.REQUEST_TOO_LARGE, message, limit=limit))
