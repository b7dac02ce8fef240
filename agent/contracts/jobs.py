"""How an event becomes a job's environment, and whether Linux will take it.

Checked before anything is pulled or created, so that a too large event is a clear refusal and not
E2BIG out of the runtime. Sizes as execve(2) counts them: every string with its NUL, a pointer each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agent.contracts.base import JobInput
from agent.errors import FunctionFailed, InvalidSpec, Problem
from agent.model.failure import Failure, FailureKind
from agent.model.limits import (
    EXEC_POINTER_BYTES,
    EXEC_RESERVE_BYTES,
    MAX_EXEC_BYTES,
    MAX_STRING_BYTES,
)
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
    JSON).
    """
    room = event_room(variable)
    if len(event) > room:
        raise _too_large(f"the event has {len(event)} bytes; {variable} takes at most {room}", room)
    if b"\0" in event:
        raise InvalidSpec([Problem("event", "holds a NUL byte, which no environment can carry")])
    try:
        text = event.decode()
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 at byte {error.start}; encode it, for example as base64"
        raise InvalidSpec([Problem("event", problem)]) from error
    environment = _environment(version, contract_env)
    environment[variable] = text
    size = exec_bytes(environment, _arguments(version))
    if size > MAX_EXEC_BYTES:
        message = (
            f"environment and arguments with this event take {size} bytes; "
            f"Linux takes at most {MAX_EXEC_BYTES}"
        )
        raise _too_large(message, MAX_EXEC_BYTES)
    return JobInput({variable: text})


def exec_bytes(environment: Mapping[str, str], arguments: Sequence[str]) -> int:
    """Return what execve(2) needs for these, bytes."""
    strings = [f"{name}={value}" for name, value in environment.items()]
    strings += arguments
    texts = sum(len(text.encode("utf-8", "surrogateescape")) + 1 for text in strings)
    return texts + len(strings) * EXEC_POINTER_BYTES + EXEC_RESERVE_BYTES


def _environment(version: FunctionVersion, contract_env: Mapping[str, str]) -> dict[str, str]:
    """Return image ENV, then contract, then the function's own."""
    environment: dict[str, str] = {}
    if version.image is not None:
        for line in version.image.env:
            name, _, value = line.partition("=")
            environment[name] = value
    environment.update(contract_env)
    environment.update(version.spec.env)
    for secret in version.spec.secrets:
        environment[secret.name] = secret.value or ""
    return environment


def _arguments(version: FunctionVersion) -> list[str]:
    """Return the command line: the function's own, else the image's."""
    spec, image = version.spec, version.image
    command = spec.command if spec.command is not None else (image.entrypoint if image else ())
    if spec.args is not None:
        args = spec.args
    else:
        args = image.cmd if image and spec.command is None else ()
    return [*command, *args]


def _too_large(message: str, limit: int) -> FunctionFailed:
    return FunctionFailed(Failure(FailureKind.REQUEST_TOO_LARGE, message, limit=limit))
