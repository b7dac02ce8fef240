"""What becomes of a download's errors: their kind stays, their text names the image."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agent.containerd.access import Access
from agent.containerd.download import Download
from agent.containerd.endpoints import RegistryEndpoint
from agent.containerd.errors import ForeignOwner
from agent.containerd.registry import Resolved
from agent.core.oci_image import Descriptor, ImageConfig, Manifest
from agent.core.registry_hosts import HostEntry
from agent.errors import (
    AgentError,
    FailedPrecondition,
    InvalidSpec,
    NotFound,
    Overloaded,
    Problem,
    RuntimeUnavailable,
)
from agent.model.image_ref import parse_image_ref

HOST = "127.0.0.1:5000"
WHAT = f"pull image {HOST}/x:1"
AT = Descriptor("m", "sha256:1", 1)
FOUND = Resolved(AT, Manifest("m", AT, ()), ImageConfig(("sha256:1",)))


async def failed(error: AgentError) -> AgentError:
    """Return what a download makes of an error of its transfer."""
    endpoint = RegistryEndpoint(HOST, HostEntry(scheme="http", host=HOST))
    nobody: Any = None
    reference = parse_image_ref(f"{HOST}/x:1")
    download = Download(nobody, nobody, reference, (endpoint,), Access())

    async def run(_: object) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        await download.run(FOUND, run, asyncio.get_running_loop().time() + 60)
    return caught.value


async def test_a_full_disk_or_store_is_told_as_such():
    for why in ("disk full (write /x: no space left on device)", "stopped: the limit is 1 MB"):
        found = await failed(Overloaded(f"{WHAT}: {why}", reason="disk", retry_after_s=60.0))
        assert isinstance(found, Overloaded)
        assert (found.message, found.reason, found.retry_after_s) == (f"{WHAT}: {why}", "disk", 60)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeUnavailable(f"{WHAT}: something else"),
        FailedPrecondition(f"{WHAT}: something else"),
        InvalidSpec([Problem("image", f"{WHAT}: something else")]),
        ForeignOwner([Problem("image", f"{WHAT}: something else")]),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_has_no_words_of_its_own_is_told_as_it_is(error):
    found = await failed(error)
    assert type(found) is type(error)
    assert found.message == error.message


async def test_what_a_registry_has_lost_is_named():
    found = await failed(NotFound(f"{WHAT}: {AT.digest}: not found"))
    assert "lost a part of it meanwhile" in found.message


async def test_a_circle_of_redirects_is_named():
    digest = "sha256:" + "a" * 64
    text = (
        f'failed to do request: Get "http://{HOST}/v2/x/blobs/{digest}": stopped after 10 redirects'
    )
    found = await failed(FailedPrecondition(f"{WHAT}: {text}"))
    assert found.message == (
        f"image {HOST}/x:1: the registry {HOST} redirects its client round and round for {digest}"
    )
