"""Leaving the instances to the next worker: what is settled first, what goes, and what stays here.

What serves goes, with its output. What starts or ends here goes on to its end here, for the next
worker leaves alone what a record names as a living worker's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from agent.core.instance import State
from agent.instances.fleet import Fleet

LOOK_S = 0.002


async def starts_have_slots(fleet: Fleet, within_s: float) -> bool:
    """Wait until every start under way holds its slots; say whether that came to pass.

    Then it can go on beside another worker.
    """
    deadline = asyncio.get_running_loop().time() + within_s
    while any(one.wants_slots for one in fleet.admission.instances.values()):
        if asyncio.get_running_loop().time() >= deadline:
            return False
        await asyncio.sleep(LOOK_S)
    return True


def hand_over(fleet: Fleet, kept: Collection[str]) -> None:
    """Leave every instance that serves, and its output, to the next worker.

    Calls in flight go on. The instances in `kept` stay: jobs whose callers wait here.
    """
    fleet.mode.hand_over()
    for instance in fleet.admission.instances.values():
        if instance.id in kept:
            instance.keep()
        elif instance.state is State.READY and not instance.handed_over:
            instance.hand_over()


def unsettled(fleet: Fleet) -> int:
    """Return how many instances start or end here, or are kept, after a hand-over."""
    return sum(one.is_ours for one in fleet.admission.instances.values())
