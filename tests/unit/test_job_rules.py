"""A run's states, and what Linux lets a program be given."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.job import (
    JOB_TABLE,
    IllegalJobTransition,
    JobEvent,
    JobState,
    check_exec_sizes,
    exec_bytes,
    next_job_state,
)
from agent.errors import InvalidSpec
from agent.model.limits import MAX_EXEC_BYTES, MAX_STRING_BYTES


def fields(argv: list[str], env: dict[str, str], event: str = "") -> list[str]:
    with pytest.raises(InvalidSpec) as error:
        check_exec_sizes(argv, env, event)
    return [problem.field for problem in error.value.problems]


@given(st.sampled_from(JobState), st.sampled_from(JobEvent))
def test_an_unknown_event_raises(state, event):
    if (state, event) in JOB_TABLE:
        assert next_job_state(state, event) in JobState
    else:
        with pytest.raises(IllegalJobTransition, match=state.value):
            next_job_state(state, event)


def test_ends_are_ends_and_every_state_is_reached():
    ends = {state for state in JobState if not any(state is left for left, _ in JOB_TABLE)}
    assert {s.value for s in ends} == {"Succeeded", "Failed", "Stopped", "Expired"}
    assert set(JOB_TABLE.values()) | {JobState.ENQUEUED} == set(JobState)


def test_the_largest_variable_fits_and_one_byte_more_does_not():
    name = "SCF_CUSTOM_CONTAINER_EVENT"
    room = MAX_STRING_BYTES - len(name) - 2
    check_exec_sizes(["/x"], {name: "e" * room}, name)
    assert fields(["/x"], {name: "e" * (room + 1)}, name) == ["event"]
    assert fields(["/x"], {name: "e" * (room + 1)}) == [f"env.{name}"]


def test_bytes_count_and_not_characters():
    assert fields(["/x"], {"A": "é" * (MAX_STRING_BYTES // 2)}) == ["env.A"]


def test_every_string_that_is_too_long_is_told():
    big = "x" * MAX_STRING_BYTES
    assert fields(["/x", big, "ok", big], {"A": big}) == ["argument 1", "argument 3", "env.A"]


def test_the_sum_has_a_limit_of_its_own():
    env = {f"V{n}": "x" * 130_000 for n in range(17)}
    assert exec_bytes(["/x"], env) > MAX_EXEC_BYTES
    assert fields(["/x"], env) == ["env"]
