"""Jobs: the states of one run, and what Linux lets a program be given.

A run is accepted, started once and ends: by itself (Succeeded, Failed by exit code or a limit), by
request (Stopped), or it never began in time (Expired). The state's value is the name that call
records carry. An event the table does not know raises and changes nothing. Sizes are checked before
anything is pulled or created, so that a too large event is a clear refusal and not E2BIG out of the
runtime. Running it is `agent/calls/job.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum

from agent.errors import Bug, InvalidSpec, Problem
from agent.model.limits import (
    EXEC_POINTER_BYTES,
    EXEC_RESERVE_BYTES,
    MAX_EXEC_BYTES,
    MAX_STRING_BYTES,
)


class JobState(Enum):
    """Where a run stands; the value is its name in call records."""

    ENQUEUED = "Enqueued"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    STOPPED = "Stopped"
    EXPIRED = "Expired"


class JobEvent(Enum):
    """What happened to a run."""

    STARTED = "Started"
    START_FAILED = "StartFailed"
    EXITED_CLEAN = "ExitedClean"
    EXITED_BADLY = "ExitedBadly"
    TIMED_OUT = "TimedOut"
    STOP_REQUESTED = "StopRequested"
    AGED_OUT = "AgedOut"


JOB_TABLE: dict[tuple[JobState, JobEvent], JobState] = {
    (JobState.ENQUEUED, JobEvent.STARTED): JobState.RUNNING,
    (JobState.ENQUEUED, JobEvent.START_FAILED): JobState.FAILED,
    (JobState.ENQUEUED, JobEvent.STOP_REQUESTED): JobState.STOPPED,
    (JobState.ENQUEUED, JobEvent.AGED_OUT): JobState.EXPIRED,
    (JobState.RUNNING, JobEvent.EXITED_CLEAN): JobState.SUCCEEDED,
    (JobState.RUNNING, JobEvent.EXITED_BADLY): JobState.FAILED,
    (JobState.RUNNING, JobEvent.TIMED_OUT): JobState.FAILED,
    (JobState.RUNNING, JobEvent.STOP_REQUESTED): JobState.STOPPED,
}


class IllegalJobTransition(Bug):
    """An event came in a state that does not know it; nothing was changed."""


def next_job_state(state: JobState, event: JobEvent) -> JobState:
    """Return where `event` leads from `state`; raises IllegalJobTransition."""
    try:
        return JOB_TABLE[state, event]
    except KeyError:
        raise IllegalJobTransition(f"a run {state.value} cannot have {event.value}") from None


def exec_bytes(argv: Sequence[str], env: Mapping[str, str]) -> int:
    """Return what execve(2) needs for these: every string with its NUL, and a pointer each."""
    texts = sum(_size(text) + 1 for text in argv)
    texts += sum(_size(name) + _size(value) + 2 for name, value in env.items())
    return texts + (len(argv) + len(env)) * EXEC_POINTER_BYTES + EXEC_RESERVE_BYTES


def check_exec_sizes(argv: Sequence[str], env: Mapping[str, str], event_name: str = "") -> None:
    """Raise InvalidSpec naming every string that Linux would not take, or their sum.

    `event_name` is the variable that carries a job's event; it is called `event` then, because that
    is what the caller sent.
    """
    problems = [
        _too_long(f"argument {n}", _size(text) + 1)
        for n, text in enumerate(argv)
        if _size(text) + 1 > MAX_STRING_BYTES
    ]
    for name, value in env.items():
        size = _size(name) + _size(value) + 2
        if size > MAX_STRING_BYTES:
            problems.append(_too_long("event" if name == event_name else f"env.{name}", size))
    whole = exec_bytes(argv, env)
    if not problems and whole > MAX_EXEC_BYTES:
        problems.append(
            Problem(
                "env",
                f"environment and arguments together take {whole} bytes; "
                f"Linux takes at most {MAX_EXEC_BYTES}",
            )
        )
    if problems:
        raise InvalidSpec(problems)


def _too_long(field: str, size: int) -> Problem:
    return Problem(field, f"takes {size} bytes with its name; Linux takes {MAX_STRING_BYTES}")


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogateescape"))
