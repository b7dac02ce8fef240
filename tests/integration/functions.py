"""Sample functions on an agent of a test: deployed by gRPC, removed again, nothing left behind.

`Functions` is a context: at its end every function is removed by force, the worker must still be
the same process, all capacity must be free again, no task may have failed behind its back and
`tests.leak` must find nothing. A test that replaces the worker on purpose says so with
`same_worker=False`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import grpc
from google.protobuf.message import Message

from agent._pb.worker.v1 import worker_pb2 as pb
from agent.cli.client import Client
from agent.cli.deploy import spec_message
from agent.cli.image import CHUNK_BYTES
from agent.errors import AgentError
from tests.integration.running import SLOWER, RunningAgent

# The samples are built with the host's own Python, whose packages go into the images.
PYTHON = "/usr/bin/python3"
BUILD = Path(__file__).parents[2] / "images" / "build.py"
HOST = "kindling.local"
ASK_S = 120.0 * SLOWER
WATCH_S = 600.0  # no test watches longer

Json = dict[str, Any]


@dataclass
class Watched:
    """Events of the node since a watch began, oldest first."""

    events: list[pb.Event] = field(default_factory=list)

    def of(self, function: str, type: str) -> list[pb.Event]:
        return [e for e in self.events if e.function == function and e.type == type]


class Functions:
    """Deploys, calls and looks at functions on one agent."""

    def __init__(self, agent: RunningAgent, *, same_worker: bool = True) -> None:
        self.agent = agent
        self._same_worker = same_worker
        self._deployed: set[str] = set()
        self._brought: set[str] = set()
        self._channel: grpc.Channel | None = None
        self._worker = 0
        self._logged = 0
        self._capacity: Json = {}

    def __enter__(self) -> Functions:
        self._channel = self._open()
        self._worker = self.agent.pids["worker"]
        self._logged = len(self.agent.log())
        self.agent.wait_until(self._is_wiped, 20, "layers that are wiped")
        self._capacity = self.capacity()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            self.clear()
            if error is None:
                self._look()
        finally:
            assert self._channel is not None
            self._channel.close()

    def _open(self) -> grpc.Channel:
        path = self.agent.socket
        return grpc.insecure_channel(f"unix:{path}", [("grpc.default_authority", "localhost")])

    def reconnect(self) -> None:
        """Forget the connection to a worker that is gone; grpc would back off for a while."""
        assert self._channel is not None
        self._channel.close()
        self._channel = self._open()

    def _look(self) -> None:
        left = self.agent.leaks()
        assert not left, f"left behind: {json.dumps(left, indent=1)}\n{self.agent.log()}"
        assert "background task" not in self.agent.log()[self._logged :], self.agent.log()
        self.agent.wait_until(lambda: self.capacity() == self._capacity, 10, "free capacity")
        if self._same_worker:
            assert self.agent.pids["worker"] == self._worker, f"a new worker:\n{self.agent.log()}"

    def _is_wiped(self) -> bool:
        """Whether a layer is free or an instance's: an agent that has just begun wipes them all."""
        found = self.capacity()
        if not found["free_layers"]:
            return True  # they are in memory
        slots = Path(self.agent.sections["paths"]["slots"])
        # One that is being wiped has one of its parts.
        known = {part.parent for name in ("upper", "work") for part in slots.glob(f"*/*/{name}")}
        return bool(sum(found["free_layers"].values()) + found["instances_used"] >= len(known))

    # Images

    def bring(self, image: str) -> str:
        """Return the name of a sample image, which is imported if the agent does not have it."""
        name = f"{HOST}/{image}:1"
        if name not in self._brought:
            listed = self.client.ask("ListImages", pb.ListImagesRequest(), pb.ListImagesResponse)
            if name not in {one.name for one in listed.images}:
                self.import_image(archives()[name])
            self._brought.add(name)
        return name

    def import_image(self, archive: str | Path) -> None:
        """Import the image of an archive, as `kindling image import` does, without its process."""
        with open(archive, "rb") as file:
            self.client.send("ImportImage", parts(file), pb.ImportImageResponse, within_s=ASK_S)

    def remove_image(self, name: str) -> None:
        request = pb.RemoveImageRequest(name=name)
        self.client.ask("RemoveImage", request, pb.RemoveImageResponse, within_s=ASK_S)

    # Deploying

    def deploy(
        self,
        name: str,
        image: str = "probe",
        contract: str = "fc",
        kind: str = "http",
        **fields: Any,
    ) -> pb.DeployResponse:
        """Deploy a sample image, or another, and wait; `fields` are those of a spec's TOML.

        It is not frozen unless they say so: much of what is looked at happens between two calls.
        """
        image = image if "/" in image else self.bring(image)
        spec = {"name": name, "image": image, "contract": contract, "kind": kind, **fields}
        spec["scaling"] = {"freeze_after_ms": -1, **fields.get("scaling", {})}
        request = pb.DeployRequest(spec=spec_message(spec), wait=True)
        self._deployed.add(name)
        return self.client.ask("Deploy", request, pb.DeployResponse, within_s=ASK_S)

    def remove(self, name: str, *, force: bool = False) -> None:
        request = pb.RemoveRequest(name=name, force=force)
        self.client.ask("Remove", request, pb.RemoveResponse, within_s=ASK_S)
        self._deployed.discard(name)

    def clear(self) -> None:
        """Remove by force what is still deployed."""
        for name in sorted(self._deployed):
            with suppress(AgentError):
                self.remove(name, force=True)
        self._deployed.clear()

    # Asking

    @property
    def client(self) -> Client:
        """Calls of worker.v1."""
        assert self._channel is not None
        return Client(self._channel, str(self.agent.socket))

    def instances(self, name: str = "") -> list[pb.Instance]:
        request = pb.ListInstancesRequest(function=name)
        reply = self.client.ask("ListInstances", request, pb.ListInstancesResponse)
        return list(reply.instances)

    def ready(self, name: str) -> list[pb.Instance]:
        return [one for one in self.instances(name) if one.state == pb.INSTANCE_STATE_READY]

    def node(self) -> pb.Node:
        return self.client.ask("GetNode", pb.GetNodeRequest(), pb.Node)

    def capacity(self) -> Json:
        """Return what of the node is taken and which layers are free."""
        found = self.node().capacity
        names = ("memory_used_bytes", "cpu_used_millis", "instances_used", "inflight", "queued")
        taken: Json = {name: getattr(found, name) for name in names}
        return taken | {"free_layers": dict(found.free_layers)}

    def log_lines(self, name: str) -> list[pb.LogLine]:
        """Return what is kept of a function's log."""
        request = pb.StreamLogsRequest(name=name)
        return list(self.client.follow("StreamLogs", request, pb.LogLine, within_s=ASK_S))

    def log(self, name: str) -> str:
        """Return the function's own lines as one text."""
        return "\n".join(line.text.decode() for line in self.log_lines(name))

    def stream(self, rpc: str, request: Message, reply: type[Message]) -> Any:
        """Begin a call whose answers stream; it can be cancelled."""
        assert self._channel is not None
        begin: Any = self._channel.unary_stream(
            f"/worker.v1.Worker/{rpc}",
            lambda message: message.SerializeToString(),
            response_deserializer=reply.FromString,
        )
        return begin(request, timeout=ASK_S)

    def call(self, id: str) -> pb.Call:
        return self.client.ask("GetCall", pb.GetCallRequest(id=id), pb.Call)

    def facts(self, name: str) -> Json:
        """Return what the probe sees from inside."""
        reply = self.agent.http("GET", f"/http/{name}/facts")
        assert reply.status == 200, reply
        facts: Json = reply.json()
        return facts

    def probe(self, name: str, route: str) -> Json:
        """Ask the probe to do something and return what it says."""
        reply = self.agent.http("GET", f"/http/{name}/{route}")
        assert reply.status == 200, reply
        said: Json = reply.json()
        return said

    @contextmanager
    def watching(self) -> Iterator[Watched]:
        """Collect the node's events from now on."""
        assert self._channel is not None
        watched = Watched()
        call = self._channel.unary_stream(
            "/worker.v1.Worker/WatchEvents",
            pb.WatchEventsRequest.SerializeToString,
            response_deserializer=pb.Event.FromString,
        )
        replies = call(pb.WatchEventsRequest(), timeout=WATCH_S)

        def read() -> None:
            with suppress(grpc.RpcError):
                for event in replies:
                    watched.events.append(event)

        reader = threading.Thread(target=read)
        reader.start()
        try:
            replies.initial_metadata()  # the watch has begun
            yield watched
        finally:
            replies.cancel()
            reader.join(10)


@cache
def archives() -> dict[str, str]:
    """Build the sample images, once in a test session, and return their archives by name."""
    done = subprocess.run(
        [PYTHON, str(BUILD), "--json"], capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode != 0:
        sys.stderr.write(done.stderr)
        raise AssertionError("images/build.py failed")
    built: dict[str, str] = json.loads(done.stdout)
    return built


def parts(archive: BinaryIO) -> Iterator[pb.ImportImageRequest]:
    """Yield the messages of an import."""
    yield pb.ImportImageRequest(header=pb.ImportImageRequest.ImportHeader())
    while chunk := archive.read(CHUNK_BYTES):
        yield pb.ImportImageRequest(chunk=chunk)


def uid_of(pid: int) -> int:
    """Return the user a process runs as, seen from the host."""
    return os.stat(f"/proc/{pid}").st_uid
