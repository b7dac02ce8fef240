"""From the node's values to the wire's messages for images, logs, events and the node itself.

One way only: nothing of these comes in. Specs, versions and calls are in `convert.py`.
"""

from __future__ import annotations

from agent._pb.worker.v1 import worker_pb2 as pb
from agent.control.convert import timestamp
from agent.control.node import (
    CapacityView,
    GarbageReport,
    ImageDetail,
    ImageStep,
    ImageView,
    LogEntry,
    NodeView,
    WatchedEvent,
)
from agent.rootless.outcome import ReloadOutcome


def image_to_proto(view: ImageView) -> pb.Image:
    """Return an image."""
    return pb.Image(
        name=view.name,
        digest=view.digest,
        size_bytes=view.size_bytes,
        created_at=timestamp(view.created_ns),
        used_by=sorted(view.used_by),
        unpacked_bytes=view.unpacked_bytes,
        form=view.form,
        used_at=timestamp(view.used_ns),
    )


def image_detail_to_proto(detail: ImageDetail) -> pb.ImageDetail:
    """Return an image with its config and layers."""
    return pb.ImageDetail(
        image=image_to_proto(detail.image),
        media_type=detail.media_type,
        config_digest=detail.config_digest,
        config=detail.config,
        layers=[
            pb.ImageLayer(
                digest=layer.digest,
                media_type=layer.media_type,
                size_bytes=layer.size_bytes,
                unpacked_bytes=layer.unpacked_bytes,
            )
            for layer in detail.layers
        ],
    )


def garbage_to_proto(report: GarbageReport) -> pb.CollectGarbageResponse:
    """Return what a collection removed."""
    return pb.CollectGarbageResponse(
        removed=[
            pb.Garbage(
                kind=one.kind,
                name=one.name,
                freed_bytes=one.freed.bytes,
                freed_files=one.freed.files,
            )
            for one in report.removed
        ],
        # Others bring images meanwhile: a collection may end with more than it began with.
        freed_bytes=max(0, report.freed.bytes),
        freed_files=max(0, report.freed.files),
        used_bytes=report.used.bytes,
        used_files=report.used.files,
        max_bytes=report.most.bytes,
        max_files=report.most.files,
    )


def step_to_proto(step: ImageStep) -> pb.ImageProgress:
    """Return a step of a pull."""
    message = pb.ImageProgress(
        phase=step.phase,
        name=step.name,
        bytes=step.bytes_done,
        total_bytes=step.bytes_total,
        done=image_to_proto(step.done) if step.done else None,
        warnings=step.warnings,
    )
    if (whole := step.whole) is not None:
        message.image_bytes, message.image_total_bytes = whole.done_bytes, whole.total_bytes
        message.layers_done, message.layers = whole.layers_done, whole.layers
        if whole.eta_s is not None:
            message.eta.FromNanoseconds(int(whole.eta_s * 1e9))
    return message


def log_to_proto(function: str, entry: LogEntry) -> pb.LogLine:
    """Return a log line of `function`; bytes that were no UTF-8 come out as they went in."""
    line = entry.line
    return pb.LogLine(
        time=timestamp(line.at_ns),
        stream=f"LOG_STREAM_{line.stream.upper()}",
        function=function,
        version=line.version,
        instance=line.instance,
        text=line.text.encode("utf-8", "surrogateescape"),
        partial=line.more,
        call=entry.call,
        shared=entry.shared,
        dropped=entry.dropped,
    )


def event_to_proto(event: WatchedEvent) -> pb.Event:
    """Return an event."""
    return pb.Event(
        token=event.token,
        time=timestamp(event.at_ns),
        type=event.type,
        function=event.function,
        version=event.version,
        instance=event.instance,
        call=event.call,
        message=event.message,
        details=event.details,
    )


def node_to_proto(view: NodeView) -> pb.Node:
    """Return who the node is."""
    return pb.Node(
        name=view.name,
        region=view.region,
        version=view.version,
        started_at=timestamp(view.started_ns),
        draining=view.draining,
        capacity=capacity_to_proto(view.capacity),
        components=view.components,
        contracts=view.contracts,
        features=view.features,
        labels=view.labels,
        summary=view.summary,
        reload=reload_to_proto(view.reload) if view.reload.number else None,
        form=view.form.name,
        form_reason=view.form.why,
    )


def reload_to_proto(outcome: ReloadOutcome) -> pb.Reload:
    """Return how a reload went, or that it runs."""
    state = f"RELOAD_STATE_{outcome.state.upper()}"
    return pb.Reload(number=outcome.number, state=state, reason=outcome.reason)


def capacity_to_proto(view: CapacityView) -> pb.Capacity:
    """Return what there is and what is taken."""
    return pb.Capacity(
        time=timestamp(view.at_ns),
        memory_bytes=view.memory_bytes,
        memory_used_bytes=view.memory_used_bytes,
        cpu_millis=view.cpu_millis,
        cpu_used_millis=view.cpu_used_millis,
        instances=view.instances,
        instances_used=view.instances_used,
        free_layers=view.free_layers,
        inflight=view.inflight,
        queued=view.queued,
        draining=view.draining,
        image_free_bytes=view.image_free_bytes,
    )
