"""Many who want the same image, or images that share layers: what the registry is asked for.

The registry counts what it gives out, and can hold a layer back in the middle.
"""

from __future__ import annotations

import json
import os
import select
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from agent._pb.worker.v1 import worker_pb2 as pb
from agent.cli.client import Refused
from agent.errors import AgentError
from tests import oci
from tests.integration.functions import ASK_S, Functions
from tests.misbehaving import Request, Server

LAYER_BYTES = 3 << 20
Step = pb.ImageProgress


class Counting(Server):
    """One image per tag; blobs of all. Layers wait half-way while `held`."""

    def __init__(self, images: dict[str, oci.OciImage]) -> None:
        super().__init__(next(iter(images.values())))
        self.images = images
        self.blobs = {key: data for image in images.values() for key, data in image.blobs.items()}
        self.given: Counter[str] = Counter()
        self.let_go = threading.Event()
        self.let_go.set()
        self.half = threading.Semaphore(0)
        self.gone = threading.Semaphore(0)

    def what(self, path: str) -> tuple[bytes | None, str]:
        name = path.rpartition("/")[2]
        if "/manifests/" in path and name in self.images:
            name = self.images[name].digest
        kind = oci.OCI_MANIFEST if "/manifests/" in path else "application/octet-stream"
        return self.blobs.get(name), kind

    def serve(self, request: Request) -> None:
        name = request.path.rpartition("/")[2]
        if request.command == "GET" and "/blobs/" in request.path:
            self.given[name] += 1
            if len(self.blobs.get(name, b"")) > LAYER_BYTES:
                self.faults["layer"] = [self._held]
        super().serve(request)

    def _held(self, request: Request, data: bytes, media_type: str) -> None:
        asked = request.headers.get("Range", "")
        first = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        request.send_response(206 if asked else 200)
        if asked:
            request.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        request.send_header("Content-Type", media_type)
        request.send_header("Content-Length", str(len(data) - first))
        request.end_headers()
        middle = max(first, len(data) // 2)
        request.wfile.write(data[first:middle])
        request.wfile.flush()
        self.half.release()
        while not self.let_go.wait(0.02):
            if select.select([request.connection], [], [], 0)[0]:  # nobody wants the rest
                self.gone.release()
                request.close_connection = True
                return
        request.wfile.write(data[middle:])


def big_layer() -> oci.Layer:
    return oci.layer({f"noise/{os.urandom(4).hex()}": os.urandom(LAYER_BYTES + 1000)})


@pytest.fixture
def serving(functions: Functions) -> Iterator[Callable[..., Counting]]:
    """Serve images by tag; afterwards nothing of them is on the node."""
    servers: list[Counting] = []

    def serve(images: dict[str, oci.OciImage]) -> Counting:
        server = Counting(images)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        servers.append(server)
        return server

    yield serve
    functions.clear()
    for server in servers:
        server.let_go.set()
        server.ending.set()
        server.shutdown()
        server.server_close()
        for tag in server.images:
            with suppress(AgentError):
                request = pb.RemoveImageRequest(name=f"{server.address}/app:{tag}")
                functions.client.ask("RemoveImage", request, pb.RemoveImageResponse)


class Puller:
    """A caller that pulls on a thread of its own, and may leave."""

    def __init__(self, functions: Functions, ref: str) -> None:
        self.steps: list[Step] = []
        self.error: Exception | None = None
        self._call = functions.stream("PrepareImage", pb.PrepareImageRequest(image=ref), Step)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            for step in self._call:
                self.steps.append(step)
        except Exception as error:  # what became of it is the test's to judge
            self.error = error

    def leave(self) -> None:
        self._call.cancel()
        self._thread.join(30)

    def end(self) -> Step:
        self._thread.join(60)
        assert self.error is None, self.error
        return self.steps[-1]


def test_twenty_functions_from_twenty_tags_fetch_each_blob_once(functions, serving):
    busybox, shared = oci.static_busybox(), big_layer()
    run = {"Cmd": ["busybox", "sleep", "1000"]}
    images = {
        f"t{n}": oci.image([busybox, shared, oci.layer({f"own/{n}": os.urandom(100)})], run)
        for n in range(20)
    }
    server = serving(images)
    with ThreadPoolExecutor(20) as threads:
        deploys = [
            threads.submit(functions.deploy, f"app-{tag}", f"{server.address}/app:{tag}")
            for tag in images
        ]
        for deploy in deploys:
            deploy.result()
    layers = {
        layer["digest"]
        for image in images.values()
        for layer in json.loads(image.blobs[image.digest])["layers"]
    }
    assert {digest: server.given[digest] for digest in layers} == dict.fromkeys(layers, 1)


def test_callers_share_one_pull_and_may_leave_it(functions, serving):
    image = oci.image([oci.static_busybox(), big_layer()])
    server = serving({"1": image})
    ref = f"{server.address}/app:1"
    server.let_go.clear()
    first = Puller(functions, ref)
    assert server.half.acquire(timeout=30)
    others = [Puller(functions, ref) for _ in range(5)]
    agent = functions.agent
    agent.wait_until(lambda: all(len(each.steps) > 2 for each in others), 30, "steps for all")
    first.leave()
    server.let_go.set()
    assert [each.end().done.digest for each in others] == [image.digest] * 5
    layers = json.loads(image.blobs[image.digest])["layers"]
    assert [server.given[layer["digest"]] for layer in layers] == [1, 1]
    for each in others:
        told = [step for step in each.steps if step.layers]
        assert {step.layers for step in told} == {2}
        amounts = [step.image_bytes for step in told]
        assert amounts == sorted(amounts)
        assert told[-1].image_bytes == told[-1].image_total_bytes > LAYER_BYTES
        assert [step.phase for step in each.steps][:1] == ["resolving"]


def test_the_last_caller_who_leaves_ends_it_and_the_next_one_goes_on(functions, serving):
    layer = big_layer()
    image = oci.image([oci.static_busybox(), layer])
    server = serving({"1": image})
    ref = f"{server.address}/app:1"
    server.let_go.clear()
    callers = [Puller(functions, ref) for _ in range(2)]
    assert server.half.acquire(timeout=30)
    digest = oci.digest(layer.blob)

    def told() -> list[int]:
        return [step.bytes for step in callers[0].steps if step.name == digest and step.bytes]

    functions.agent.wait_until(lambda: bool(told()), 30, "half of a layer")
    for each in callers:
        each.leave()
    assert server.gone.acquire(timeout=30), "the download goes on though nobody waits for it"
    server.let_go.set()
    assert Puller(functions, ref).end().done.digest == image.digest
    (resumed,) = server.ranges()
    begin = int(resumed.removeprefix("bytes=").partition("-")[0])
    assert begin > 0


def test_another_digest_than_promised_ends_the_pull_for_all_by_name(functions, serving):
    layer = big_layer()
    image = oci.image([oci.static_busybox(), layer])
    server = serving({"1": image})
    digest = oci.digest(layer.blob)
    server.blobs[digest] = b"x" * len(layer.blob)
    with pytest.raises(Refused, match=digest):
        list(
            functions.client.follow(
                "PrepareImage",
                pb.PrepareImageRequest(image=f"{server.address}/app:1"),
                Step,
                within_s=ASK_S,
            )
        )
