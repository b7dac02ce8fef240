"""Runs a `registry.credential_command` and reads the credentials that it prints.

The words are the program's arguments, no shell reads them; it runs as the agent's user, with
nothing on its input, an environment of its own and the registry's host as KINDLING_REGISTRY, within
a time and a number of bytes. What it prints is never shown, logged or kept: an error tells its exit
status and no more. Taken are the agent's own form and that of Docker's credential helpers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from agent.aio.tasks import finish
from agent.containerd.credentials import TOKEN_USER, Credentials
from agent.errors import FailedPrecondition, RuntimeUnavailable

COMMAND_S = 30.0
REAP_S = 5.0
MAX_BYTES = 256 << 10
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
FIELD = "registry.credential_command"


async def run_command(
    words: Sequence[str], host: str, *, within_s: float = COMMAND_S
) -> tuple[Credentials, float | None]:
    """Return what the command prints for a registry, and until when it holds (wall time).

    Raises FailedPrecondition when it cannot be started, fails or prints something else,
    RuntimeUnavailable when it takes too long.
    """
    environment = {"PATH": PATH, "HOME": str(Path.home()), "KINDLING_REGISTRY": host}
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=environment,
            cwd="/",
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "cannot be started"
        raise FailedPrecondition(f"{FIELD}: {words[0]}: {why}") from error
    try:
        async with asyncio.timeout(within_s):
            printed = await _printed(process, words[0])
            status = await process.wait()
    except TimeoutError as error:
        raise RuntimeUnavailable(f"{FIELD}: {words[0]} took over {within_s:g} s") from error
    finally:
        await finish(f"end of {FIELD}", _ended(process), within_s=REAP_S)
    if status != 0:
        how = f"ended with status {status}" if status > 0 else f"was ended by signal {-status}"
        raise FailedPrecondition(f"{FIELD}: {words[0]} {how}; run it by hand to see why")
    return parse_printed(printed, words[0])


async def _printed(process: asyncio.subprocess.Process, name: str) -> bytes:
    assert process.stdout is not None
    data = b""
    while more := await process.stdout.read(64 << 10):
        data += more
        if len(data) > MAX_BYTES:
            raise FailedPrecondition(f"{FIELD}: {name} prints over {MAX_BYTES} bytes")
    return data


async def _ended(process: asyncio.subprocess.Process) -> None:
    """End the command and whatever it started in its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    while process.stdout is not None and await process.stdout.read(64 << 10):
        pass  # its end of the pipe must be seen closed, or the transport stays open
    await process.wait()


def parse_printed(data: bytes, name: str) -> tuple[Credentials, float | None]:
    """Read what a command printed. Raises FailedPrecondition, which repeats nothing of it."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _unlike(name, "no JSON object")
    texts = {key: value for key, value in found.items() if isinstance(value, str)}
    user = texts.get("username") or texts.get("Username", "")
    secret = texts.get("password") or texts.get("Secret", "")
    token = texts.get("identity_token", "")
    if user == TOKEN_USER:
        user, secret, token = "", "", secret
    if not token and not (user and secret):
        raise _unlike(name, "neither username and password nor identity_token")
    until = _until(found.get("expires_at"), name)
    return (Credentials(identity_token=token) if token else Credentials(user, secret)), until


def _until(value: object, name: str) -> float | None:
    if value is None or value == "":
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    try:
        at = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        at = None
    if at is None:
        raise _unlike(name, "an expires_at that is neither RFC 3339 nor a number of seconds")
    return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()


def _unlike(name: str, what: str) -> FailedPrecondition:
    return FailedPrecondition(
        f'{FIELD}: {name} prints {what}; wanted is {{"username": …, "password": …}} or '
        '{"identity_token": …}, with "expires_at" if it is known'
    )
