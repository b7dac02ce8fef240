"""What `--json` prints: the agent's messages as plain values, under names that only ever grow.

Every key is there every time; what is not known is null. Times are RFC 3339, spans are
milliseconds and end in `_ms`, sizes are bytes. The schemas are in tests/schemas/.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.timestamp_pb2 import Timestamp

    from agent._pb.worker.v1 import worker_pb2 as pb

Json = dict[str, Any]

PHASES = ("queue", "image", "slots", "create", "start", "listen", "init")

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def print_json(value: Json) -> None:
    """Print one JSON value: one line for scripts, indented for a reader."""
    if sys.stdout.isatty():
        click.echo(json.dumps(value, indent=2, ensure_ascii=False))
    else:
        click.echo(json.dumps(value))


def print_json_line(value: Json) -> None:
    """Print one JSON value of several on a line of its own, also for a reader."""
    click.echo(json.dumps(value))


def node(message: pb.Node) -> Json:
    """Return who the node is and what it has left."""
    return {
        "name": message.name,
        "region": message.region,
        "version": message.version,
        "started_at": time(message, "started_at"),
        "draining": message.draining,
        "capacity": capacity(message.capacity),
        "components": dict(message.components),
        "contracts": list(message.contracts),
        "features": list(message.features),
        "labels": dict(message.labels),
        "summary": message.summary,
        "reload": reload(message.reload) if message.HasField("reload") else None,
        "form": message.form or "pure",
        "form_reason": message.form_reason,
    }


def reload(message: pb.Reload) -> Json:
    """Return how a reload went, or that it runs."""
    state = _enum(message, "state", "RELOAD_STATE_").lower()
    return {"number": message.number, "state": state, "reason": message.reason}


def capacity(message: pb.Capacity) -> Json:
    """Return what there is and what of it is taken."""
    return {
        "memory_bytes": message.memory_bytes,
        "memory_used_bytes": message.memory_used_bytes,
        "cpu_millis": message.cpu_millis,
        "cpu_used_millis": message.cpu_used_millis,
        "instances": message.instances,
        "instances_used": message.instances_used,
        "free_layers": {str(size): count for size, count in sorted(message.free_layers.items())},
        "inflight": message.inflight,
        "queued": message.queued,
        "image_free_bytes": message.image_free_bytes,
    }


def function(message: pb.Function) -> Json:
    """Return a function by its latest version."""
    latest = message.latest
    return {
        "name": message.name,
        "version": latest.version,
        "state": version_state(latest),
        "reason": latest.reason,
        "contract": latest.spec.contract,
        "kind": latest.spec.kind,
        "image": latest.spec.image,
        "versions": [
            {"version": one.version, "state": version_state(one)} for one in message.versions
        ],
    }


def version(message: pb.FunctionVersion) -> Json:
    """Return a deployed version with its whole spec."""
    return {
        "name": message.name,
        "version": message.version,
        "state": version_state(message),
        "reason": message.reason,
        "image_digest": message.image_digest,
        "created_at": time(message, "created_at"),
        "spec": spec(message.spec),
    }


def spec(message: pb.FunctionSpec) -> Json:
    """Return a spec as its TOML would have it."""
    from google.protobuf.json_format import MessageToDict

    from agent.model.spec_wire import from_wire

    return from_wire(MessageToDict(message, preserving_proto_field_name=True))


def instance(message: pb.Instance) -> Json:
    """Return an instance."""
    return {
        "id": message.id,
        "function": message.function,
        "version": message.version,
        "state": instance_state(message),
        "inflight": message.inflight,
        "created_at": time(message, "created_at"),
        "cold_start": cold_start(message.cold_start) if message.HasField("cold_start") else None,
    }


def image(message: pb.Image) -> Json:
    """Return an image."""
    return {
        "name": message.name,
        "digest": message.digest,
        "size_bytes": message.size_bytes,
        "created_at": time(message, "created_at"),
        "used_by": list(message.used_by),
        "unpacked_bytes": message.unpacked_bytes,
        "form": message.form,
        "used_at": time(message, "used_at"),
    }


def image_detail(message: pb.ImageDetail) -> Json:
    """Return an image with its config as its builder wrote it, and its layers, lowest first."""
    return {
        "image": image(message.image),
        "media_type": message.media_type,
        "config_digest": message.config_digest,
        "config": json.loads(message.config),
        "layers": [
            {
                "digest": layer.digest,
                "media_type": layer.media_type,
                "size_bytes": layer.size_bytes,
                "unpacked_bytes": layer.unpacked_bytes,
            }
            for layer in message.layers
        ],
    }


def garbage(message: pb.CollectGarbageResponse, *, dry_run: bool) -> Json:
    """Return what a collection removed, or would."""
    return {
        "dry_run": dry_run,
        "removed": [
            {
                "kind": one.kind,
                "name": one.name,
                "freed_bytes": one.freed_bytes,
                "freed_files": one.freed_files,
            }
            for one in message.removed
        ],
        "freed_bytes": message.freed_bytes,
        "freed_files": message.freed_files,
        "used_bytes": message.used_bytes,
        "used_files": message.used_files,
        "max_bytes": message.max_bytes,
        # 2**62: the file system counts no inodes, and none were configured.
        "max_files": message.max_files if message.max_files < 1 << 62 else None,
    }


def image_step(message: pb.ImageProgress) -> Json:
    """Return a step of a pull; `eta_s` is null while the time left cannot be told."""
    return {
        "phase": message.phase,
        "blob": message.name,
        "blob_bytes": message.bytes,
        "blob_total_bytes": message.total_bytes,
        "bytes": message.image_bytes,
        "total_bytes": message.image_total_bytes,
        "layers_done": message.layers_done,
        "layers": message.layers,
        "eta_s": message.eta.ToNanoseconds() / 1e9 if message.HasField("eta") else None,
    }


def invocation(message: pb.InvokeResponse) -> Json:
    """Return a call's reply and what is known about the call."""
    failed = message.HasField("error")
    return {
        "request_id": message.request_id,
        "status": message.status,
        "headers": headers((header.name, header.value) for header in message.headers),
        "body_base64": base64.b64encode(message.body).decode(),
        "cold_start": cold_start(message.cold_start) if message.HasField("cold_start") else None,
        "meters": meters(message.meters),
        "instance": message.instance,
        "error": call_error(message.error) if failed else None,
    }


def call_error(message: pb.CallError) -> Json:
    """Return why a call failed."""
    return {"kind": message.kind, "fault": message.fault, "message": message.message}


def job(message: pb.Call, log: list[Json] | None) -> Json:
    """Return a job's run in the shape of a call, with its record; `log` None: nobody waited."""
    return {
        "request_id": message.id,
        "status": message.status,
        "headers": {},
        "body_base64": "",
        "cold_start": cold_start(message.cold_start) if message.HasField("cold_start") else None,
        "meters": meters(message.meters),
        "instance": message.instance,
        "error": None,
        "call": {
            "id": message.id,
            "function": message.function,
            "version": message.version,
            "state": call_state(message),
            "exit_code": message.exit_code if message.HasField("exit_code") else None,
            "error": message.error,
            "accepted_at": time(message, "accepted_at"),
            "started_at": time(message, "started_at"),
            "ended_at": time(message, "ended_at"),
            "attempts": message.attempts,
        },
        "log": log,
    }


def headers(pairs: Iterable[tuple[str, bytes]]) -> dict[str, str | list[str]]:
    """Return headers by name; one that came more than once is a list, for not all can be joined."""
    spelled: dict[str, str] = {}
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        key = spelled.setdefault(name.lower(), name)
        found.setdefault(key, []).append(value.decode("latin-1"))
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}


def cold_start(message: pb.ColdStart) -> Json:
    """Return an itemised start."""
    return {
        "total_ms": ms(message.total),
        "phases": {name: ms(getattr(message.phases, name)) for name in PHASES},
        "bytes_pulled": message.bytes_pulled,
        "cached": list(message.cached),
        "bytes_cached": message.bytes_cached,
        "pull_ms": ms(message.pull),
    }


def meters(message: pb.Meters) -> Json:
    """Return what a call cost."""
    return {
        "wall_ms": ms(message.wall),
        "billed_ms": ms(message.billed),
        "memory_gb_s": message.memory_gb_s,
        "cpu_ms": ms(message.cpu),
        "cpu_exact": message.cpu_exact,
        "peak_memory_bytes": message.peak_memory_bytes,
        "pull_ms": ms(message.pull),
        "pull_gb_s": message.pull_gb_s,
    }


def log_line(message: pb.LogLine) -> Json:
    """Return a log line; bytes that are no UTF-8 are replaced."""
    return {
        "time": time(message, "time"),
        "stream": stream(message),
        "function": message.function,
        "version": message.version,
        "instance": message.instance,
        "text": message.text.decode("utf-8", "replace"),
        "partial": message.partial,
        "call": message.call,
        "shared": message.shared,
        "dropped": message.dropped,
    }


def stream(message: pb.LogLine) -> str:
    """Return stdout, stderr or platform."""
    return _enum(message, "stream", "LOG_STREAM_").lower()


def instance_state(message: pb.Instance) -> str:
    """Return a state of the instance table, such as READY."""
    return _enum(message, "state", "INSTANCE_STATE_")


def version_state(message: pb.FunctionVersion) -> str:
    """Return Preparing, Ready or Failed."""
    return _enum(message, "state", "VERSION_STATE_").capitalize()


def call_state(message: pb.Call) -> str:
    """Return a call's state, such as Succeeded."""
    return _enum(message, "state", "CALL_STATE_").capitalize()


def ms(span: Duration) -> float:
    """Return a span in milliseconds."""
    return round(span.ToNanoseconds() / 1e6, 3)


def time(message: Any, field: str) -> str | None:
    """Return a time as RFC 3339 with what precision it has, None when it is absent."""
    if not message.HasField(field):
        return None
    at: Timestamp = getattr(message, field)
    return str(at.ToJsonString())


def _enum(message: Any, field: str, prefix: str) -> str:
    """Return a value's name; one that a newer agent sent is its number."""
    number = getattr(message, field)
    found: Mapping[int, Any] = message.DESCRIPTOR.fields_by_name[field].enum_type.values_by_number
    return str(found[number].name.removeprefix(prefix)) if number in found else str(number)
