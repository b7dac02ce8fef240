"""Container records: what should run, kept by containerd; running it is in `tasks`.

A record holds the OCI spec as JSON and the runtime's options. With `sandbox` its task is served by
the shim of that anchor (see `sandboxes`) instead of a new one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf import any_pb2

from agent._pb.containerd.services.containers.v1 import containers_pb2 as pb
from agent._pb.containerd.services.containers.v1 import containers_pb2_grpc as rpc
from agent._pb.containerd.types.runc.options import oci_pb2
from agent.containerd.channel import Channel

RUNTIME = "io.containerd.runc.v2"
OPTIONS_URL = "containerd.runc.v1.Options"
SPEC_URL = "types.containerd.io/opencontainers/runtime-spec/1/Spec"


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """Which OCI runtime the shim drives and where that keeps its state (`root`, on tmpfs)."""

    binary: str
    root: Path
    no_new_keyring: bool = True
    systemd_cgroup: bool = False

    def any(self) -> any_pb2.Any:
        """Return them as the shim expects them."""
        options = oci_pb2.Options(
            binary_name=self.binary,
            root=str(self.root),
            no_new_keyring=self.no_new_keyring,
            systemd_cgroup=self.systemd_cgroup,
        )
        return any_pb2.Any(type_url=OPTIONS_URL, value=options.SerializeToString())


@dataclass(frozen=True, slots=True)
class ContainerRecord:
    """A container record. `spec` is OCI runtime JSON; `sandbox` an anchor's id or ""."""

    id: str
    spec: bytes
    labels: Mapping[str, str] = field(default_factory=dict)
    image: str = ""
    sandbox: str = ""
    snapshotter: str = ""
    snapshot_key: str = ""
    created_ns: int = 0


class Containers:
    """Create, read and remove container records."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._rpc = rpc.ContainersStub(channel.grpc)

    async def create(
        self, container: ContainerRecord, options: RuntimeOptions, *, deadline: float | None = None
    ) -> None:
        """Write a new record. Raises AlreadyExists when the id is taken."""
        record = pb.Container(
            id=container.id,
            labels=dict(container.labels),
            image=container.image,
            runtime=pb.Container.Runtime(name=RUNTIME, options=options.any()),
            spec=any_pb2.Any(type_url=SPEC_URL, value=container.spec),
            snapshotter=container.snapshotter,
            snapshot_key=container.snapshot_key,
            sandbox=container.sandbox,
        )
        request = pb.CreateContainerRequest(container=record)
        what = f"create container {container.id}"
        await self._channel.call(self._rpc.Create, request, what, deadline=deadline)

    async def get(self, id: str, *, deadline: float | None = None) -> ContainerRecord:
        """Return one record. Raises NotFound."""
        request = pb.GetContainerRequest(id=id)
        reply = await self._channel.call(
            self._rpc.Get, request, f"read container {id}", deadline=deadline
        )
        return _container(reply.container)

    async def list(
        self, filters: Sequence[str] = (), *, deadline: float | None = None
    ) -> list[ContainerRecord]:
        """Return the records that match any filter, such as 'labels."kindling.kind"==anchor'.

        They come one by one: a thousand with their specs are ten megabytes, too much to read at
        once while calls wait.
        """
        request = pb.ListContainersRequest(filters=filters)
        replies = self._channel.stream(
            self._rpc.ListStream, request, "list containers", deadline=deadline
        )
        return [_container(reply.container) async for reply in replies]

    async def delete(self, id: str, *, deadline: float | None = None) -> None:
        """Remove a record; its task must be gone. Raises NotFound."""
        request = pb.DeleteContainerRequest(id=id)
        await self._channel.call(
            self._rpc.Delete, request, f"delete container {id}", deadline=deadline
        )


def _container(record: pb.Container) -> ContainerRecord:
    return ContainerRecord(
        id=record.id,
        spec=record.spec.value,
        labels=dict(record.labels),
        image=record.image,
        sandbox=record.sandbox,
        snapshotter=record.snapshotter,
        snapshot_key=record.snapshot_key,
        created_ns=record.created_at.ToNanoseconds(),
    )
