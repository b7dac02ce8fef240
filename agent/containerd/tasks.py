"""Tasks: the processes of containers, made by the shim and the OCI runtime.

Create makes the namespaces and stops before exec; Start lets it run. The verbs are containerd's and
nothing is added to them: who calls what in which order is decided in `agent/sandbox`. All tasks of
one anchor share a shim, whose creates go one after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from agent._pb.containerd.services.tasks.v1 import tasks_pb2 as pb
from agent._pb.containerd.services.tasks.v1 import tasks_pb2_grpc as rpc
from agent._pb.containerd.types.task import task_pb2
from agent.containerd.channel import Channel
from agent.containerd.snapshots import SnapshotMount, mount_messages
from agent.errors import NotFound


class TaskStatus(Enum):
    """A task's state as the shim tells it; the numbers are the wire's."""

    UNKNOWN = 0
    CREATED = 1
    RUNNING = 2
    STOPPED = 3
    PAUSED = 4
    PAUSING = 5


@dataclass(frozen=True, slots=True)
class Task:
    """A task. `pid` is that of its init in the agent's pid namespace; times are wall clock, ns."""

    id: str
    pid: int
    status: TaskStatus
    exit_status: int = 0
    exited_ns: int = 0


@dataclass(frozen=True, slots=True)
class TaskExit:
    """How a task ended: 0-255, 128 + signal when a signal killed it (137 for KILL)."""

    status: int
    exited_ns: int
    pid: int = 0


@dataclass(frozen=True, slots=True)
class TaskOutput:
    """Where a task's output goes: two FIFOs which a reader has open. The shim wants both."""

    stdout: Path
    stderr: Path


class Tasks:
    """Create, start, signal, await and remove tasks."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._rpc = rpc.TasksStub(channel.grpc)

    async def create(
        self,
        id: str,
        output: TaskOutput | None = None,
        *,
        rootfs: Sequence[SnapshotMount] = (),
        deadline: float | None = None,
    ) -> int:
        """Create the task of container `id` and return the pid of its init, not yet executed.

        Without `output` what it writes is lost. `rootfs` stays empty when the spec's root.path is
        absolute. Raises AlreadyExists, NotFound (no such container, or its sandbox's shim is gone),
        RuntimeUnavailable with the runtime's own words when the container cannot be made: then a
        half-made one may be left in its cgroup and in the runtime's state directory.
        """
        request = pb.CreateTaskRequest(
            container_id=id,
            stdout=str(output.stdout) if output else "",
            stderr=str(output.stderr) if output else "",
            rootfs=mount_messages(rootfs),
        )
        reply = await self._channel.call(
            self._rpc.Create, request, f"create task {id}", deadline=deadline
        )
        return int(reply.pid)

    async def start(self, id: str, *, deadline: float | None = None) -> int:
        """Let a created task run; returns its pid. Raises FailedPrecondition if it runs already."""
        request = pb.StartRequest(container_id=id)
        reply = await self._channel.call(
            self._rpc.Start, request, f"start task {id}", deadline=deadline
        )
        return int(reply.pid)

    async def kill(
        self, id: str, signal: int, *, everyone: bool = False, deadline: float | None = None
    ) -> bool:
        """Send a signal to the init, or to `everyone` in the container.

        Returns False when there was nobody left to receive it.
        """
        request = pb.KillRequest(container_id=id, signal=signal, all=everyone)
        try:
            await self._channel.call(self._rpc.Kill, request, f"kill task {id}", deadline=deadline)
        except NotFound:
            return False
        return True

    async def wait(self, id: str, *, deadline: float) -> TaskExit:
        """Wait until the task has ended, at most until `deadline` (then RuntimeUnavailable)."""
        request = pb.WaitRequest(container_id=id)
        reply = await self._channel.call(
            self._rpc.Wait, request, f"wait for task {id}", deadline=deadline
        )
        return TaskExit(int(reply.exit_status), reply.exited_at.ToNanoseconds())

    async def delete(self, id: str, *, deadline: float | None = None) -> TaskExit:
        """Remove an ended or never started task and return how it ended.

        Raises FailedPrecondition while it runs, NotFound when there is none.
        """
        request = pb.DeleteTaskRequest(container_id=id)
        reply = await self._channel.call(
            self._rpc.Delete, request, f"delete task {id}", deadline=deadline
        )
        return TaskExit(int(reply.exit_status), reply.exited_at.ToNanoseconds(), int(reply.pid))

    async def get(self, id: str, *, deadline: float | None = None) -> Task:
        """Return one task. Raises NotFound."""
        request = pb.GetRequest(container_id=id)
        reply = await self._channel.call(
            self._rpc.Get, request, f"read task {id}", deadline=deadline
        )
        return _task(reply.process)

    async def list(self, *, deadline: float | None = None) -> list[Task]:
        """Return all tasks of the namespace; one shim call each on containerd's side."""
        request = pb.ListTasksRequest()
        reply = await self._channel.call(self._rpc.List, request, "list tasks", deadline=deadline)
        return [_task(process) for process in reply.tasks]

    async def pids(self, id: str, *, deadline: float | None = None) -> tuple[int, ...]:
        """Return the pids of all processes in the task's cgroup."""
        request = pb.ListPidsRequest(container_id=id)
        reply = await self._channel.call(
            self._rpc.ListPids, request, f"list processes of task {id}", deadline=deadline
        )
        return tuple(int(process.pid) for process in reply.processes)


def _task(process: task_pb2.Process) -> Task:
    # Get fills `id` with the container's id; List does the same.
    return Task(
        id=process.container_id or process.id,
        pid=int(process.pid),
        status=TaskStatus(process.status),
        exit_status=int(process.exit_status),
        exited_ns=process.exited_at.ToNanoseconds(),
    )
