"""Between the wire's messages and the model's values, for specs, versions, calls and figures.

A spec arrives with the fields that the caller set and is checked by `agent/model`; it leaves
whole, without secrets. What a newer caller sends and this agent does not know is refused by its
number: a limit that is silently ignored is worse than an error. The rest: `convert_watch.py`.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.unknown_fields import UnknownFieldSet

from agent._pb.worker.v1 import worker_pb2 as pb
from agent.aio.slices import Slices
from agent.contracts.base import Headers
from agent.control.errors import failure_fault
from agent.control.node import Deployed, FunctionView, InstanceView, InvokeResult
from agent.errors import InvalidSpec, Problem
from agent.model.failure import Failure
from agent.model.records import CallRecord, ColdStart, FunctionVersion, Meters
from agent.model.spec import FunctionSpec, public
from agent.model.spec_parse import parse_spec
from agent.model.spec_wire import for_wire, from_wire

# A spec of either size takes some 5 ms to check, during which no call is served.
SPEC_BYTES = 1 << 20
SPEC_ENTRIES = 4096


def spec_from_proto(message: pb.FunctionSpec) -> FunctionSpec:
    """Check what a deploy gave, return the whole spec; raises InvalidSpec, all problems at once."""
    check_size(message)
    problems = [
        Problem(
            where, "is a field this agent does not know: deploy to a newer one, or leave it out"
        )
        for where in unknown_fields(message)
    ]
    try:
        spec = parse_spec(spec_values(message))
    except InvalidSpec as error:
        raise InvalidSpec([*problems, *error.problems]) from None
    if problems:
        raise InvalidSpec(problems)
    return spec


def check_size(message: pb.FunctionSpec) -> None:
    """Refuse a spec that would take long to check; raises InvalidSpec."""
    size = message.ByteSize()
    if size > SPEC_BYTES:
        text = f"takes {size} bytes, at most {SPEC_BYTES}: put what is large into the image"
        raise InvalidSpec([Problem("spec", text)])
    for field, value in message.ListFields():
        if field.is_repeated and len(value) > SPEC_ENTRIES:
            raise InvalidSpec([Problem(field.name, f"has over {SPEC_ENTRIES} entries")])


def spec_values(message: pb.FunctionSpec) -> dict[str, Any]:
    """Return the fields that are set, named and shaped as in TOML."""
    return from_wire(MessageToDict(message, preserving_proto_field_name=True))


def spec_to_proto(spec: FunctionSpec) -> pb.FunctionSpec:
    """Return the whole spec without the values of secrets and without credentials."""
    return pb.FunctionSpec(**for_wire(public(spec)))


def unknown_fields(message: Message, path: str = "") -> list[str]:
    """Return the paths of fields that a newer caller sent, such as `scaling.field 9`."""
    unknown = UnknownFieldSet(message)
    found = [f"{path}field {unknown[n].field_number}" for n in range(len(unknown))]
    for field, value in message.ListFields():
        kind = field.message_type
        if kind is None or kind.GetOptions().map_entry:
            continue
        inner = list(value) if field.is_repeated else [value]
        for index, one in enumerate(inner):
            name = f"{field.name}[{index}]" if field.is_repeated else field.name
            found += unknown_fields(one, f"{path}{name}.")
    return found


def timestamp(at_ns: int) -> Timestamp | None:
    """Return wall time in nanoseconds as a Timestamp; 0 stands for never and gives None."""
    if at_ns == 0:
        return None
    seconds, nanos = divmod(at_ns, 1_000_000_000)
    return Timestamp(seconds=seconds, nanos=nanos)


def duration_ms(milliseconds: float) -> Duration:
    """Return a span given in milliseconds."""
    span = Duration()
    span.FromNanoseconds(round(milliseconds * 1e6))
    return span


def version_to_proto(version: FunctionVersion) -> pb.FunctionVersion:
    """Return a deployed version."""
    return pb.FunctionVersion(
        name=version.name,
        version=version.version,
        spec=spec_to_proto(version.spec),
        state=f"VERSION_STATE_{version.state.upper()}",
        reason=version.reason,
        image_digest=version.image.digest if version.image else "",
        created_at=timestamp(version.created_ns),
    )


async def function_to_proto(view: FunctionView) -> pb.Function:
    """Return a function with its versions and instances."""
    function, slices = pb.Function(name=view.name, latest=version_to_proto(view.latest)), Slices()
    for version in view.versions:
        function.versions.append(version_to_proto(version))
        await slices.pause()
    for one in sorted(view.instances, key=lambda one: one.id):
        function.instances.append(instance_to_proto(one))
        await slices.pause()
    return function


def deployed_to_proto(deployed: Deployed) -> pb.DeployResponse:
    """Return the outcome of a deploy."""
    return pb.DeployResponse(
        version=version_to_proto(deployed.version),
        created=deployed.created,
        warnings=deployed.warnings,
    )


def instance_to_proto(view: InstanceView) -> pb.Instance:
    """Return an instance."""
    return pb.Instance(
        id=view.id,
        function=view.function,
        version=view.version,
        state=f"INSTANCE_STATE_{view.state.upper()}",
        inflight=view.inflight,
        created_at=timestamp(view.created_ns),
        cold_start=cold_start_to_proto(view.cold_start),
    )


def cold_start_to_proto(cold: ColdStart | None) -> pb.ColdStart | None:
    """Return an itemised start, or None when there was none."""
    if cold is None:
        return None
    phases = {name: duration_ms(value) for name, value in cold.phases().items()}
    return pb.ColdStart(
        total=duration_ms(cold.total_ms),
        phases=pb.ColdStart.Phases(**phases),
        bytes_pulled=cold.bytes_pulled,
        cached=cold.cached,
        bytes_cached=cold.bytes_cached,
        pull=duration_ms(cold.pull_ms),
    )


def meters_to_proto(meters: Meters) -> pb.Meters:
    """Return what a call cost."""
    return pb.Meters(
        wall=duration_ms(meters.wall_ms),
        billed=duration_ms(meters.billed_ms),
        memory_gb_s=meters.memory_gb_s,
        cpu=duration_ms(meters.cpu_ms),
        cpu_exact=meters.cpu_exact,
        peak_memory_bytes=meters.peak_memory_bytes,
        pull=duration_ms(meters.pull_s * 1000),
        pull_gb_s=meters.pull_gb_s,
    )


def call_to_proto(record: CallRecord) -> pb.Call:
    """Return a call's record."""
    return pb.Call(
        id=record.id,
        function=record.function,
        version=record.version,
        instance=record.instance,
        state=f"CALL_STATE_{record.state.upper()}",
        accepted_at=timestamp(record.accepted_ns),
        started_at=timestamp(record.started_ns),
        ended_at=timestamp(record.ended_ns),
        status=record.status,
        exit_code=record.exit_code,
        error=record.error,
        meters=meters_to_proto(record.meters),
        attempts=1 if record.started_ns else 0,
        cold_start=cold_start_to_proto(record.cold_start),
    )


def headers_from_proto(headers: Any) -> Headers:
    """Return headers as they go over HTTP; raises InvalidSpec naming each that cannot."""
    problems = []
    found: Headers = []
    for index, header in enumerate(headers):
        name = header.name.encode("utf-8")
        if not name or not all(char in _TOKEN for char in name):
            problems.append(Problem(f"headers[{index}].name", "is not a token (RFC 9110, 5.6.2)"))
        if any(char in b"\r\n\0" for char in header.value):
            problems.append(
                Problem(f"headers[{index}].value", "holds CR, LF or NUL, which no header may")
            )
        found.append((name, header.value))
    if problems:
        raise InvalidSpec(problems)
    return found


_TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


def result_to_proto(result: InvokeResult) -> pb.InvokeResponse:
    """Return the reply to a call."""
    return pb.InvokeResponse(
        request_id=result.request_id,
        status=result.status,
        headers=[
            pb.Header(name=name.decode("latin-1"), value=value) for name, value in result.headers
        ],
        body=result.body,
        cold_start=cold_start_to_proto(result.cold_start),
        meters=meters_to_proto(result.meters),
        log_tail=result.log_tail,
        instance=result.instance,
        error=_call_error(result.failure),
    )


def _call_error(failure: Failure | None) -> pb.CallError | None:
    if failure is None:
        return None
    fault = failure_fault(failure.kind)
    return pb.CallError(kind=failure.kind.value, fault=fault, message=failure.message)
