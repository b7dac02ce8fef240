"""How the process of one instance is ended: pre-stop hook, TERM, cutoff, KILL.

Whoever is in a hurry brings the end forward, also while the hook or TERM is at work. What the
instance holds is given back afterwards, by `instance.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from agent.aio.deadline import ShrinkingDeadline
from agent.aio.tasks import spawn, stop
from agent.contracts.base import Contract
from agent.core.stop_signal import stop_signal_or_term
from agent.errors import AgentError
from agent.instances.hooks import Hooks

if TYPE_CHECKING:
    from agent.sandbox.container import Container

KILL_S = 10.0  # one signal by way of the shim, or the time from KILL to the exit
HOOK_SHARE = 0.5  # of a shortened grace; the rest is for TERM


@dataclass(frozen=True, slots=True)
class Ending:
    """What is needed to end one process; `before_term` lets go of its idle connections."""

    container: Container
    contract: Contract
    hooks: Hooks
    stop_signal: str
    before_term: Callable[[], None]
    cutoff: ShrinkingDeadline

    async def run(self, grace_s: float | None, *, hooked: bool) -> None:
        """End the process, in the contract's time or in `grace_s` seconds; 0 kills at once."""
        container, cutoff = self.container, self.cutoff
        grace = self.contract.limits.stop_grace_s
        if grace_s is not None:
            grace = min(grace_s, grace)
            cutoff.at_most(grace)
        if hooked and not cutoff.over.done():
            await self._pre_stop(None if grace_s is None else grace * HOOK_SHARE)
        self.before_term()
        loop = asyncio.get_running_loop()
        if not (cutoff.over.done() or container.exited):
            with contextlib.suppress(AgentError):
                number = stop_signal_or_term(self.stop_signal)
                await container.signal(number, deadline=loop.time() + KILL_S)
            cutoff.at_most(grace)
            await cutoff.wait_for(container.exit)
        if not container.exited:
            with contextlib.suppress(AgentError):
                await container.kill(deadline=loop.time() + KILL_S)

    async def _pre_stop(self, limit_s: float | None) -> None:
        """Make the hook's request; cut short by an exit, by `limit_s`, or by a hastier stop."""
        hook = self.contract.hook("pre_stop")
        if hook is None:
            return
        if limit_s is not None:
            hook = replace(hook, timeout_s=min(hook.timeout_s, limit_s))
        hooking = spawn(f"pre-stop hook of {self.container.id}", self.hooks.run(hook))
        await self.cutoff.wait_for(hooking, self.container.exit)
        await stop(hooking)
