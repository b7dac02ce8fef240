"""Calls of jobs: the event is collected, `Target.run_job` does the rest.

No lease and no connection: a task waits for the job's start or end, as the contract says.
"""

from __future__ import annotations

from agent.aio.tasks import spawn
from agent.contracts.failures import from_error
from agent.errors import AgentError
from agent.gateway.exchanges.exchange import Exchange
from agent.gateway.exchanges.stage import COLLECTING, DONE, JOB
from agent.model.failure import Failure, FailureKind


class JobExchange(Exchange):
    """One call of a job."""

    def _begin(self) -> None:
        self.stage = COLLECTING
        self.shared.waiting.add(self)
        if self.request_done:
            self._collected()
        elif self.caller is not None:
            self.caller.go_ahead()

    def _collected(self) -> None:
        self.stage = JOB
        event = b"".join(self._held_back())
        _ = spawn(f"job call {self.call.request_id}", self._run(event))

    async def _run(self, event: bytes) -> None:
        failure = Failure(FailureKind.INTERNAL)
        try:
            reply, self.job_report = await self.callee.target.run_job(self.call, event)
        except AgentError as error:
            failure = from_error(error)
        else:
            if self.stage != DONE:
                caller = self.caller
                self.callee.counters.cold_starts += self.job_report.cold_start is not None
                self._done(reply.status)
                self.caller = None
                if caller is not None:
                    self._deliver(caller, reply)
        finally:
            if self.stage != DONE:
                self.end(failure)
