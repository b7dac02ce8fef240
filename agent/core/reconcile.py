"""What a worker does about what it finds: the difference between wanted, recorded and running.

The plan is made from one look at the world and asks for nothing twice: carried out and made again,
it is empty. It relies on this: (1) an instance's record is written before its container is made and
removed after everything of it is gone; (2) containers of ours carry the instance's id; (3) the
ledger says which instances are in a call of another worker; (4) while that worker lives, its calls
are taken, not lost, and what it starts or ends is its own.

`agent/recovery/reconcile.py` looks and acts, at every start and on a timer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

from agent.core.instance import BEFORE_READY, State
from agent.model.records import InstanceRecord

TaskStatus = Literal["created", "running", "paused", "stopped", "none"]
Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class WantedVersion:
    """A deployed version. `min` is 0 for versions that only their number reaches."""

    min: int = 0
    concurrency: int = 1
    kind: str = "http"


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """One look at everything.

    `tasks` has every container of ours by id, `none` where it has no task. `living` are the
    generations of other workers that still run; `taken` counts their calls by instance, `lost`
    those of workers that have died. `held` are the instances that serve under this worker, `busy`
    those that it is starting or stopping right now (they are left alone), `starting` how many of a
    version are among them.
    """

    wanted: Mapping[Key, WantedVersion] = field(default_factory=dict)
    records: Collection[InstanceRecord] = ()
    tasks: Mapping[str, TaskStatus] = field(default_factory=dict)
    living: frozenset[int] = frozenset()
    taken: Mapping[str, int] = field(default_factory=dict)
    lost: Mapping[str, int] = field(default_factory=dict)
    held: Mapping[str, Key] = field(default_factory=dict)
    busy: frozenset[str] = frozenset()
    starting: Mapping[Key, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Adopt:
    """Take a running instance over, with `taken` calls of other workers in flight."""

    id: str
    taken: int = 0


@dataclass(frozen=True, slots=True)
class LeaveToOwner:
    """Leave an instance to the living worker that starts it, ends it or keeps it."""

    id: str


@dataclass(frozen=True, slots=True)
class StopOrphan:
    """Kill and delete a container that no record knows."""

    id: str


@dataclass(frozen=True, slots=True)
class DropRecord:
    """Give back what a record names; its program has ended, or its container is gone."""

    id: str


@dataclass(frozen=True, slots=True)
class RecycleMidCall:
    """Stop an instance of concurrency 1 whose worker died in a call: its state is unknown."""

    id: str


@dataclass(frozen=True, slots=True)
class StopHalfStarted:
    """Stop an instance whose worker died before it served, or while it was stopping it."""

    id: str


@dataclass(frozen=True, slots=True)
class StopUnwanted:
    """Drain and stop an instance whose version is no longer deployed."""

    id: str


@dataclass(frozen=True, slots=True)
class StartMin:
    """Start instances of a version until it has its minimum."""

    function: str
    version: int
    count: int


Effect = (
    Adopt
    | LeaveToOwner
    | StopOrphan
    | DropRecord
    | RecycleMidCall
    | StopHalfStarted
    | StopUnwanted
    | StartMin
)


_COMING = frozenset(state.value for state in BEFORE_READY)


def plan(world: World) -> list[Effect]:
    """Return what to do, stops first, then adoptions, then starts."""
    known = {record.id for record in world.records} | world.held.keys() | world.busy
    effects: list[Effect] = [StopOrphan(id) for id in world.tasks if id not in known]
    adopted: Counter[Key] = Counter()
    for record in world.records:
        if record.id in world.held or record.id in world.busy:
            continue
        effect = _judge(record, world)
        if isinstance(effect, Adopt) or _will_serve(effect, record):
            adopted[record.function, record.version] += 1
        effects.append(effect)
    effects += _about_held(world)
    effects += _starts(world, adopted)
    return sorted(effects, key=_rank)


def _judge(record: InstanceRecord, world: World) -> Effect:
    if record.owner in world.living and (record.kept or record.state != State.READY.value):
        return LeaveToOwner(record.id)
    status = world.tasks.get(record.id, "none")
    if status in ("none", "stopped"):
        return DropRecord(record.id)
    if record.state != State.READY.value:
        return StopHalfStarted(record.id)
    wanted = world.wanted.get((record.function, record.version))
    if wanted is None:
        return StopUnwanted(record.id)
    if _was_mid_call(record.id, wanted, world):
        return RecycleMidCall(record.id)
    return Adopt(record.id, world.taken.get(record.id, 0))


def _will_serve(effect: Effect, record: InstanceRecord) -> bool:
    """Say whether an instance that is left to its owner is on its way to serve."""
    return isinstance(effect, LeaveToOwner) and record.state in _COMING


def _was_mid_call(id: str, wanted: WantedVersion, world: World) -> bool:
    return world.lost.get(id, 0) > 0 and wanted.concurrency == 1 and wanted.kind != "job"


def _about_held(world: World) -> list[Effect]:
    """Judge what already serves here: removed meanwhile, or its old worker died in a call."""
    effects: list[Effect] = []
    for id, key in world.held.items():
        wanted = world.wanted.get(key)
        if id in world.busy:
            continue
        if wanted is None:
            effects.append(StopUnwanted(id))
        elif _was_mid_call(id, wanted, world):
            effects.append(RecycleMidCall(id))
    return effects


def _starts(world: World, adopted: Counter[Key]) -> list[Effect]:
    held = Counter(key for id, key in world.held.items() if id not in world.busy)
    serving = adopted + held + Counter(dict(world.starting))
    return [
        StartMin(name, version, wanted.min - serving[name, version])
        for (name, version), wanted in world.wanted.items()
        if wanted.min > serving[name, version]
    ]


_ORDER = (
    StopOrphan,
    DropRecord,
    StopHalfStarted,
    RecycleMidCall,
    StopUnwanted,
    LeaveToOwner,
    Adopt,
    StartMin,
)


def _rank(effect: Effect) -> int:
    return _ORDER.index(type(effect))


_WORDS: dict[type[Effect], str] = {
    Adopt: "adopted {}",
    LeaveToOwner: "left {} to the worker before",
    StopOrphan: "stopped {} without a record",
    DropRecord: "cleared {} that had ended",
    RecycleMidCall: "recycled {} left in a call",
    StopHalfStarted: "stopped {} half started",
    StopUnwanted: "stopped {} no longer wanted",
    StartMin: "starting {} for scaling.min",
}


def sentence(effects: Collection[Effect]) -> str:
    """Say in one sentence what a plan does."""
    counts: Counter[type[Effect]] = Counter()
    for effect in effects:
        counts[type(effect)] += effect.count if isinstance(effect, StartMin) else 1
    if not counts:
        return "everything is as wanted"
    told = [
        _WORDS[kind].format(f"{counts[kind]} instance{'s' * (counts[kind] != 1)}")
        for kind in _ORDER
        if counts[kind]
    ]
    return ", ".join(told)
