"""Starting, leaving and stopping the door: health, swaps of workers, what a dead one left."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from agent._pb.worker.v1 import worker_pb2 as pb
from agent._pb.worker.v1.worker_pb2_grpc import WorkerStub
from agent.aio.tasks import spawn
from agent.control.health import Health
from agent.control.node import LogEntry
from agent.control.server import ControlServer
from agent.errors import FailedPrecondition
from agent.telemetry.logs import LogLine
from tests.component.control_door import Doors, listener, open_doors, typed
from tests.component.control_fake import AT_NS, FakeNode


@pytest.fixture
def run() -> Iterator[Path]:
    # Shorter than tmp_path: a unix socket's name has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="kd") as path:
        yield Path(path)


@pytest.fixture
async def doors(run: Path) -> AsyncIterator[Doors]:
    async with open_doors(run) as opened:
        yield opened


async def test_health_and_reflection_on_both_doors(doors: Doors) -> None:
    for socket_name in ("a.sock", "r.sock"):
        async with grpc.aio.insecure_channel(f"unix:{doors.run}/{socket_name}") as channel:
            health = health_pb2_grpc.HealthStub(channel)
            asked = health_pb2.HealthCheckRequest(service="worker.v1.Worker")
            await doors.server.health.set(serving=False)
            assert (await health.Check(asked)).status == asked_status("NOT_SERVING")
            await doors.server.health.set(serving=True)
            assert (await health.Check(asked)).status == asked_status("SERVING")
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            requests = [reflection_pb2.ServerReflectionRequest(list_services="")]
            (answer,) = [one async for one in stub.ServerReflectionInfo(iter(requests))]
            names = {one.name for one in answer.list_services_response.service}
            assert "worker.v1.Worker" in names


def asked_status(name: str) -> int:
    return int(health_pb2.HealthCheckResponse.ServingStatus.Value(name))


async def test_two_workers_swap_on_the_same_held_socket(run: Path) -> None:
    old_node, new_node = FakeNode(), FakeNode()
    with listener(run / "a.sock") as held:
        old = ControlServer(typed(old_node), Health(), run, 16)
        await old.start(held, None)
        async with grpc.aio.insecure_channel(f"unix:{run}/a.sock") as first:
            from_old = WorkerStub(first).StreamLogs(pb.StreamLogsRequest(name="f", follow=True))
            await from_old.read()
            old.leave()
            new = ControlServer(typed(new_node), Health(), run, 16)
            await new.start(held, None)
            async with grpc.aio.insecure_channel(
                f"unix:{run}/a.sock", options=[("grpc.use_local_subchannel_pool", 1)]
            ) as second:
                await WorkerStub(second).List(pb.ListRequest())
                assert new_node.seen == [("functions",)]
                old_node.lines.put_nowait(LogEntry(LogLine(AT_NS, "stdout", "i", 1, "still")))
                line = await from_old.read()
                assert isinstance(line, pb.LogLine)
                assert line.text == b"still"
                await old.stop(0.0)
                await WorkerStub(second).List(pb.ListRequest())
            await new.stop(0.0)
    assert sorted(path.name for path in run.iterdir()) == ["a.sock"]


async def test_a_connected_scheduler_loses_no_call_while_workers_change(run: Path) -> None:
    done, failed = 0, []
    changed = asyncio.Event()

    async def call_on(stub: Any) -> None:
        nonlocal done
        while not changed.is_set():
            try:
                await stub.List(pb.ListRequest(), timeout=5)
                done += 1
            except grpc.aio.AioRpcError as error:
                failed.append(error)

    async def until(count: int) -> None:
        while done < count and not failed:  # noqa: ASYNC110 - progress made by the callers
            await asyncio.sleep(0.01)

    with listener(run / "a.sock") as held:
        worker = ControlServer(typed(FakeNode()), Health(), run, 16)
        await worker.start(held, None)
        async with grpc.aio.insecure_channel(f"unix:{run}/a.sock") as channel:
            callers = [spawn("caller", call_on(WorkerStub(channel))) for _ in range(4)]
            for _ in range(5):
                successor = ControlServer(typed(FakeNode()), Health(), run, 16)
                worker.leave()
                await successor.start(held, None)
                await until(done + 50)
                await worker.stop(5.0)
                worker = successor
            changed.set()
            await asyncio.gather(*callers)
        await worker.stop(0.0)
    assert failed == []
    assert done >= 250


async def test_a_dead_workers_directory_is_swept_and_a_living_ones_kept(run: Path) -> None:
    dead = run / "grpc-dead"
    dead.mkdir()
    listener(dead / "admin").close()
    alive = run / "grpc-alive"
    alive.mkdir()
    with listener(alive / "admin"):
        async with open_doors(run):
            assert not dead.exists()
            assert alive.exists()
    assert {path.name for path in run.iterdir()} == {"grpc-alive", "a.sock", "r.sock"}


async def test_a_stop_lets_a_call_in_flight_end(run: Path) -> None:
    node = FakeNode()
    going, go = asyncio.Event(), asyncio.Event()

    async def slow(timeout_s: float | None) -> int:
        going.set()
        await go.wait()
        return 7

    node.drain = slow  # type: ignore[method-assign]
    with listener(run / "a.sock") as held:
        server = ControlServer(typed(node), Health(), run, 16)
        await server.start(held, None)
        async with grpc.aio.insecure_channel(f"unix:{run}/a.sock") as channel:
            call = WorkerStub(channel).Drain(pb.DrainRequest())
            await going.wait()
            stopping = spawn("stop", server.stop(5.0))
            go.set()
            assert (await call).inflight == 7
            await stopping


async def test_a_stop_past_its_grace_cancels_what_is_left(run: Path) -> None:
    with listener(run / "a.sock") as held:
        node = FakeNode()
        server = ControlServer(typed(node), Health(), run, 16)
        await server.start(held, None)
        async with grpc.aio.insecure_channel(f"unix:{run}/a.sock") as channel:
            stream = WorkerStub(channel).StreamLogs(pb.StreamLogsRequest(name="f", follow=True))
            await stream.read()
            await server.stop(0.05)
            with pytest.raises(grpc.aio.AioRpcError):
                await stream.read()
            assert node.closed.get_nowait() == "logs"


@pytest.mark.parametrize("where", ["missing", "x" * 90])
async def test_a_run_directory_that_will_not_do_is_named(run: Path, where: str) -> None:
    place = run / where
    if where != "missing":
        place.mkdir()
    with listener(run / "a.sock") as held:
        server = ControlServer(typed(FakeNode()), Health(), place, 16)
        with pytest.raises(FailedPrecondition, match=str(place)):
            await server.start(held, None)
    assert where == "missing" or list(place.iterdir()) == []
