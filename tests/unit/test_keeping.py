"""For how long an instance keeps connections: what was seen, what is announced, what is trusted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.instances.keeping import ANNOUNCED_MOST_S, FORGIVEN_AFTER, HOT_S, Keeping


@pytest.mark.parametrize(
    ("seen", "rested_s", "trusted"),
    [
        ([], 0.0, True),
        ([], HOT_S, True),
        ([], HOT_S + 0.001, False),
        ([("kept", 0.051)] * 2, 0.045, False),
        ([("kept", 0.060)] * 2, 0.045, False),
        ([("kept", 0.100)] * 2, 0.045, True),
        ([("kept", 0.060)], 0.045, False),
        ([("kept", 0.133), ("kept", 0.051)], 0.045, False),
        ([("kept", 0.051), ("kept", 0.133)], 0.045, False),
        ([("kept", 0.2), ("kept", 0.06), ("kept", 0.12)], 0.055, True),
        ([("kept", 5.0)] * 2, 4.0, True),
        ([("kept", 5.0)] * 2, 4.9, False),
        ([("announced", 5.0)], 4.0, True),
        ([("announced", 5.0)], 5.0, False),
        ([("announced", 1e9)], ANNOUNCED_MOST_S, False),
        ([("announced", 5.0), ("closed", 0.05)], 1.0, False),
        ([("closed", 0.05)], 0.0, True),
        ([("closed", 0.001)], 0.0, False),
        ([("closed", 0.001), ("kept", 0.002)], 0.0, False),
        ([("closed", 0.001), *[("kept", 0.012)] * 10], 0.0, False),
        ([("closed", 0.001), *[("kept", 0.012)] * 11], 0.0, True),
        ([("closed", 0.05), ("kept", 0.133)], 0.045, False),
        ([("closed", 0.001), *[("kept", 0.002)] * FORGIVEN_AFTER], 0.0, False),
        ([("closed", 0.001), *[("kept", 0.002)] * (FORGIVEN_AFTER + 1)], 0.0, True),
        ([("closed", 5.0), *[("kept", 4.9)] * 2], 3.9, True),
        ([("closed", 5.0), *[("kept", 4.9)] * 2], 4.8, False),
        ([*[("kept", 9.0)] * 2, ("closed", 0.1), *[("kept", 0.2)] * 11], 4.0, False),
        ([*[("kept", 9.0)] * 2, ("closed", 0.1), *[("kept", 0.2)] * 11], 0.15, True),
    ],
)
def test_what_is_trusted(seen, rested_s, trusted):
    keeping = Keeping()
    for what, seconds in seen:
        getattr(keeping, what)(seconds)
    assert keeping.trusts(rested_s) is trusted
    assert (rested_s <= keeping.hot_s) <= trusted, "what is used unasked is trusted"


@given(st.floats(0.06, 3600), st.lists(st.floats(0, 2), max_size=20))
def test_a_server_with_a_timeout_is_never_trusted_up_to_it(timeout_s, shares):
    keeping = Keeping()
    for share in shares:
        rested_s = share * timeout_s
        if rested_s >= timeout_s:
            keeping.closed(timeout_s)
        else:
            keeping.kept(rested_s)
    assert not keeping.trusts(timeout_s * 0.95)
    assert not keeping.trusts(timeout_s)
