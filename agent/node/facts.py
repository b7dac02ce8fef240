"""What the node says about itself: versions, memory, readiness, and what happens to instances.

Read-only towards everything: it turns states into metrics, events and pages.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.aio.slices import Slices
from agent.core.billing import gb_s
from agent.core.instance import State
from agent.instances.fleet import Fleet
from agent.instances.instance import Instance
from agent.model.failure import Failure
from agent.model.records import Exit
from agent.telemetry.events import Events, Subject
from agent.telemetry.metrics import AgentMetrics

if TYPE_CHECKING:
    from agent.deployments.image_use import ImageUse
    from agent.node.parts import NodeParts

MB = 1 << 20
FUNCTION_SHARE = 0.9  # of the host's memory, when the config does not say


def memory_for_functions(configured_mb: int) -> int:
    """Return the bytes that functions may have together: as configured, or nine tenths."""
    if configured_mb:
        return configured_mb * MB
    return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * FUNCTION_SHARE)


def components(lib: Path, agent: str) -> dict[str, str]:
    """Return the versions of what the agent stands on, as setup wrote them down."""
    found = {"kindling": agent}
    try:
        lines = (lib / "versions").read_text("utf-8").splitlines()
    except OSError:
        return found
    for line in lines:
        name, _, rest = line.partition(" ")
        found[name] = rest.split(" ")[0]
    return found


class Watcher:
    """Turns what happens to instances into events and metrics."""

    def __init__(self, metrics: AgentMetrics, events: Events) -> None:
        self._events = events
        self._metrics = metrics
        self._pull_gb_s = 0.0
        self._spent = metrics.histogram(
            "kindling_instance_state_seconds", "Time instances spent in a state", ("state",)
        )
        self._phases = metrics.histogram(
            "kindling_cold_start_seconds", "Phases of cold starts", ("phase",)
        )

    def count_pulls(self, use: ImageUse) -> None:
        """Show what pulls have taken."""
        totals, metrics = use.totals, self._metrics
        for name, text, read in (
            ("kindling_image_pulls", "Pulls that fetched something.", lambda: totals.pulls),
            ("kindling_image_pull_seconds", "Time that pulls took.", lambda: totals.seconds),
        ):
            metrics.counter(name, text, read)
        metrics.counter(
            "kindling_image_bytes",
            "Compressed bytes of pulled images, by where they came from.",
            lambda: {
                ("registry",): float(totals.fetched_bytes),
                ("cache",): float(totals.cached_bytes),
            },
            ("source",),
        )
        metrics.counter(
            "kindling_start_pull_gb_seconds",
            "Memory size times the time that starts waited for a pull.",
            lambda: self._pull_gb_s,
        )

    def count_frozen(self, fleet: Fleet) -> None:
        """Show how many instances stand still, and how often that began."""
        admission, freezing = fleet.admission, fleet.freezing
        text = "READY instances that stand still: they take memory and no CPU."
        self._metrics.gauge("kindling_instances_frozen", text, lambda: admission.use.frozen)
        text = "How often an instance was frozen."
        self._metrics.counter("kindling_instance_freezes", text, lambda: freezing.count)

    def count_standbys(self, read: Callable[[], float]) -> None:
        """Show how many containers are created and not started."""
        text = "Containers created for a start to come, not started."
        self._metrics.gauge("kindling_standbys", text, read)

    def state_left(self, state: State, spent_s: float) -> None:
        """Note how long an instance was in the state it has left."""
        self._spent.labels(state.value).observe(spent_s)

    def instance_ready(self, instance: Instance) -> None:
        """Note that an instance serves."""
        cold = instance.cold_start
        if cold is not None:
            for phase, spent_ms in cold.phases().items():
                self._phases.labels(phase).observe(spent_ms / 1000)
            if cold.pull_ms:
                self._phases.labels("pull").observe(cold.pull_ms / 1000)
                memory_mb = instance.version.spec.memory_mb
                self._pull_gb_s += gb_s(memory_mb, cold.pull_ms / 1000)
            self._phases.labels("total").observe(cold.total_ms / 1000)
        total_ms = cold.total_ms if cold is not None else 0.0
        self._events.add("InstanceReady", _subject(instance), f"ready after {total_ms:.1f} ms")

    def instance_frozen(self, instance: Instance) -> None:
        """Note that an instance was frozen for the first time; every time would fill the ring."""
        self._events.add("InstanceFrozen", _subject(instance), "frozen until its next call")

    def instance_ended(self, instance: Instance, failure: Failure | None) -> None:
        """Note that an instance is gone."""
        if failure is None:
            details = _exit_details(instance.last_exit)
            self._events.add("InstanceStopped", _subject(instance), "stopped as wanted", details)
            return
        details = {"kind": failure.kind.value}
        if failure.exit_code is not None:
            details["exit_code"] = str(failure.exit_code)
        if failure.signal is not None:
            details["signal"] = str(failure.signal)
        if failure.out_of_memory:
            details["out_of_memory"] = "true"
        self._events.add("InstanceFailed", _subject(instance), failure.message, details)


def _exit_details(last: Exit | None) -> dict[str, str]:
    """Say how the process ended of which that was wanted; nothing if it never ran."""
    if last is None:
        return {}
    details = {"exit_code": str(last.exit_code)}
    return details if last.signal is None else details | {"signal": str(last.signal)}


def _subject(instance: Instance) -> Subject:
    return Subject(instance.version.name, instance.version.version, instance.id)


class NodeFactsView:
    """What the operators' door shows."""

    def __init__(self, parts: NodeParts) -> None:
        self._parts = parts

    def unready(self) -> str | None:
        """Return None when the node takes calls, else why not."""
        return None if self._parts.mode.takes_calls else "the node drains"

    async def state(self) -> dict[str, Any]:
        """Return the whole state for somebody who debugs at night, as JSON values."""
        parts, slices = self._parts, Slices()
        targets = []
        for target in parts.catalog.targets():
            targets.append(repr(target))
            await slices.pause()
        return {
            "summary": parts.reconciler.sentence,
            "fleet": repr(parts.runners.fleet),
            "shims": repr(parts.runners.builder.shims),
            "jobs": repr(parts.runners.jobs),
            "lazy": repr(parts.lazy),
            "targets": targets,
            "layers": {kind: repr(counts) for kind, counts in parts.layers.counts().items()},
            "gateway": parts.gateway.state(),
        }

    def status(self) -> list[tuple[str, str]]:
        """Return the rows of the status page."""
        parts = self._parts
        admission = parts.runners.fleet.admission
        use, most = admission.use, admission.bounds.memory_bytes
        return [
            ("node", parts.config.node.name),
            ("summary", parts.reconciler.sentence),
            ("functions", str(len(parts.catalog.functions()))),
            ("instances", f"{use.instances}, {use.frozen} of them frozen"),
            ("memory", f"{use.memory_bytes // MB} of {most // MB} MB"),
            *(("completing", line) for line in parts.lazy.progress()),
        ]
