"""The states of an instance: one table, everything else is read from it.

An instance is built (CREATING), may wait for a call so (STANDBY), runs its program (STARTING),
proves that it serves (INITIALIZING), serves (READY), finishes its calls (DRAINING), is taken apart
(STOPPING) and ends STOPPED, or FAILED when nobody wanted its end. An exit may arrive in any live
state; it leads to STOPPING like every other end, so that slots are given back in one place, once.
A job that exits by itself has `Completed`.

An event that the table does not know raises IllegalTransition and changes nothing. What is done
about a transition is `agent/instances/instance.py`'s business. `python -m agent.core.instance`
prints the diagram for ARCHITECTURE.md.
"""

from __future__ import annotations

from enum import Enum

from agent.errors import Bug


class State(Enum):
    """Where an instance stands; the value is its name in records, metrics and answers."""

    CREATING = "creating"
    STANDBY = "standby"
    STARTING = "starting"
    INITIALIZING = "initializing"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


class LifecycleEvent(Enum):
    """What happened to an instance."""

    CREATED = "Created"
    PARKED = "Parked"
    TAKEN = "Taken"
    STARTED = "Started"
    INITIALIZED = "Initialized"
    DRAIN_BEGAN = "DrainBegan"
    STOP_BEGAN = "StopBegan"
    EXITED = "Exited"
    BROKE = "Broke"
    COMPLETED = "Completed"
    CLEARED = "Cleared"
    CLEARED_BROKEN = "ClearedBroken"


S, E = State, LifecycleEvent

TABLE: dict[tuple[State, LifecycleEvent], State] = {
    (S.CREATING, E.CREATED): S.STARTING,
    (S.CREATING, E.STOP_BEGAN): S.STOPPING,
    (S.CREATING, E.EXITED): S.STOPPING,
    (S.CREATING, E.BROKE): S.STOPPING,
    (S.CREATING, E.PARKED): S.STANDBY,
    (S.STANDBY, E.TAKEN): S.STARTING,
    (S.STANDBY, E.DRAIN_BEGAN): S.DRAINING,
    (S.STANDBY, E.STOP_BEGAN): S.STOPPING,
    (S.STANDBY, E.EXITED): S.STOPPING,
    (S.STANDBY, E.BROKE): S.STOPPING,
    (S.STARTING, E.STARTED): S.INITIALIZING,
    (S.STARTING, E.STOP_BEGAN): S.STOPPING,
    (S.STARTING, E.EXITED): S.STOPPING,
    (S.STARTING, E.BROKE): S.STOPPING,
    (S.STARTING, E.COMPLETED): S.STOPPING,
    (S.INITIALIZING, E.INITIALIZED): S.READY,
    (S.INITIALIZING, E.STOP_BEGAN): S.STOPPING,
    (S.INITIALIZING, E.EXITED): S.STOPPING,
    (S.INITIALIZING, E.BROKE): S.STOPPING,
    (S.INITIALIZING, E.COMPLETED): S.STOPPING,
    (S.READY, E.DRAIN_BEGAN): S.DRAINING,
    (S.READY, E.STOP_BEGAN): S.STOPPING,
    (S.READY, E.EXITED): S.STOPPING,
    (S.READY, E.BROKE): S.STOPPING,
    (S.READY, E.COMPLETED): S.STOPPING,
    (S.DRAINING, E.STOP_BEGAN): S.STOPPING,
    (S.DRAINING, E.EXITED): S.STOPPING,
    (S.DRAINING, E.BROKE): S.STOPPING,
    (S.DRAINING, E.COMPLETED): S.STOPPING,
    (S.STOPPING, E.EXITED): S.STOPPING,
    (S.STOPPING, E.BROKE): S.STOPPING,
    (S.STOPPING, E.CLEARED): S.STOPPED,
    (S.STOPPING, E.CLEARED_BROKEN): S.FAILED,
}

LIVE = frozenset({state for state, _ in TABLE})
"""States in which the instance holds slots; everything but the two ends."""
BEFORE_READY = frozenset({S.CREATING, S.STARTING, S.INITIALIZING})


class IllegalTransition(Bug):
    """An event came in a state that does not know it; the state was left alone."""

    def __init__(self, state: State, event: LifecycleEvent) -> None:
        super().__init__(f"an instance that is {state.value} cannot have {event.value}")
        self.state = state
        self.event = event


def next_state(state: State, event: LifecycleEvent) -> State:
    """Return where `event` leads from `state`; raises IllegalTransition."""
    try:
        return TABLE[state, event]
    except KeyError:
        raise IllegalTransition(state, event) from None


def is_wanted_end(event: LifecycleEvent) -> bool:
    """Say whether an event that leads to STOPPING was asked for, so that it ends in STOPPED."""
    return event in (E.STOP_BEGAN, E.COMPLETED)


class Lifecycle:
    """One instance's walk through the table.

    `since` is when the present state began, in the caller's clock. `broken` says that it did not
    end by our wish; `clear` then leads to FAILED.
    """

    __slots__ = ("broken", "since", "state")

    def __init__(self, now: float, state: State = State.CREATING) -> None:
        self.state = state
        self.since = now
        self.broken = False

    def happened(self, event: LifecycleEvent, now: float) -> float:
        """Make the step and return the seconds spent in the state that was left.

        Raises IllegalTransition and changes nothing. A self-loop (an exit while stopping) does not
        restart the state's time and returns 0.
        """
        after = next_state(self.state, event)
        if after is self.state:
            return 0.0
        if after is State.STOPPING:
            self.broken = not is_wanted_end(event)
        spent_s = now - self.since
        self.state, self.since = after, now
        return spent_s

    def clear(self, now: float) -> float:
        """Note that everything it held is given back: the end, STOPPED or FAILED."""
        return self.happened(
            LifecycleEvent.CLEARED_BROKEN if self.broken else LifecycleEvent.CLEARED, now
        )

    @property
    def live(self) -> bool:
        """Whether the instance still holds anything."""
        return self.state in LIVE

    def __repr__(self) -> str:
        return f"<Lifecycle {self.state.value}{' broken' if self.broken else ''}>"


def diagram() -> str:
    """Return the table as a mermaid state diagram: one arrow per pair of states."""
    labels: dict[tuple[State, State], list[str]] = {}
    for (state, event), after in TABLE.items():
        labels.setdefault((state, after), []).append(event.value)
    lines = ["stateDiagram-v2", f"    [*] --> {State.CREATING.name}"]
    for (state, after), events in labels.items():
        lines.append(f"    {state.name} --> {after.name}: {', '.join(events)}")
    ends = [state for state in State if state not in LIVE]
    lines += [f"    {end.name} --> [*]" for end in ends]
    return "\n".join(lines)


if __name__ == "__main__":
    print(diagram())  # noqa: T201
