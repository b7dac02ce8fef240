"""Credentials as a file, for a program that reads no other way: docker's config.json, on tmpfs.

A lazy engine asks the registry long after the deploy, in its own process. The file is readable by
its owner only from its first byte on, replaced as a whole, and gone when nothing is in it. Beside
what docker knows stands until when each holds and for whom it is, for a worker that begins while
the engine still needs it.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from agent.containerd.credentials import Credentials
from agent.model.image_ref import DEFAULT_HOST

HUB_KEY = "https://index.docker.io/v1/"
NOTES = "kindling"  # docker's own reader passes over what it does not know


@dataclass(frozen=True, slots=True)
class HostCredentials:
    """What is shown to one host, until when it holds (wall time), and for which functions."""

    credentials: Credentials = field(repr=False)
    until: float | None = None
    functions: frozenset[str] = frozenset()


class DockerConfig:
    """One config.json; `path` must be on tmpfs, in a directory of the agent's own."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, known: Mapping[str, HostCredentials]) -> None:
        """Write what is known by host, in place of what was there. Blocks for a moment."""
        if not known:
            self._path.unlink(missing_ok=True)
            return
        entries = {_key(host): _entry(each.credentials) for host, each in known.items()}
        notes = {
            host: {"until": each.until, "functions": sorted(each.functions)}
            for host, each in known.items()
        }
        fresh = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump({"auths": entries, NOTES: notes}, file)
        fresh.replace(self._path)

    def read(self) -> dict[str, HostCredentials]:
        """Return what `write` wrote, nothing where there is no such file. Blocks for a moment."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            data = json.loads(self._path.read_bytes())
            return {
                host: HostCredentials(
                    _credentials(data["auths"][_key(host)]),
                    note["until"],
                    frozenset(note["functions"]),
                )
                for host, note in data[NOTES].items()
            }
        return {}


def _key(host: str) -> str:
    return HUB_KEY if host == DEFAULT_HOST else host


def _entry(credentials: Credentials) -> dict[str, str]:
    if credentials.identity_token:
        return {
            "auth": base64.b64encode(b"<token>:").decode(),
            "identitytoken": credentials.identity_token,
        }
    return {"auth": credentials.basic.removeprefix("Basic ")}


def _credentials(entry: Mapping[str, str]) -> Credentials:
    """Read what `_entry` wrote."""
    if "identitytoken" in entry:
        return Credentials(identity_token=entry["identitytoken"])
    name, _, password = base64.b64decode(entry["auth"]).decode().partition(":")
    return Credentials(name, password)
