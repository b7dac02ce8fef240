"""How many containers of a version are kept created and not started. Pure.

`scaling.standby` says so; where it is absent, one for a function that is busy: something of it
serves, or a call had to wait for a start not long ago. What sleeps has none. Only LATEST is kept,
only what could still be started below `scaling.max`, and nothing on a node that takes no calls.
"""

from __future__ import annotations

from dataclasses import dataclass

EACH_BYTES = 1 << 20
"""What a standby counts in admission and in the node's budget: the runtime's waiting init and the
kernel's share of a container (seen: 0.9 MB). It counts its whole memory when it is started."""
RETRY_S = 30.0  # after one that could not be made, or died: its next start tells why


@dataclass(frozen=True, slots=True)
class Demand:
    """What is known of a version when standbys are counted.

    `asked` is `scaling.standby`, None where it is absent; `serving` are its instances, those being
    started included; `busy_until` is when a call last waited for a start, and a while.
    """

    asked: int | None
    serving: int
    most: int
    busy_until: float
    kept: bool
    auto: bool


def wanted(demand: Demand, now: float) -> int:
    """Return how many standbys a version is to have."""
    if not demand.kept:
        return 0
    if demand.asked is None:
        busy = demand.serving > 0 or now < demand.busy_until
        count = int(demand.auto and demand.busy_until > 0 and busy)
    else:
        count = demand.asked
    return max(0, min(count, demand.most - demand.serving))
