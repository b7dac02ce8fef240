"""Every RPC over real gRPC, real unix sockets and the pump, with a fake node behind."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration

from agent._pb.worker.v1 import worker_pb2 as pb
from agent.control.errors import Refusal, told
from agent.control.node import InvokeCall, InvokeResult, LogEntry, LogQuery
from agent.control.service import READONLY
from agent.errors import (
    AlreadyExists,
    FailedPrecondition,
    FunctionFailed,
    InvalidSpec,
    Overloaded,
    Problem,
)
from agent.model.failure import Failure, FailureKind
from agent.model.spec import RegistrySpec
from agent.telemetry.logs import LogLine
from tests.component.control_door import Doors, open_doors
from tests.component.control_fake import AT_NS


@pytest.fixture
def run() -> Iterator[Path]:
    # Shorter than tmp_path: a unix socket's name has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="kd") as path:
        yield Path(path)


@pytest.fixture
async def doors(run: Path) -> AsyncIterator[Doors]:
    async with open_doors(run) as opened:
        yield opened


def hello(**fields: Any) -> pb.FunctionSpec:
    return pb.FunctionSpec(name="hello", image="kindling.local/hello:1", contract="fc", **fields)


async def refused(call: Awaitable[Any]) -> Refusal:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return told(caught.value)


async def test_deploy_checks_the_spec_and_returns_the_whole_of_it(doors: Doors) -> None:
    reply = await doors.admin.Deploy(
        pb.DeployRequest(
            spec=hello(memory_mb=256, egress=["none"], secrets=[pb.Secret(name="KEY", value="s3")]),
            wait=True,
        )
    )
    assert reply.created
    assert list(reply.warnings) == ["give it more memory"]
    assert reply.version.version == 1
    assert reply.version.state == pb.VERSION_STATE_READY
    assert reply.version.created_at.ToNanoseconds() == AT_NS
    whole = reply.version.spec
    assert (whole.memory_mb, whole.port, whole.kind) == (256, 9000, "event")
    assert list(whole.egress) == ["none"]
    assert [(one.name, one.value) for one in whole.secrets] == [("KEY", "")]
    ((_, spec, wait),) = doors.node.seen
    assert wait is True
    assert (spec.memory_mb, spec.egress, spec.secrets[0].value) == (256, "none", "s3")


async def test_deploy_of_an_equal_spec_creates_nothing(doors: Doors) -> None:
    first = await doors.admin.Deploy(pb.DeployRequest(spec=hello()))
    again = await doors.admin.Deploy(pb.DeployRequest(spec=hello()))
    assert (first.created, again.created) == (True, False)
    assert again.version.version == first.version.version


async def test_a_wrong_spec_names_every_field_at_once(doors: Doors) -> None:
    wrong = hello(memory_mb=1, kind="batch", disk_mb=5)
    told = await refused(doors.admin.Deploy(pb.DeployRequest(spec=wrong)))
    assert told.code == grpc.StatusCode.INVALID_ARGUMENT
    assert told.reason == "INVALID_SPEC"
    assert {problem.field for problem in told.problems} >= {"memory_mb", "kind", "disk_mb"}
    assert told.metadata is not None
    assert told.metadata["fault"] == "caller"
    assert doors.node.seen == []


async def test_a_field_of_a_newer_api_is_refused_by_number(doors: Doors) -> None:
    newer = hello(scaling=pb.Scaling(max=3))
    newer.MergeFromString(b"\xa0\x06\x07")  # field 100, varint 7
    newer.scaling.MergeFromString(b"\xa8\x06\x01")  # field 101, varint 1
    told = await refused(doors.admin.Deploy(pb.DeployRequest(spec=newer)))
    assert told.code == grpc.StatusCode.INVALID_ARGUMENT
    assert {problem.field for problem in told.problems} == {"field 100", "scaling.field 101"}


async def test_an_empty_deploy_says_what_is_missing(doors: Doors) -> None:
    told = await refused(doors.admin.Deploy(pb.DeployRequest()))
    assert told.problems == (Problem("spec", "is missing"),)


async def test_a_hundred_problems_fit_into_the_trailers(doors: Doors) -> None:
    doors.node.error = InvalidSpec([Problem(f"env.K{n}", "ü" * 400) for n in range(100)])
    told = await refused(doors.admin.Deploy(pb.DeployRequest(spec=hello())))
    assert told.code == grpc.StatusCode.INVALID_ARGUMENT
    assert told.problems[0].field == "env.K0"
    assert told.problems[-1].message.startswith("and ")


async def test_get_remove_and_not_found(doors: Doors) -> None:
    await doors.admin.Deploy(pb.DeployRequest(spec=hello()))
    got = await doors.admin.Get(pb.GetRequest(name="hello"))
    assert got.latest.version == 1
    assert got.instances[0].state == pb.INSTANCE_STATE_READY
    assert got.instances[0].cold_start.phases.create.ToMilliseconds() == 10
    await doors.admin.Remove(pb.RemoveRequest(name="hello", force=True))
    assert doors.node.seen[-1] == ("remove", "hello", True)
    told = await refused(doors.admin.Get(pb.GetRequest(name="hello")))
    assert told.code == grpc.StatusCode.NOT_FOUND
    assert "no function hello" in told.message


async def test_list_pages_by_name_and_leaves_instances_out(doors: Doors) -> None:
    for name in ("c", "a", "b"):
        spec = hello()
        spec.name = name
        await doors.admin.Deploy(pb.DeployRequest(spec=spec))
    first = await doors.admin.List(pb.ListRequest(page_size=2))
    rest = await doors.admin.List(pb.ListRequest(page_token=first.next_page_token))
    assert [one.name for one in first.functions] == ["a", "b"]
    assert [one.name for one in rest.functions] == ["c"]
    assert rest.next_page_token == ""
    assert first.functions[0].latest.spec.image == "kindling.local/hello:1"
    assert not first.functions[0].instances
    told = await refused(doors.admin.List(pb.ListRequest(page_size=5000)))
    assert told.problems[0].field == "page_size"


async def test_a_page_of_big_specs_ends_before_grpcs_limit(doors: Doors) -> None:
    for n in range(60):
        spec = hello(args=["x" * 100_000])
        spec.name = f"f{n:02d}"
        await doors.admin.Deploy(pb.DeployRequest(spec=spec))
    names: list[str] = []
    token = ""
    while True:
        page = await doors.admin.List(pb.ListRequest(page_token=token))
        names += [one.name for one in page.functions]
        token = page.next_page_token
        if not token:
            break
    assert names == [f"f{n:02d}" for n in range(60)]


async def test_invoke_carries_bytes_both_ways(doors: Doors) -> None:
    reply = await doors.admin.Invoke(
        pb.InvokeRequest(
            name="hello",
            kind="http",
            path="/a?b=%20",
            headers=[pb.Header(name="X-Test", value=b"\xff")],
            body=b"\x00" * (6 << 20),
            log_tail=True,
        )
    )
    ((_, call),) = doors.node.seen
    assert call == InvokeCall(
        "hello", "", "http", b"POST", b"/a?b=%20", [(b"X-Test", b"\xff")], bytes(6 << 20), "", True
    )
    assert (reply.status, reply.body) == (200, b"\x00result")
    assert reply.meters.wall.ToNanoseconds() == 16_810_000
    assert reply.cold_start.total.ToMilliseconds() == 20
    assert list(reply.cold_start.cached) == ["image", "network"]
    assert not reply.HasField("error")


async def test_a_functions_failure_is_a_reply_not_an_error(doors: Doors) -> None:
    failure = Failure(FailureKind.OUT_OF_MEMORY, "killed", exit_code=137, signal=9)
    doors.node.result = InvokeResult("id", 502, [], b"{}", failure=failure)
    reply = await doors.admin.Invoke(pb.InvokeRequest(name="hello"))
    assert reply.status == 502
    assert (reply.error.kind, reply.error.fault) == ("out_of_memory", "function")
    assert not reply.HasField("cold_start")


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.InvokeRequest(name="f", kind="rpc"), "kind"),
        (pb.InvokeRequest(name="f", method="GET /x HTTP/1.1\r\nA:"), "method"),
        (pb.InvokeRequest(name="f", path="/a b"), "path"),
        (pb.InvokeRequest(name="f", path="http://other/"), "path"),
        (pb.InvokeRequest(name="f", headers=[pb.Header(name="a b")]), "headers[0].name"),
        (pb.InvokeRequest(name="f", headers=[pb.Header(name="a", value=b"1\r\nb: 2")]),
         "headers[0].value"),
        (pb.InvokeRequest(name="f", request_id="a\nb"), "request_id"),
        (pb.InvokeRequest(), "name"),
    ],
)  # fmt: skip
async def test_what_cannot_stand_in_a_request_is_refused(
    doors: Doors, request_: pb.InvokeRequest, field: str
) -> None:
    told = await refused(doors.admin.Invoke(request_))
    assert told.code == grpc.StatusCode.INVALID_ARGUMENT
    assert told.problems[0].field == field
    assert doors.node.seen == []


async def test_jobs_and_their_records(doors: Doors) -> None:
    done = await doors.admin.RunJob(pb.RunJobRequest(name="job", event=b"{}", wait=True))
    assert doors.node.seen[-1] == ("run_job", "job", "", b"{}", True, "")
    assert done.state == pb.CALL_STATE_SUCCEEDED
    assert (done.HasField("exit_code"), done.exit_code) == (True, 0)
    started = await doors.admin.RunJob(pb.RunJobRequest(name="job"))
    assert not started.HasField("exit_code")
    assert not started.HasField("ended_at")
    kept = await doors.readonly.GetCall(pb.GetCallRequest(id="c9"))
    assert (kept.id, kept.state, kept.exit_code) == ("c9", pb.CALL_STATE_FAILED, 3)


@pytest.mark.parametrize(
    ("error", "code", "reason", "kind"),
    [
        (AlreadyExists("taken"), "ALREADY_EXISTS", "ALREADY_EXISTS", None),
        (Overloaded("full", reason="slots", retry_after_s=2.5), "RESOURCE_EXHAUSTED",
         "OVERLOADED", "slots"),
        (Overloaded("no", reason="draining"), "UNAVAILABLE", "OVERLOADED", "draining"),
        (FunctionFailed(Failure(FailureKind.EXITED_AT_START, exit_code=3, log_lines=("boom",))),
         "FAILED_PRECONDITION", "FUNCTION_FAILED", "exited_at_start"),
        (FunctionFailed(Failure(FailureKind.FUNCTION_NOT_FOUND)), "NOT_FOUND", "FUNCTION_FAILED",
         "function_not_found"),
        (ZeroDivisionError("secret"), "INTERNAL", "INTERNAL", None),
        (TimeoutError(), "DEADLINE_EXCEEDED", "TIMEOUT", None),
    ],
)  # fmt: skip
async def test_errors_become_codes_and_details(
    doors: Doors, error: Exception, code: str, reason: str, kind: str | None
) -> None:
    doors.node.error = error
    told = await refused(doors.admin.Invoke(pb.InvokeRequest(name="hello")))
    assert (told.code.name, told.reason) == (code, reason)
    assert "secret" not in told.message
    assert (told.metadata or {}).get("kind") == kind
    if isinstance(error, Overloaded):
        assert told.retry_after_s == error.retry_after_s
    if kind == "exited_at_start":
        assert told.metadata == {
            "fault": "function",
            "retryable": "false",
            "kind": "exited_at_start",
            "exit_code": "3",
        }
        assert told.log == "boom"


def _call(stub: Any, name: str) -> Awaitable[Any]:
    method = pb.DESCRIPTOR.services_by_name["Worker"].methods_by_name[name]
    if method.client_streaming:
        return getattr(stub, name)(iter(()))  # type: ignore[no-any-return]
    request = getattr(pb, method.input_type.name)()
    if method.server_streaming:
        return getattr(stub, name)(request).read()  # type: ignore[no-any-return]
    return getattr(stub, name)(request)  # type: ignore[no-any-return]


ALL_CALLS = sorted(pb.DESCRIPTOR.services_by_name["Worker"].methods_by_name)


@pytest.mark.parametrize("name", ALL_CALLS)
async def test_the_readonly_socket_admits_only_what_changes_nothing(
    doors: Doors, name: str
) -> None:
    code, text = grpc.StatusCode.OK, ""
    try:
        await _call(doors.readonly, name)
    except grpc.aio.AioRpcError as error:
        code, text = error.code(), error.details() or ""
    assert (code == grpc.StatusCode.PERMISSION_DENIED) == (name not in READONLY)
    if name not in READONLY:
        assert name in text
        assert "admin socket" in text
        assert doors.node.seen == []


def test_the_proto_marks_the_same_calls_as_readonly() -> None:
    text = (Path(__file__).parents[2] / "proto/worker/v1/worker.proto").read_text()
    marked, comment = set(), ""
    for line in text.splitlines():
        if line.strip().startswith("//"):
            comment += line
        elif line.strip().startswith("rpc "):
            if comment.endswith("read-only"):
                marked.add(line.split()[1].split("(")[0])
            comment = ""
        else:
            comment = ""
    assert marked == READONLY


@pytest.mark.parametrize("name", ["SetScaling", "PullUsage", "AckUsage"])
async def test_what_is_not_built_says_so_by_name(doors: Doors, name: str) -> None:
    told = await refused(_call(doors.admin, name))
    assert told.code == grpc.StatusCode.UNIMPLEMENTED
    assert name in told.message


async def test_a_node_that_has_not_built_a_verb_is_unimplemented(doors: Doors) -> None:
    told = await refused(doors.admin.StopCall(pb.StopCallRequest(id="c1")))
    assert (told.code.name, told.message.split()[0]) == ("UNIMPLEMENTED", "StopCall")
    group = pb.DeployRequest(group=pb.GroupSpec(name="g"))
    assert "group" in (await refused(doors.admin.Deploy(group))).message
    functions = pb.FunctionCredentials(name="f", access_key_secret="s3cret")
    told = await refused(doors.admin.SetCredentials(pb.SetCredentialsRequest(function=functions)))
    assert told.code.name == "UNIMPLEMENTED"
    assert told.message.startswith("SetCredentials for a function ")


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


async def test_logs_keep_their_bytes_and_end_without_follow(doors: Doors) -> None:
    request = pb.StreamLogsRequest(name="hello", tail=3)
    (line,) = [line async for line in doors.readonly.StreamLogs(request)]
    assert doors.node.seen == [("logs", "hello", LogQuery(tail=3))]
    assert line.time.ToNanoseconds() == AT_NS
    assert (line.stream, line.text) == (pb.LOG_STREAM_STDERR, b"caf\xe9")
    assert (line.partial, line.dropped, line.version) == (True, 4, 1)
    assert doors.node.closed.get_nowait() == "logs"


async def test_a_follower_gets_lines_as_they_come_and_is_closed_when_it_goes(doors: Doors) -> None:
    stream = doors.admin.StreamLogs(pb.StreamLogsRequest(name="hello", follow=True))
    await stream.read()
    doors.node.lines.put_nowait(LogEntry(LogLine(AT_NS, "platform", "i1", 1, "FC Invoke End")))
    line = await stream.read()
    assert isinstance(line, pb.LogLine)
    assert line.stream == pb.LOG_STREAM_PLATFORM
    assert doors.node.closed.empty()
    stream.cancel()
    async with asyncio.timeout(5):
        assert await doors.node.closed.get() == "logs"


@pytest.mark.parametrize("what", ["events", "log"])
async def test_a_watcher_is_told_that_it_watches_before_anything_happens(
    doors: Doors, what: str
) -> None:
    doors.node.quiet.clear()
    stream: grpc.aio.UnaryStreamCall[Any, Any]
    if what == "events":
        stream = doors.readonly.WatchEvents(pb.WatchEventsRequest())
    else:
        stream = doors.readonly.StreamLogs(pb.StreamLogsRequest(name="hello", follow=True))
    async with asyncio.timeout(20):
        await stream.initial_metadata()
    assert doors.node.seen
    doors.node.quiet.set()
    async with asyncio.timeout(20):
        assert await stream.read() is not grpc.aio.EOF


async def test_a_watch_that_is_refused_is_not_told_to_have_begun(doors: Doors) -> None:
    doors.node.error = FailedPrecondition("no longer kept")
    told = await refused(doors.readonly.WatchEvents(pb.WatchEventsRequest()).read())
    assert told.code == grpc.StatusCode.FAILED_PRECONDITION


async def test_events_capacity_and_node(doors: Doors) -> None:
    watch = doors.readonly.WatchEvents(pb.WatchEventsRequest(resume_token="7", functions=["hello"]))
    (event,) = [event async for event in watch]
    assert doors.node.seen[-1] == ("events", "7", frozenset({"hello"}))
    assert (event.token, event.type, dict(event.details)) == (
        "8",
        "InstanceReady",
        {"port": "9000"},
    )
    request = pb.WatchCapacityRequest(min_interval=Duration(nanos=1))
    (capacity,) = [one async for one in doors.readonly.WatchCapacity(request)]
    assert doors.node.seen[-1] == ("capacity", 0.05)
    assert dict(capacity.free_layers) == {512: 9, 10240: 1}
    node = await doors.readonly.GetNode(pb.GetNodeRequest())
    assert node.capacity.memory_bytes == 1 << 34
    assert dict(node.components) == {"crun": "1.8.1"}


async def test_drain_and_undrain(doors: Doors) -> None:
    reply = await doors.admin.Drain(pb.DrainRequest(timeout=Duration(seconds=3)))
    assert reply.inflight == 2
    await doors.admin.Drain(pb.DrainRequest())
    await doors.admin.Undrain(pb.UndrainRequest())
    assert doors.node.seen == [("drain", 3.0), ("drain", None), ("undrain",)]
    told = await refused(doors.admin.Drain(pb.DrainRequest(timeout=Duration(seconds=-3))))
    assert told.problems[0].field == "timeout"


async def test_a_reload_is_asked_for_and_the_node_tells_how_it_went(doors: Doors) -> None:
    assert not (await doors.admin.GetNode(pb.GetNodeRequest())).HasField("reload")
    doors.node.reload_looks, doors.node.reload_reason = 1, "no such module"
    assert (await doors.admin.Reload(pb.ReloadRequest())).number == 1
    found = [(await doors.readonly.GetNode(pb.GetNodeRequest())).reload for _ in range(2)]
    assert [(one.number, one.state, one.reason) for one in found] == [
        (1, pb.RELOAD_STATE_RUNNING, ""),
        (1, pb.RELOAD_STATE_FAILED, "no such module"),
    ]
