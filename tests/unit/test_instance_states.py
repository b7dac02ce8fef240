"""The instance's table: shape, walks, and that a wrong event changes nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.instance import (
    BEFORE_READY,
    LIVE,
    TABLE,
    IllegalTransition,
    Lifecycle,
    LifecycleEvent,
    State,
    diagram,
    next_state,
)

E, S = LifecycleEvent, State
BY_NAME = sorted(LIVE, key=lambda s: s.value)


def walk(*events: LifecycleEvent) -> Lifecycle:
    life = Lifecycle(0.0)
    for n, event in enumerate(events):
        life.happened(event, float(n + 1))
    return life


def test_a_plain_life():
    life = walk(E.CREATED, E.STARTED, E.INITIALIZED, E.DRAIN_BEGAN, E.STOP_BEGAN)
    life.happened(E.EXITED, 6.0)
    assert life.clear(7.0) == 2.0
    assert life.state is S.STOPPED
    assert not life.live


@pytest.mark.parametrize("state", BY_NAME)
def test_an_exit_may_come_in_any_live_state_and_leads_to_the_teardown(state):
    life = Lifecycle(0.0, state)
    life.happened(E.EXITED, 1.0)
    assert life.state is S.STOPPING


@pytest.mark.parametrize("state", [state for state in BY_NAME if state is not S.STOPPING])
def test_an_end_nobody_wanted_is_failed_and_a_wanted_one_stopped(state):
    broken, wanted = Lifecycle(0.0, state), Lifecycle(0.0, state)
    broken.happened(E.BROKE, 1.0)
    broken.clear(2.0)
    wanted.happened(E.STOP_BEGAN, 1.0)
    wanted.clear(2.0)
    assert (broken.state, wanted.state) == (S.FAILED, S.STOPPED)


def test_an_exit_while_stopping_is_part_of_a_wanted_end():
    life = walk(E.CREATED, E.STARTED, E.INITIALIZED, E.STOP_BEGAN, E.EXITED)
    life.clear(9.0)
    assert life.state is S.STOPPED


def test_a_job_that_ends_by_itself_is_stopped_not_failed():
    life = walk(E.CREATED, E.STARTED, E.INITIALIZED, E.COMPLETED)
    life.clear(9.0)
    assert life.state is S.STOPPED


def test_every_state_is_reached_and_every_event_used():
    assert set(TABLE.values()) | {S.CREATING} == set(State)
    assert {event for _, event in TABLE} == set(LifecycleEvent)


def test_only_the_teardown_leads_to_an_end():
    into_ends = {state for (state, _), after in TABLE.items() if after not in LIVE}
    assert into_ends == {S.STOPPING}


def test_nothing_leads_back_before_ready():
    ranks = {state: n for n, state in enumerate(State)}
    for (state, _), after in TABLE.items():
        if after in BEFORE_READY:
            assert ranks[after] > ranks[state]


@given(st.sampled_from(State), st.sampled_from(LifecycleEvent))
def test_an_unknown_event_raises_and_changes_nothing(state, event):
    life = Lifecycle(5.0, state)
    if (state, event) in TABLE:
        life.happened(event, 6.0)
        assert life.state is next_state(state, event)
        return
    with pytest.raises(IllegalTransition) as error:
        life.happened(event, 6.0)
    assert (life.state, life.since, life.broken) == (state, 5.0, False)
    assert state.value in str(error.value)
    assert event.value in str(error.value)


@given(st.lists(st.sampled_from(LifecycleEvent)))
def test_time_in_states_adds_up_to_the_whole(events):
    life, spent, now = Lifecycle(0.0), 0.0, 0.0
    for event in events:
        now += 1.0
        if (life.state, event) in TABLE:
            spent += life.happened(event, now)
    assert spent + (now - life.since) == now


def test_diagram_has_every_arrow():
    text = diagram()
    for (state, event), after in TABLE.items():
        arrow = next(li for li in text.splitlines() if f" {state.name} --> {after.name}:" in li)
        assert event.value in arrow
