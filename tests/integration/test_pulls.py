"""Images from a real registry, on plain HTTP over loopback, through a real agent.

Each test's image has a layer of its own, so that nothing of it is here before; afterwards its name
is gone again.
"""

from __future__ import annotations

import gzip
import json
import os
import tarfile
from collections.abc import Callable, Iterator

import pytest

from agent._pb.worker.v1 import worker_pb2 as pb
from agent.cli.client import Refused
from agent.errors import InvalidSpec
from tests import oci, registry
from tests.integration.functions import ASK_S, HOST, Functions, archives

Pushed = Callable[[str], tuple[str, str]]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry: its host and port."""
    with registry.registry(tmp_path_factory.mktemp("registry")) as found:
        yield found


@pytest.fixture
def pushed(address: str, functions: Functions) -> Iterator[Pushed]:
    """Push a server under a repository's name; gives reference and digest."""
    made: list[str] = []

    def push(repository: str) -> tuple[str, str]:
        image = a_server()
        registry.push(address, repository, "1", image)
        made.append(f"{address}/{repository}:1")
        return made[-1], image.digest

    yield push
    functions.clear()
    for name in set(made) & set(images(functions)):
        remove = pb.RemoveImageRequest(name=name)
        functions.client.ask("RemoveImage", remove, pb.RemoveImageResponse)
        assert name not in images(functions)


def a_server(own_bytes: int = 1 << 20) -> oci.OciImage:
    """Return the sample `static` above a layer that no other image has."""
    with tarfile.open(archives()[f"{HOST}/static:1"]) as archive:

        def blob(digest: str) -> bytes:
            file = archive.extractfile(f"blobs/sha256/{digest.removeprefix('sha256:')}")
            assert file is not None
            return file.read()

        index = archive.extractfile("index.json")
        assert index is not None
        manifest = json.loads(blob(json.load(index)["manifests"][0]["digest"]))
        config = json.loads(blob(manifest["config"]["digest"]))["config"]
        layers = [oci.Layer(gzip.decompress(blob(one["digest"]))) for one in manifest["layers"]]
    return oci.image([oci.layer({"own": os.urandom(own_bytes)}), *layers], config)


def images(functions: Functions) -> dict[str, pb.Image]:
    reply = functions.client.ask("ListImages", pb.ListImagesRequest(), pb.ListImagesResponse)
    return {image.name: image for image in reply.images}


def test_a_pulled_image_is_listed_by_its_digest_and_serves(functions, agent, pushed):
    name, digest = pushed("team/pulled")
    request = pb.PrepareImageRequest(image=name)
    steps = list(functions.client.follow("PrepareImage", request, pb.ImageProgress, within_s=ASK_S))
    assert [step.HasField("done") for step in steps] == [False] * (len(steps) - 1) + [True]
    assert (steps[-1].done.name, steps[-1].done.digest) == (name, digest)
    assert images(functions)[name].digest == digest
    functions.deploy("pulled", name, memory_mb=128)
    assert agent.http("GET", "/http/pulled/").body == b"hello\n"
    assert list(images(functions)[name].used_by) == ["pulled"]
    with pytest.raises(Refused, match="in use by pulled"):
        functions.client.ask(
            "RemoveImage", pb.RemoveImageRequest(name=name), pb.RemoveImageResponse
        )


def test_a_deploy_pulls_what_is_not_here(functions, agent, pushed):
    name, digest = pushed("fetched")
    assert name not in images(functions)
    functions.deploy("fetched", name, memory_mb=128, scaling={"min": 1})
    assert images(functions)[name].digest == digest
    assert agent.http("GET", "/http/fetched/").body == b"hello\n"


def test_a_tag_that_has_moved_is_taken_when_the_registry_is_asked(functions, agent, pushed):
    name, first = pushed("moves")
    functions.deploy("moves", name, memory_mb=128)
    _, second = pushed("moves")
    again = functions.deploy("moves", name, memory_mb=128)
    assert (again.created, again.version.image_digest) == (False, first)
    assert "its registry was not asked: deploy with pull=always" in "".join(again.warnings)
    options = ("--name", "moves", "--image", name, "--contract", "fc", "--kind", "http")
    done = agent.cli("deploy", "--wait", *options, "--set", "memory_mb=128", "--set", "pull=always")
    assert "warning" not in done.err
    assert images(functions)[name].digest == second
    assert agent.http("GET", "/http/moves/").body == b"hello\n"


def test_an_unknown_tag_is_one_clear_error_and_deploys_nothing(functions, agent, address, pushed):
    pushed("known")
    unknown = f"{address}/known:2"
    with pytest.raises(Refused) as error:
        functions.deploy("lost", unknown)
    assert (error.value.code, error.value.fault) == ("NotFound", "caller")
    assert error.value.message == (f"image {unknown}: the registry {address} has no such image")
    done = agent.cli("image", "pull", unknown, check=False)
    assert (done.status, done.out) == (1, "")
    assert done.err == f"kindling image pull: {error.value.message}\n"
    assert agent.http("GET", "/http/lost/").status == 404
    assert unknown not in images(functions)


def test_an_image_too_large_for_its_contract_is_refused_before_download(
    functions, agent, address, pushed
):
    huge = f"{address}/huge:1"
    image = a_server()
    manifest = json.loads(image.blobs[image.digest])
    manifest["layers"][0]["size"] = 2 << 30  # nobody could download it: not a byte is asked for
    data = json.dumps(manifest).encode()
    blobs = {key: blob for key, blob in image.blobs.items() if key != image.digest}
    claim = {**image.manifest, "digest": oci.digest(data), "size": len(data)}
    registry.push(address, "huge", "1", oci.OciImage({**blobs, oci.digest(data): data}, claim))
    with pytest.raises(InvalidSpec) as error:
        functions.deploy("huge", huge, contract="scf-web", kind="http")
    assert [problem.field for problem in error.value.problems] == ["image"]
    assert f"{huge} takes 2.00 GB" in error.value.message
    assert "scf-web takes images of at most 1 GB" in error.value.message
    assert agent.http("GET", "/http/huge/").status == 404
    assert huge not in images(functions)
