"""The plan: each case by example, and that carrying it out leaves nothing to do."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.instance import State
from agent.core.reconcile import (
    Adopt,
    DropRecord,
    Effect,
    LeaveToOwner,
    RecycleMidCall,
    StartMin,
    StopHalfStarted,
    StopOrphan,
    StopUnwanted,
    WantedVersion,
    World,
    plan,
    sentence,
)
from agent.model.records import InstanceRecord

KEY = ("f", 1)


def record(
    id: str, state: str = "ready", function: str = "f", *, owner: int = 0, kept: bool = False
) -> InstanceRecord:
    address, layer = "172.30.0.2", "slots"
    return InstanceRecord(
        id, function, 1, 0, 0, address, 9000, layer, 0, 1, state, 0, owner=owner, kept=kept
    )


def world(**changes: object) -> World:
    whole = World(wanted={KEY: WantedVersion()}, records=[record("a")], tasks={"a": "running"})
    return replace(whole, **changes)  # type: ignore[arg-type]


def test_what_runs_and_is_wanted_is_adopted():
    assert plan(world()) == [Adopt("a")]


def test_a_paused_instance_is_adopted_too():
    assert plan(world(tasks={"a": "paused"})) == [Adopt("a")]


def test_a_container_without_a_record_is_an_orphan():
    assert plan(world(tasks={"a": "running", "b": "running"})) == [StopOrphan("b"), Adopt("a")]
    assert plan(world(records=[])) == [StopOrphan("a")]


@pytest.mark.parametrize("tasks", [{}, {"a": "none"}, {"a": "stopped"}])
def test_a_record_whose_program_has_ended_is_dropped(tasks):
    assert plan(world(tasks=tasks)) == [DropRecord("a")]


@pytest.mark.parametrize("state", ["creating", "starting", "initializing", "draining", "?"])
def test_what_was_not_serving_is_stopped(state):
    assert plan(world(records=[record("a", state)])) == [StopHalfStarted("a")]


def test_what_is_no_longer_deployed_is_stopped():
    assert plan(world(wanted={})) == [StopUnwanted("a")]
    assert plan(world(wanted={}, records=[], tasks={"a": "running"}, held={"a": KEY})) == [
        StopUnwanted("a")
    ]


def test_after_a_kill_an_instance_in_a_call_is_recycled_at_concurrency_1():
    assert plan(world(lost={"a": 1})) == [RecycleMidCall("a")]
    many = {KEY: WantedVersion(concurrency=10)}
    assert plan(world(lost={"a": 3}, wanted=many)) == [Adopt("a")]
    job = {KEY: WantedVersion(kind="job")}
    assert plan(world(lost={"a": 1}, wanted=job)) == [Adopt("a")]


def test_while_the_old_worker_lives_its_calls_are_taken():
    assert plan(world(taken={"a": 1})) == [Adopt("a", 1)]


def test_the_death_of_one_worker_is_noticed_though_another_one_lives_long():
    assert plan(world(taken={"a": 1}, lost={"a": 1}, living=frozenset({1}))) == [
        RecycleMidCall("a")
    ]


@pytest.mark.parametrize("state", ["creating", "starting", "initializing", "draining", "stopping"])
def test_what_a_living_worker_starts_or_ends_is_left_to_it(state):
    theirs = world(records=[replace(record("a", state), owner=7)])
    assert plan(replace(theirs, living=frozenset({7}))) == [LeaveToOwner("a")]
    assert plan(replace(theirs, living=frozenset({8}))) == [StopHalfStarted("a")]


def test_a_job_whose_caller_waits_at_a_living_worker_is_left_to_it():
    kept = world(records=[replace(record("a"), owner=7, kept=True)])
    assert plan(replace(kept, living=frozenset({7}))) == [LeaveToOwner("a")]
    assert plan(kept) == [Adopt("a")]


def test_what_another_worker_starts_counts_for_the_minimum():
    theirs = world(
        records=[
            replace(record("a", "starting"), owner=7),
            replace(record("b", "draining"), owner=7),
        ],
        tasks={"a": "created", "b": "running"},
        living=frozenset({7}),
        wanted={KEY: WantedVersion(min=2)},
    )
    assert plan(theirs) == [LeaveToOwner("a"), LeaveToOwner("b"), StartMin("f", 1, 1)]


def test_an_old_worker_that_dies_in_a_call_later_is_noticed_then():
    held = world(held={"a": KEY}, lost={"a": 1})
    assert plan(held) == [RecycleMidCall("a")]
    assert plan(replace(held, lost={}, taken={"a": 1})) == []


def test_what_this_worker_holds_or_is_busy_with_is_left_alone():
    assert plan(world(held={"a": KEY})) == []
    assert plan(world(busy=frozenset({"a"}), wanted={KEY: WantedVersion()})) == []
    assert plan(world(records=[], busy=frozenset({"a"}))) == []


def test_min_is_filled_up_from_what_is_adopted_held_and_starting():
    wanted = {KEY: WantedVersion(min=5)}
    assert plan(world(wanted=wanted)) == [Adopt("a"), StartMin("f", 1, 4)]
    assert plan(world(wanted=wanted, starting={KEY: 3})) == [Adopt("a"), StartMin("f", 1, 1)]
    assert plan(world(wanted=wanted, starting={KEY: 9})) == [Adopt("a")]


def test_sentence():
    assert sentence([]) == "everything is as wanted"
    assert sentence([Adopt("a"), Adopt("b"), StopOrphan("c"), StartMin("f", 1, 2)]) == (
        "stopped 1 instance without a record, adopted 2 instances, "
        "starting 2 instances for scaling.min"
    )


def carried_out(whole: World, effects: list[Effect]) -> World:
    """What the world looks like once every effect has been acted on."""
    records = {r.id: r for r in whole.records}
    tasks, held, starting = dict(whole.tasks), dict(whole.held), dict(whole.starting)
    lost, busy = dict(whole.lost), set(whole.busy)
    for effect in effects:
        match effect:
            case Adopt(id):
                held[id] = (records[id].function, records[id].version)
                lost.pop(id, None)
            case LeaveToOwner(id):
                busy.add(id)
                key = (records[id].function, records[id].version)
                if records[id].state in ("creating", "standby", "starting", "initializing"):
                    starting[key] = starting.get(key, 0) + 1
            case StartMin(function, version, count):
                starting[function, version] = starting.get((function, version), 0) + count
            case _:
                for table in (records, tasks, held, lost):
                    table.pop(effect.id, None)
    return replace(
        whole,
        records=list(records.values()),
        tasks=tasks,
        held=held,
        lost=lost,
        busy=frozenset(busy),
        starting=starting,
    )


ids = st.sampled_from("abcdef")
keys = st.tuples(st.sampled_from("fg"), st.just(1))
worlds = st.builds(
    World,
    wanted=st.dictionaries(
        keys,
        st.builds(
            WantedVersion,
            min=st.integers(0, 3),
            concurrency=st.sampled_from([1, 10]),
            kind=st.sampled_from(["http", "job"]),
        ),
    ),
    records=st.lists(
        st.builds(
            record,
            id=ids,
            state=st.sampled_from([*(s.value for s in State), "junk"]),
            function=st.sampled_from("fg"),
            owner=st.integers(0, 2),
            kept=st.booleans(),
        ),
        unique_by=lambda r: r.id,
    ),
    tasks=st.dictionaries(
        ids, st.sampled_from(["created", "running", "paused", "stopped", "none"])
    ),
    living=st.frozensets(st.integers(1, 2)),
    taken=st.dictionaries(ids, st.integers(0, 3)),
    lost=st.dictionaries(ids, st.integers(0, 3)),
    held=st.dictionaries(ids, keys),
    busy=st.frozensets(ids, max_size=2),
    starting=st.dictionaries(keys, st.integers(0, 3)),
)


@given(worlds)
def test_a_plan_carried_out_leaves_nothing_to_do(whole):
    after = carried_out(whole, plan(whole))
    again = [e for e in plan(after) if not isinstance(e, StartMin)]
    assert again == []
    settled = carried_out(after, plan(after))
    assert plan(settled) == []


@given(worlds)
def test_each_instance_is_judged_at_most_once_and_busy_ones_never(whole):
    named = [effect.id for effect in plan(whole) if not isinstance(effect, StartMin)]
    assert len(named) == len(set(named))
    assert not whole.busy & set(named)
