"""Idle instances are frozen: one timer for all of them, and no task but for a hook.

When is `agent/core/freezing.py`'s decision; the write is the instance's own, on a kept descriptor,
and so is the thaw, which `agent/calls/target.py` makes before it leases one. A pre-freeze hook runs
while the instance still serves: a call that comes meanwhile is made at once, beside the hook, which
goes on; the instance is then left alone until it has rested anew. Whatever a hook answers, the
freeze follows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from math import inf

from agent.aio.tasks import stop
from agent.core.freezing import Resting, at_rest
from agent.core.mode import NodeMode
from agent.core.pool import Member
from agent.instances.instance import Instance

PAUSE_S = 0.002  # between two looks: some are due at any moment on a busy node

Told = Callable[[Instance], None]


class Freezing:
    """Freezes what rests; `told` hears of the first time of each instance."""

    def __init__(self, now: Callable[[], float], mode: NodeMode, told: Told) -> None:
        self.count = 0
        """How often something was frozen."""
        self._now = now
        self._mode = mode
        self._told = told
        self._resting: Resting[Instance] = Resting()
        self._hooked: dict[Member[Instance], asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_at = inf

    def __repr__(self) -> str:
        return f"<Freezing {self._resting!r} hooks={len(self._hooked)} frozen={self.count} times>"

    def rests(self, member: Member[Instance]) -> None:
        """Have a member frozen once it has rested for as long as its version says."""
        after_s = member.instance.freeze_after_s
        assert after_s is not None
        at = self._resting.began(member, after_s)
        if at < self._wakes_at:
            self._wake_at(at)

    def look(self) -> None:
        """Freeze who is due; nobody once the next worker has them."""
        self._timer, self._wakes_at = None, inf
        if not self._mode.owns_instances:
            return
        now = self._now()
        for member in self._resting.due(now):
            self._begin(member)
        at = self._resting.next_at()
        if at < inf:
            self._wake_at(max(at, now + PAUSE_S))

    async def close(self) -> None:
        """Freeze nobody any more, and break hooks off."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._wakes_at = None, -inf  # nobody wakes it again
        await stop(*self._hooked.values())

    def _wake_at(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._wakes_at = at
        self._timer = asyncio.get_running_loop().call_later(max(0.0, at - self._now()), self.look)

    def _begin(self, member: Member[Instance]) -> None:
        instance = member.instance
        hook = instance.contract.hook("pre_freeze")
        if hook is None:
            self._freeze(member)
        elif member not in self._hooked:  # else it rests again when that has ended
            task = self._hooked[member] = instance.before_freeze(hook)
            task.add_done_callback(partial(self._hook_ended, member, member.idle_since))

    def _hook_ended(self, member: Member[Instance], since: float, task: asyncio.Task[None]) -> None:
        del self._hooked[member]
        if task.cancelled() or not self._mode.owns_instances or not at_rest(member):
            return
        if member.idle_since == since:
            self._freeze(member)
        else:
            self.rests(member)

    def _freeze(self, member: Member[Instance]) -> None:
        instance = member.instance
        if not instance.freeze():
            return
        self.count += 1
        if not instance.was_frozen:
            instance.was_frozen = True
            self._told(instance)
