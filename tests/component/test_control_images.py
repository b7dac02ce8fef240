"""Images over real gRPC: pulls, imports, removals, and the credentials of registries."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from agent._pb.worker.v1 import worker_pb2 as pb
from agent.model.spec import RegistrySpec
from tests.component.control_door import Doors, open_doors, refused


@pytest.fixture
def run() -> Iterator[Path]:
    # Shorter than tmp_path: a unix socket's name has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="kd") as path:
        yield Path(path)


@pytest.fixture
async def doors(run: Path) -> AsyncIterator[Doors]:
    async with open_doors(run) as opened:
        yield opened


async def test_images(doors: Doors) -> None:
    steps = [step async for step in doors.admin.PrepareImage(pb.PrepareImageRequest(image="r"))]
    assert [(step.phase, step.bytes) for step in steps] == [("downloading", 5), ("done", 0)]
    assert steps[-1].done.name == "kindling.local/hello:1"
    listed = await doors.readonly.ListImages(pb.ListImagesRequest())
    assert list(listed.images[0].used_by) == ["hello"]
    await doors.admin.RemoveImage(pb.RemoveImageRequest(name="x"))
    assert doors.node.seen[-1] == ("remove_image", "x")


async def test_a_pull_has_the_credentials_of_its_call(doors: Doors) -> None:
    registry = pb.Registry(username="me", password="s3cret", ca_pem="CA")
    request = pb.PrepareImageRequest(image="r", registry=registry)
    steps = [step async for step in doors.admin.PrepareImage(request)]
    assert doors.node.registries == [
        RegistrySpec(username="me", password="s3cret", ca_pem="CA"),
    ]
    assert not [step for step in steps if "s3cret" in str(step)]


async def test_credentials_are_set_for_a_host_and_forgotten(doors: Doors) -> None:
    given = pb.RegistryCredentials(host="Registry.example:5000", username="me", password="s3cret")
    request = pb.SetCredentialsRequest(registry=given)
    request.expires_at.FromSeconds(4_000_000_000)
    assert not str(await doors.admin.SetCredentials(request))
    assert doors.node.registries == [RegistrySpec(username="me", password="s3cret")]
    assert doors.node.until == 4_000_000_000
    forget = pb.SetCredentialsRequest(registry=pb.RegistryCredentials(host="docker.io"))
    await doors.admin.SetCredentials(forget)
    assert doors.node.registries[-1] == RegistrySpec()
    assert not doors.node.until


@pytest.mark.parametrize(
    ("given", "expires_s", "field"),
    [
        ({"username": "me", "password": "s3cret"}, 0, "registry.host"),
        ({"host": "https://x/v1", "username": "me", "password": "s3cret"}, 0, "registry.host"),
        ({"host": "x:5000", "username": "me"}, 0, "registry.password"),
        ({"host": "x:5000", "password": "s3cret"}, 0, "registry.username"),
        ({"host": "x:5000", "username": "a:b", "password": "s3cret"}, 0, "registry.username"),
        ({"host": "x:5000", "username": "me", "password": "s3cret"}, 7, "expires_at"),
    ],
)
async def test_credentials_that_cannot_be_are_refused_by_field(
    doors: Doors, given: dict[str, str], expires_s: int, field: str
) -> None:
    request = pb.SetCredentialsRequest(registry=pb.RegistryCredentials(**given))
    if expires_s:
        request.expires_at.FromSeconds(expires_s)
    told = await refused(doors.admin.SetCredentials(request))
    assert told.code.name == "INVALID_ARGUMENT"
    assert told.message.startswith(field)
    assert "s3cret" not in told.message
    assert doors.node.registries == []


async def test_a_pull_of_a_kind_that_there_is_none_of_is_refused_before_it_begins(
    doors: Doors,
) -> None:
    request = pb.PrepareImageRequest(image="r", acceleration="fast")
    told = await refused(doors.admin.PrepareImage(request).read())
    assert told.code.name == "INVALID_ARGUMENT"
    assert told.message == "acceleration: must be one of auto, lazy, eager"
    assert doors.node.seen == []


async def test_a_lazy_pull_that_fell_back_says_so_at_its_end(doors: Doors) -> None:
    request = pb.PrepareImageRequest(image="r", acceleration="lazy")
    steps = [step async for step in doors.admin.PrepareImage(request)]
    assert doors.node.seen == [("pull_image", "r", "lazily")]
    assert [list(step.warnings) for step in steps] == [[], ["it has no index"]]


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda door: door.PrepareImage(pb.PrepareImageRequest(image="a b")).read(), "image"),
        (lambda door: door.RemoveImage(pb.RemoveImageRequest(name="a b")), "name"),
        (lambda door: door.ImportImage(_archive(4, 4, 4, "a b")), "header.name"),
    ],
)
async def test_what_is_no_image_reference_is_the_callers_fault(
    doors: Doors, call: Callable[[Any], Awaitable[Any]], field: str
) -> None:
    told = await refused(call(doors.admin))
    assert told.code == grpc.StatusCode.INVALID_ARGUMENT
    assert [problem.field for problem in told.problems] == [field]
    assert "'a b' is not an image reference: a repository" in told.problems[0].message
    assert doors.node.seen == []


async def _archive(
    size: int, promised: int, chunk: int, name: str = "a:1"
) -> AsyncIterator[pb.ImportImageRequest]:
    header = pb.ImportImageRequest.ImportHeader(name=name, size_bytes=promised)
    yield pb.ImportImageRequest(header=header)
    for _ in range(size // chunk):
        yield pb.ImportImageRequest(chunk=b"t" * chunk)


async def test_an_import_streams_the_archive(doors: Doors) -> None:
    size = 8 << 20
    reply = await doors.admin.ImportImage(_archive(size, size, 1 << 18))
    assert reply.images[0].name == "kindling.local/hello:1"
    assert doors.node.seen == [("import_image", "a:1")]
    assert doors.node.imported == b"t" * size


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        (lambda: _archive(1 << 16, 1 << 17, 1 << 16), "header.size_bytes"),
        (lambda: _archive(2 << 20, 0, 2 << 20), "chunk"),
        (lambda: iter([pb.ImportImageRequest(chunk=b"x")]), "header"),
        (lambda: iter(()), "header"),
    ],
)
async def test_a_broken_import_is_refused(
    doors: Doors, messages: Callable[[], Any], field: str
) -> None:
    told = await refused(doors.admin.ImportImage(messages()))
    assert told.code == grpc.StatusCode.INVALID_ARGUMENT
    assert told.problems[0].field == field
