"""Credentials as a file, for a program that reads no other way: docker's config.json, on tmpfs.

A lazy engine asks the registry long after the deploy, in its own process. The file is readable by
its owner only from its first byte on, replaced as a whole, and gone when nothing is in it.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from pathlib import Path

from agent.containerd.credentials import Credentials
from agent.model.image_ref import DEFAULT_HOST

HUB_KEY = "https://index.docker.io/v1/"


class DockerConfig:
    """One config.json; `path` must be on tmpfs, in a directory of the agent's own."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, credentials: Mapping[str, Credentials]) -> None:
        """Write what is known by host, in place of what was there. Blocks for a moment."""
        if not credentials:
            self._path.unlink(missing_ok=True)
            return
        entries = {_key(host): _entry(each) for host, each in credentials.items()}
        fresh = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump({"auths": entries}, file)
        fresh.replace(self._path)


def _key(host: str) -> str:
    return HUB_KEY if host == DEFAULT_HOST else host


def _entry(credentials: Credentials) -> dict[str, str]:
    if credentials.identity_token:
        return {
            "auth": base64.b64encode(b"<token>:").decode(),
            "identitytoken": credentials.identity_token,
        }
    return {"auth": credentials.basic.removeprefix("Basic ")}
