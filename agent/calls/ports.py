"""What the doors see of a function version.

The warm path is synchronous: `Target.acquire` returns a lease at once when an instance has room.
Otherwise the waiter is queued and told by callback; no task exists per waiting call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from agent.contracts.base import Call, CallReport, Contract, Reply
from agent.instances.endpoint import Endpoint
from agent.model.failure import Failure
from agent.model.records import ColdStart, FunctionVersion


@dataclass(slots=True, eq=False)
class Lease:
    """The right to send one request to one instance; released exactly once.

    `cold_start` is set only on the lease of the call that caused the start.
    """

    endpoint: Endpoint
    taken_at: float
    cold_start: ColdStart | None = None


class Waiter(Protocol):
    """A call that wants an instance. Only one that waits is told, and exactly once.

    `waited_s` is how long it has waited elsewhere, before it was passed on to this worker.
    """

    request_id: str
    waited_s: float

    def granted(self, lease: Lease) -> None:
        """An instance is free for this call now."""

    def refused(self, failure: Failure) -> None:
        """There will be no instance for this call, and why."""


class Target(Protocol):
    """One function version as calls see it."""

    version: FunctionVersion
    contract: Contract

    def acquire(self, waiter: Waiter) -> Lease | None:
        """Return a lease at once, or queue the waiter and return None.

        Raises FunctionFailed with the failure (QUEUE_FULL, DRAINING, NO_CAPACITY …) when it can
        do neither. Queue deadlines are kept here: the waiter is refused in time.
        """

    def abandon(self, waiter: Waiter) -> None:
        """Forget a waiter whose caller has gone. Unknown waiters are ignored."""

    def release(
        self, lease: Lease, call: Call, failure: Failure | None = None, *, recycle: bool = False
    ) -> None:
        """Give the lease back; the next waiter may be granted within this call.

        `recycle` ends the instance (a timed-out call at concurrency 1, a broken exchange).
        Raises Bug on a second release.
        """

    def report(self, lease: Lease) -> CallReport:
        """Return what the call of a released lease has cost."""

    async def explain(self, lease: Lease, waited_s: float) -> Failure:
        """Say why an exchange broke: waits up to 0.5 s for the instance's exit.

        Returns EXITED or OUT_OF_MEMORY with exit code, signal and last log lines, or BAD_RESPONSE
        when the instance lives.
        """

    async def run_job(self, call: Call, event: bytes) -> tuple[Reply, CallReport]:
        """Run a job for this call and return the contract's reply and what is known of the run.

        Returns when it has started or ended, as the contract says. Only for kind `job`. Raises
        FunctionFailed, Overloaded or InvalidSpec.
        """


class TargetFinder(Protocol):
    """Finds what is deployed. `generation` changes whenever an answer may have changed."""

    generation: int

    def find(self, name: str, qualifier: str) -> Target:
        """Return the target; raises NotFound naming the function and what is there instead."""
