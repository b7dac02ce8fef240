"""How many standbys a version is to have, by what is known of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core.standby import Demand, wanted

NOW = 1000.0
GIVEN = Demand(asked=2, serving=0, most=10, busy_until=0.0, kept=True, auto=True)
ABSENT = replace(GIVEN, asked=None)


@pytest.mark.parametrize(
    ("what", "demand", "count"),
    [
        ("as its spec says", GIVEN, 2),
        ("none is said as well", replace(GIVEN, asked=0, serving=1, busy_until=NOW + 1), 0),
        ("no more than may still start", replace(GIVEN, most=3, serving=2), 1),
        ("none where all serve", replace(GIVEN, most=3, serving=3), 0),
        ("none of a version that is not LATEST", replace(GIVEN, kept=False), 0),
        ("a function never called sleeps", ABSENT, 0),
        ("kept serving by its minimum alone is not busy", replace(ABSENT, serving=1), 0),
        ("one after a cold start", replace(ABSENT, busy_until=NOW + 1), 1),
        ("as long as something serves", replace(ABSENT, busy_until=NOW - 1, serving=1), 1),
        ("none once it sleeps again", replace(ABSENT, busy_until=NOW - 1), 0),
        ("none where the node says so", replace(ABSENT, busy_until=NOW + 1, auto=False), 0),
    ],
)
def test_how_many_are_wanted(what, demand, count):
    assert wanted(demand, NOW) == count, what
